r"""The exercises of notebook 01: the scores, softmax with a mask, attention."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...model.attention import scaled_dot_product_attention
from ...proofs.draws import ABOVE, HUGE, MASKS, draw, draw_attention, draw_softmax
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise, distance
from ..engine.patches import known
from .shared import AXIS, HIDDEN, LARGEST, MASK, NO_KEYS, SCALE

scaled_scores = Exercise(
    title="the scores",
    formula="QKᵀ/√d_k",
    right=ops.scaled_scores, rows=("attention",),
    draw=draw("Q: batch heads queries d_k, K: batch heads keys d_k"), cases=("random Q and K", OTHER_SIZES), axes="batch heads queries keys",
    mistakes=SCALE,
    next="Next: what a softmax makes of them, and why their size matters.",
)  # fmt: skip


def rows_sum_to_one(weights: Tensor, keep: Tensor | None) -> str | None:
    """How the rows of weights fail to sum to one (to zero where nothing is kept)."""
    sums = weights.sum(-1)
    wanted = torch.ones_like(sums) if keep is None else keep.any(-1).to(sums).expand_as(sums)
    if distance(sums, wanted) <= EXACT:
        return None
    at = int((sums - wanted).abs().argmax())
    yours, right = (float(a.flatten()[at]) for a in (sums, wanted))
    those = f"Those of query {at % sums.shape[-1]}"
    if abs(yours - right) < 1e-3:
        return (
            f"{those} miss {right:.0f} by {abs(yours - right):.0e}, too much for "
            "rounding. Is a small number added somewhere, perhaps to the denominator?"
        )
    said = f"{those} sum to {yours:.3g}, not {right:.0f}."
    names = ("the batch", "the heads", "the queries")
    for axis, name in enumerate(names if weights.dim() == 4 else names[::2]):
        over = weights.sum(axis)
        if distance(over, torch.ones_like(over)) <= EXACT:
            said += f" The sums over {name} are 1: that is the axis of your softmax."
    return said


def hidden_get_nothing(weights: Tensor, keep: Tensor | None) -> str | None:
    """Which hidden key gets weight."""
    if keep is None:
        return None
    leak = weights.abs().masked_fill(keep, 0.0)
    if float(leak.max()) <= EXACT:
        return None
    *_, i, j = np.unravel_index(int(leak.argmax()), leak.shape)
    return f"Query {i} gives {float(leak.max()):.2f} of its weight to the hidden key {j}."


def with_identity(attention: Callable) -> Callable:
    """The weights inside a student's attention: with the identity as values they are its output."""

    def weights(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
        identity = torch.eye(K.shape[-2], dtype=V.dtype).repeat(*K.shape[:-2], 1, 1)
        return attention(Q, K, identity, keep)

    return weights


def of_weights(
    broken: Callable[[Tensor, Tensor | None], str | None],
    weights: Callable[[Callable], Callable] = lambda student: student,
) -> Callable[[Callable, Inputs], str | None]:
    """A property of the weights, which `weights` gets out of the student's function."""
    return lambda student, inputs: broken(weights(student)(*inputs.values()), inputs["keep"])


SUM_TO_ONE = "the weights of a query sum to 1, or to 0 where it may attend to nothing"
NO_LEAK = "a hidden key gets no weight"
softmax = Exercise(
    title="softmax with a mask",
    formula="softmax(s)_j = exp(s_j) / Σ_m exp(s_m), m over the kept keys",
    right=ops.softmax, rows=("softmax",), draw=draw_softmax, cases=(*MASKS, HUGE, ABOVE, OTHER_SIZES), axes="batch queries keys",
    mistakes=AXIS + MASK + HIDDEN + NO_KEYS + LARGEST,
    properties={SUM_TO_ONE: of_weights(rows_sum_to_one), NO_LEAK: of_weights(hidden_get_nothing)},
    next="Next: the weights average the values, and that is all of attention.",
)  # fmt: skip

attention = Exercise(
    title="scaled dot-product attention",
    formula="softmax(QKᵀ/√d_k) V",
    right=ops.attention, parts=(ops.softmax, ops.scaled_scores), rows=("attention",), twins=(scaled_dot_product_attention,),
    draw=draw_attention, cases=(*MASKS, HUGE, ABOVE, OTHER_SIZES), axes="batch heads queries d_v",
    # Of SCALE all but d_model's: attention sees single heads only.
    mistakes=SCALE[:-1] + AXIS + MASK + HIDDEN + NO_KEYS + LARGEST + known(
        "the axis of the softmax",
        ("with the softmax over the heads", "Each query distributes a total weight of 1 over its head's keys.", "(-1, keepdim=True)", "(1, keepdim=True)"),
        "softmax(...)",
        ("without the softmax", "Raw scores are not weights: they may be negative, and they do not sum to one.",
         "softmax(scores, visible(keep, causal, Q.shape[-2], K.shape[-2], Q.device))", "scores if keep is None else scores.masked_fill(~keep, 0.0)"),
        "the denominator √d_k, inside the softmax",
        ("with the scale after the softmax", "The root divides the scores, not the weights; the weights must still sum to one.",
         " * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)", "",
         "return inverted_dropout(weights, dropout) @ V", "return weights * (1 / math.sqrt(Q.shape[-1])) @ V"),
        "the denominator √d_k",
        ("divided by the root of d_v", "A score is a product of a query and a key, which have d_k numbers.", "(Q, K, scale)", "(Q, K, V.shape[-1] ** -0.5)"),
        ("with Q and K divided by √d_k, and their product once more", "Divide once.", "(Q, K, scale)", "(Q, K, Q.shape[-1] ** -1.5)"),
    ),
    properties={SUM_TO_ONE: of_weights(rows_sum_to_one, with_identity), NO_LEAK: of_weights(hidden_get_nothing, with_identity)},
    next="Next: notebook 02 runs several of these side by side.",
)  # fmt: skip
