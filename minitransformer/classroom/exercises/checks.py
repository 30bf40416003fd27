r"""The exercises: `mt.check.attention(my_attention)` says what is wrong with it, by name if it can.

Each name of this module is an `Exercise`; call it with your own function. `diagnosis.py` puts the
answer together, `mistakes.py` holds the known mistakes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...proofs.draws import (
    BATCH,
    D_FF,
    D_K,
    D_MODEL,
    HEADS,
    HUGE,
    KEYS,
    MASKS,
    QUERIES,
    draw_attention,
    draw_keep,
    draw_norm,
    draw_softmax,
    matrix,
)
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, distance
from . import mistakes

# --- Attention --------------------------------------------------------------------------------


def draw_scores(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_attention(rng, "no mask")
    return {"Q": inputs["Q"], "K": inputs["K"]}


def rows_sum_to_one(weights: Tensor, keep: Tensor | None) -> str | None:
    """How the rows of weights fail to sum to one (to zero where nothing is kept)."""
    some = torch.ones(()) if keep is None else keep.any(-1).to(weights)
    sums = weights.sum(-1)
    if distance(sums, some.expand_as(sums)) <= EXACT:
        return None
    at = int((sums - some).abs().argmax())
    query, wanted = at % sums.shape[-1], float(some.expand_as(sums).reshape(-1)[at])
    off = float(sums.reshape(-1)[at]) - wanted
    if abs(off) < 1e-3:
        return (
            f"Those of query {query} miss {wanted:.0f} by {abs(off):.0e}, too much for rounding. Is a "
            "small number added somewhere, perhaps to the denominator?"
        )
    said = f"Those of query {query} sum to {wanted + off:.2f}, not {wanted:.0f}."
    names = ["the batch", "the heads", "the queries"]
    if weights.dim() == 3:
        names.remove("the heads")
    for axis, name in enumerate(names):
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


SHARED_OUT = "the weights of a query sum to 1, or to 0 where it may attend to nothing"
HIDDEN = "a hidden key gets no weight"


def of_weights(broken: Callable[..., str | None]) -> Callable[[Callable, Inputs], str | None]:
    """A property of softmax's weights."""
    return lambda f, inputs: broken(f(*inputs.values()), inputs["keep"])


def of_recovered_weights(
    broken: Callable[..., str | None],
) -> Callable[[Callable, Inputs], str | None]:
    """The same for attention: with the identity as values its output is the weights."""

    def check(f: Callable, inputs: Inputs) -> str | None:
        keys = inputs["K"].shape[-2]
        V = torch.eye(keys, dtype=torch.float64).expand(*inputs["K"].shape[:-1], keys).clone()
        return broken(f(inputs["Q"], inputs["K"], V, inputs["keep"]), inputs["keep"])

    return check


scaled_scores = Exercise(
    title="the scores",
    formula="QKᵀ/√d_k",
    reference=lambda Q, K: Q @ K.mT / K.shape[-1] ** 0.5,
    variant=mistakes.scaled_scores,
    draw=draw_scores,
    cases=("random Q and K",),
    axes="batch heads queries keys",
    mistakes=mistakes.SCALE_MISTAKES,
    next="Next: what a softmax makes of them, and why their size matters.",
)

softmax = Exercise(
    title="softmax with a mask",
    formula="softmax(s)_j = exp(s_j) / Σ_m exp(s_m), m over the kept keys",
    reference=ops.softmax,
    variant=mistakes.masked_softmax,
    draw=draw_softmax,
    cases=(*MASKS, HUGE),
    axes="batch queries keys",
    mistakes=mistakes.MASK_MISTAKES,
    properties={
        SHARED_OUT: of_weights(rows_sum_to_one),
        HIDDEN: of_weights(hidden_get_nothing),
    },
    next="Next: the weights average the values, and that is all of attention.",
)

attention = Exercise(
    title="scaled dot-product attention",
    formula="softmax(QKᵀ/√d_k) V",
    reference=ops.attention,
    variant=mistakes.attention,
    draw=draw_attention,
    cases=(*MASKS, HUGE),
    axes="batch heads queries d_v",
    mistakes=mistakes.ATTENTION_MISTAKES,
    properties={
        SHARED_OUT: of_recovered_weights(rows_sum_to_one),
        HIDDEN: of_recovered_weights(hidden_get_nothing),
    },
    next="Next: notebook 02 runs several of these side by side.",
)

# --- Heads ------------------------------------------------------------------------------------

ONE = "one position"


def draw_split(rng: np.random.Generator, case: str) -> Inputs:
    length = 1 if case == ONE else QUERIES
    return {"x": rng.standard_normal((BATCH, length, D_MODEL)), "n_heads": HEADS}


def draw_merge(rng: np.random.Generator, case: str) -> Inputs:
    length = 1 if case == ONE else QUERIES
    return {"heads": rng.standard_normal((BATCH, HEADS, length, D_K))}


def draw_multi_head(rng: np.random.Generator, case: str) -> Inputs:
    maps = {W: matrix(rng, D_MODEL, D_MODEL) for W in ("W_Q", "W_K", "W_V", "W_O")}
    return {
        "x": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "z": rng.standard_normal((BATCH, KEYS, D_MODEL)),
        **maps,
        "n_heads": HEADS,
        "keep": draw_keep(rng, case, (BATCH, 1, QUERIES, KEYS)),
    }


def multi_head_reference(
    x: Tensor,
    z: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    n_heads: int,
    keep: Tensor | None,
) -> Tensor:
    """The formula head by head: slices of the maps, and a real concatenation."""
    if keep is not None:
        keep = keep[:, 0]
    heads = [
        ops.attention(x @ Q, z @ K, z @ V, keep)
        for Q, K, V in zip(*(W.chunk(n_heads, dim=1) for W in (W_Q, W_K, W_V)), strict=True)
    ]
    return torch.cat(heads, dim=-1) @ W_O


def cut_columns(f: Callable, inputs: Inputs) -> str | None:
    """Whether a token's numbers stay with the token when heads are cut."""
    x, n_heads = inputs["x"], inputs["n_heads"]
    other = x.clone()
    other[:, 0] += torch.randn(x.shape[-1], dtype=x.dtype)
    moved = (f(x, n_heads) - f(other, n_heads)).abs().amax((0, 3))  # (heads, length)
    wrong = [t for t in range(1, x.shape[1]) if float(moved[:, t].max()) > EXACT]
    return f"Changing token 0 moved your positions {wrong}." if wrong else None


def order_of_queries(f: Callable, inputs: Inputs) -> str | None:
    """Whether exchanging queries exchanges the outputs; only without a mask."""
    if inputs["keep"] is not None:
        return None
    x, *rest = inputs.values()
    order = torch.arange(x.shape[1]).flip(0)
    off = distance(f(x[:, order], *rest), f(x, *rest)[:, order])
    return f"Reversing the tokens of x changed your outputs by {off:.2f}." if off > EXACT else None


split_heads = Exercise(
    title="split into heads",
    formula="(batch, length, h d_k) -> (batch, h, length, d_k)",
    reference=lambda x, n_heads: torch.stack(x.chunk(n_heads, dim=-1), dim=1),
    variant=mistakes.split_heads,
    draw=draw_split,
    cases=("seven positions", ONE),
    axes="batch heads length d_k",
    mistakes=mistakes.SPLIT_MISTAKES,
    properties={"a token's numbers stay at its position": cut_columns},
    next="Next: the way back. If you were surprised that no number moves in memory, print "
    "`.stride()` before and after.",
)

merge_heads = Exercise(
    title="merge the heads",
    formula="Concat(head_1, ..., head_h): (batch, h, length, d_k) -> (batch, length, h d_k)",
    reference=lambda heads: torch.cat(list(heads.unbind(1)), dim=-1),
    variant=mistakes.merge_heads,
    draw=draw_merge,
    cases=("seven positions", ONE),
    axes="batch length d_model",
    mistakes=mistakes.MERGE_MISTAKES,
    next="Next: attention between the split and the merge.",
)

multi_head_attention = Exercise(
    title="multi-head attention",
    formula="Concat(head_1, ..., head_h) W_O, head_i = Attention(x W_Q_i, z W_K_i, z W_V_i)",
    reference=multi_head_reference,
    variant=mistakes.multi_head_attention,
    draw=draw_multi_head,
    cases=MASKS,
    axes="batch queries d_model",
    mistakes=mistakes.MULTI_HEAD_MISTAKES,
    properties={"without a mask, the order of the queries does not matter": order_of_queries},
    next="Next: notebook 03 puts it into a block.",
)

# --- The block --------------------------------------------------------------------------------

FAR = "far from zero"


def draw_layer_norm(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_norm(rng, "tiny" if case == "tiny" else "plain")
    if case == FAR:
        inputs["x"] += 1e5
    if case == "all numbers equal":
        inputs["x"][:, ::2] = 2.5
        inputs["eps"] = 1e-5
    return inputs


def alone(f: Callable, inputs: Inputs) -> str | None:
    """Whether a position gives the same by itself."""
    x, *rest = inputs.values()
    off = distance(f(x[:1, :1], *rest), f(x, *rest)[:1, :1])
    return f"Position 0 by itself gives another result, by {off:.2f}." if off > EXACT else None


def shift_invariant(f: Callable, inputs: Inputs) -> str | None:
    """Whether a number added to all of x changes the result."""
    x, *rest = inputs.values()
    off = distance(f(x + 1e5, *rest), f(x, *rest))
    if off <= 1e-7:  # x + 1e5 itself rounds in the eleventh digit
        return None
    small = " So small an error is rounding: E[x²] - μ² is the difference of two large numbers. "
    hint = small + "Subtract μ first, then square." if off < 1e-2 else ""
    return f"Adding 100,000 to every number of x changed your output by {off:.1e}.{hint}"


layer_norm = Exercise(
    title="LayerNorm",
    formula="γ ⊙ (x - μ) / √(σ² + ε) + β",
    reference=ops.layer_norm,
    variant=mistakes.layer_norm,
    draw=draw_layer_norm,
    cases=("plain", "tiny", FAR, "all numbers equal"),
    axes="batch length d_model",
    mistakes=mistakes.LAYER_NORM_MISTAKES,
    properties={
        "every position is normalised by itself": alone,
        "a number added to all of x changes nothing": shift_invariant,
    },
    next="Next: the other half of a block, the feed-forward network.",
)


def draw_feed_forward(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "W_1": matrix(rng, D_MODEL, D_FF),
        "b_1": rng.standard_normal(D_FF),
        "W_2": matrix(rng, D_FF, D_MODEL),
        "b_2": rng.standard_normal(D_MODEL),
    }


feed_forward = Exercise(
    title="the feed-forward network",
    formula="max(0, xW_1 + b_1) W_2 + b_2",
    reference=lambda x, W_1, b_1, W_2, b_2: ops.relu(x @ W_1 + b_1) @ W_2 + b_2,
    variant=mistakes.feed_forward,
    draw=draw_feed_forward,
    cases=("plain",),
    axes="batch length d_model",
    mistakes=mistakes.FEED_FORWARD_MISTAKES,
    properties={"every position is transformed by itself": alone},
    next="Next: both halves together, with residuals and norms.",
)


def draw_block(rng: np.random.Generator, case: str) -> Inputs:
    """x and four functions of it, each with random weights."""
    w = {
        name: torch.from_numpy(a)
        for name, a in (draw_multi_head(rng, "no mask") | draw_feed_forward(rng, case)).items()
        if isinstance(a, np.ndarray) and name not in ("x", "z")
    }

    def norm() -> Callable[[Tensor], Tensor]:
        gamma, beta = (torch.from_numpy(rng.standard_normal(D_MODEL)) for _ in range(2))
        return lambda x: ops.layer_norm(x, gamma, beta, 0.1)

    W_Q, W_K, W_V, W_O = (w[f"W_{i}"] for i in "QKVO")
    return {
        "x": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "attention": lambda x: multi_head_reference(x, x, W_Q, W_K, W_V, W_O, HEADS, None),
        "feed_forward": lambda x: ops.relu(x @ w["W_1"] + w["b_1"]) @ w["W_2"] + w["b_2"],
        "norm_1": norm(),
        "norm_2": norm(),
        "norm_position": case,
    }


def block_reference(
    x: Tensor,
    attention: Callable,
    feed_forward: Callable,
    norm_1: Callable,
    norm_2: Callable,
    norm_position: str,
) -> Tensor:
    """The four formulas of the two blocks, line by line."""
    if norm_position == "post":
        a = norm_1(x + attention(x))
        return norm_2(a + feed_forward(a))
    a = x + attention(norm_1(x))
    return a + feed_forward(norm_2(a))


encoder_block = Exercise(
    title="the encoder block",
    formula='"post": a = LN_1(x + MHA(x)), y = LN_2(a + FFN(a)); '
    '"pre": a = x + MHA(LN_1(x)), y = a + FFN(LN_2(a))',
    reference=block_reference,
    variant=mistakes.encoder_block,
    draw=draw_block,
    cases=("post", "pre"),
    axes="batch length d_model",
    mistakes=mistakes.BLOCK_MISTAKES,
    next="Next: twelve of these on top of embeddings are BERT.",
)
