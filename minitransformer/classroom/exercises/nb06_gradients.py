r"""The exercises of notebook 06: three formulas backward, as derived there, and one step of AdamW."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...proofs import draws
from ...proofs.draws import SIZES, Sizes
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise, copies
from ..engine.patches import known
from ..engine.several import ExerciseOfSeveral


def by_autograd(f: Callable[..., Tensor], n: int) -> Callable[..., tuple[Tensor, ...]]:
    """The gradients of the first n inputs of f, given that of its output."""

    def backward(d_output: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        first, rest = inputs[:n], inputs[n:]
        return torch.func.vjp(lambda *first: f(*first, *rest), *first)[1](d_output)

    return backward


def draw_softmax_backward(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    scores, keep = draws.draw_softmax(rng, case, sizes).values()
    P = ops.softmax(torch.from_numpy(scores), None if keep is None else torch.from_numpy(keep))
    return {"dP": rng.standard_normal(scores.shape), "P": P}


def right_softmax_backward(dP: Tensor, P: Tensor) -> Tensor:
    return P * (dP - (dP * P).sum(-1, keepdim=True))


def softmax_by_autograd(dP: Tensor, P: Tensor) -> Tensor:
    """The scores are log P: the softmax gives P back, with zeros where P is zero."""
    return torch.func.vjp(lambda scores: ops.softmax(scores, P > 0), P.log())[1](dP)[0]


def rows_sum_to_zero(f: Callable, inputs: Inputs) -> str | None:
    """Adding a constant to all scores changes no weight, so each row of dS sums to zero."""
    off = float(f(*copies(inputs)).sum(-1).abs().max())
    return f"Your rows sum to up to {off:.2f}." if off > EXACT else None


SUM = " - (dP * P).sum(-1, keepdim=True)"
softmax_backward = Exercise(
    title="softmax backward",
    formula="dS = P ⊙ (dP - Σ_j dP_j P_j)",
    right=right_softmax_backward, package=softmax_by_autograd,
    differentiated=False, draw=draw_softmax_backward, cases=(*draws.MASKS, OTHER_SIZES), axes="batch queries keys",
    mistakes=known(
        "the term - Σ_j dP_j P_j",
        ("without the sum, dS = P ⊙ dP", "All weights of a row share one denominator: raising one score lowers every other weight.", SUM, ""),
        ("with the sum of dP, not of dP ⊙ P", "Each dP_j counts as much as its weight P_j.", "(dP * P).sum(", "dP.sum("),
        ("with a mean in place of the sum", "The weights P already sum to 1, so Σ dP P is already an average.", "(dP * P).sum(", "(dP * P).mean("),
        ("with only its diagonal, dP ⊙ P ⊙ (1 - P)", "That is the derivative of a weight with respect to its own score, as for a sigmoid. The other weights depend on this score too.",
         SUM, " - dP * P"),
        ("with the sum added, not subtracted", "What one weight gains, the others lose.", "- (dP * P)", "+ (dP * P)"),
        ("with the sum over the queries", "The softmax runs over the keys, the last axis; so does its derivative.", "sum(-1,", "sum(-2,"),
        ("with the sum over the whole tensor", "Each row has a softmax and a sum of its own: over the last axis.", "sum(-1, keepdim=True)", "sum()"),
        "the factor P",
        ("with P in front of dP only, P ⊙ dP - Σ dP_j P_j", "P multiplies the whole difference: parentheses are missing.", "P * (dP - (dP * P).sum(-1, keepdim=True))", "P * dP - (dP * P).sum(-1, keepdim=True)"),
        ("without the factor P in front", "A weight that is nearly 0 hardly moves when its score does.", "return P * ", "return "),
    ),
    properties={"every row of dS sums to 0": rows_sum_to_zero},
    next="Next: the same idea one step further, in LayerNorm.",
)  # fmt: skip


def draw_layer_norm_backward(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    inputs = draws.draw_norm(rng, "plain" if case == "one token" else case, sizes)
    if case == "one token":
        inputs["x"] = inputs["x"][:1, :1]
    return {"dy": rng.standard_normal(inputs["x"].shape)} | inputs


def right_layer_norm_backward(
    dy: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sqrt(x.var(-1, correction=0, keepdim=True) + eps)
    x_hat = (x - x.mean(-1, keepdim=True)) / s
    dx_hat = dy * gamma
    along_mean = dx_hat.mean(-1, keepdim=True)
    along_x = x_hat * (dx_hat * x_hat).mean(-1, keepdim=True)
    dx = dx_hat - along_mean - along_x
    return dx / s, (dy * x_hat).sum((0, 1)), dy.sum((0, 1))


layer_norm_backward = ExerciseOfSeveral(
    title="LayerNorm backward",
    formula="dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ ⊙ x̂)) / s with dx̂ = dy ⊙ γ; dγ = Σ dy ⊙ x̂, dβ = Σ dy",
    right=right_layer_norm_backward, package=by_autograd(ops.layer_norm, 3), outputs=("dx", "dγ", "dβ"), like=("x", "gamma", "beta"),
    differentiated=False, draw=draw_layer_norm_backward, cases=("plain", "tiny", "one token", OTHER_SIZES), axes="entry",
    mistakes=known(
        "the first mean", ("without - mean(dx̂)", "μ depends on every number of the token, so x_j also acts through μ.", " - along_mean", ""),
        "the second mean",
        ("without - x̂ mean(dx̂ ⊙ x̂)", "s depends on every number of the token, so x_j also acts through s.", " - along_x", ""),
        ("with x, not x̂, in the second mean", "It measures how far dx̂ points along the normalised x̂.", "(dx_hat * x_hat)", "(dx_hat * x)"),
        ("with mean(dx̂) for mean(dx̂ ⊙ x̂)", "x̂ appears twice in this term: inside the mean and in front.", "(dx_hat * x_hat)", "dx_hat"),
        "both means", ("with sums, not means, in dx", "μ and σ² are means, so 1/d comes back with them.", "dx_hat.mean(", "dx_hat.sum(", "x_hat).mean(", "x_hat).sum("),
        "dx̂ = dy ⊙ γ",
        ("without γ in dx", "y = γ ⊙ x̂ + β: on the way back, γ comes first.", "dx_hat = dy * gamma", "dx_hat = dy"),
        ("with γ multiplied after the means", "γ varies, so it cannot be taken out.", "dx_hat = dy * gamma", "dx_hat = dy", "dx / s", "gamma * dx / s"),
        "the factor 1/s",
        ("without the factor 1/s", "A token of large numbers was divided by a large s; so is its gradient.", "dx / s", "dx"),
        ("with 1/s², not 1/s", "s is the root of the variance.", "dx / s", "dx / s**2"),
        "s = √(σ² + ε)",
        ("without ε in s", "The backward pass must use the same s as the forward pass.", " + eps", ""),
        ("with the variance divided by d - 1", "The backward pass must use the same s as the forward pass: torch's .var() divides by d - 1 unless told not to.",
         "correction=0", "correction=1"),
        "the sums of dγ and dβ",
        ("with means, not sums, in dγ and dβ", "γ and β are used at every position; what comes back is added.", ".sum((0, 1))", ".mean((0, 1))"),
        "dγ = Σ dy ⊙ x̂",
        ("with x, not x̂, in dγ", "γ multiplies x̂.", "(dy * x_hat)", "(dy * x)"),
        ("with γ in dγ", "The derivative of γ x̂ with respect to γ is x̂.", "(dy * x_hat)", "(dy * gamma * x_hat)"),
        "dβ = Σ dy", ("with γ in dβ", "β is added last: it sees dy as it comes.", ", dy.", ", (dy * gamma)."),
    ),
    next="Next: with two matrix products, softmax's derivative becomes attention's.",
)  # fmt: skip


SQUARE = "as many queries as keys"


def draw_attention_backward(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    # The square case comes first: there a forgotten transpose still runs, and can be named.
    inputs = draws.draw_attention(rng, "causal" if case == SQUARE else case, sizes)
    leading, d_v = inputs["Q"].shape[:-1], inputs["V"].shape[-1]
    if case == SQUARE:
        inputs |= {name: inputs[name][..., : leading[-1], :] for name in "KV"}
        inputs["keep"] = draws.draw_keep(rng, "causal", (*leading, leading[-1]))
    return {"dO": rng.standard_normal((*leading, d_v))} | inputs


def right_attention_backward(
    dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    root = math.sqrt(Q.shape[-1])
    scores = Q @ K.mT / root
    P = ops.softmax(scores, keep)
    dP = dO @ V.mT
    dS = right_softmax_backward(dP, P)
    return dS @ K / root, dS.mT @ Q / root, P.mT @ dO


ROOT = "S = QKᵀ/√d_k: what was divided on the way forward is divided on the way back."
attention_backward = ExerciseOfSeveral(
    title="attention backward",
    formula="dV = Pᵀ dO, dP = dO Vᵀ, dS = P ⊙ (dP - rowsum(dP ⊙ P)), dQ = dS K/√d_k, dK = dSᵀ Q/√d_k",
    right=right_attention_backward, parts=(right_softmax_backward,), package=by_autograd(ops.attention, 3),
    differentiated=False, draw=draw_attention_backward, cases=(SQUARE, *draws.MASKS, draws.ABOVE, OTHER_SIZES), axes="entry", outputs=("dQ", "dK", "dV"), like=("Q", "K", "V"),
    mistakes=known(
        "the factors 1/√d_k of dQ and dK",
        ("without 1/√d_k in dQ", ROOT, "@ K / root", "@ K"),
        ("without 1/√d_k in dK", ROOT, "@ Q / root", "@ Q"),
        ("with 1/d_k in dQ", "Is it there twice?", "@ K / root", "@ K / root**2"),
        ("with 1/d_k in dK", "Is it there twice?", "@ Q / root", "@ Q / root**2"),
        "S = QKᵀ/√d_k",
        ("without 1/√d_k in the scores that P is computed from", "The backward pass needs the same P as the forward pass.", "K.mT / root", "K.mT"),
        "P = softmax(S) over the kept keys",
        ("with the mask not applied in backward", "The backward pass needs the same P as the forward pass, with zeros at the hidden keys; then their gradient is 0 by itself.",
         "ops.softmax(scores, keep)", "ops.softmax(scores)"),
        ("with NaN for a query that may attend to nothing", "There the softmax is 0/0. The forward pass gave zeros: P is zero there too, and so is everything that comes back.",
         "ops.softmax(scores, keep)", "torch.softmax(scores if keep is None else scores.masked_fill(~keep, -math.inf), -1)"),
        "dS = P ⊙ (dP - rowsum(dP ⊙ P))", ("without softmax's sum, dS = P ⊙ dP", "This is exercise 1 again.", SUM, ""),
        "rowsum(dP ⊙ P)", ("with softmax's sum over the queries", "The softmax ran over the keys, the last axis.", "sum(-1,", "sum(-2,"),
        "dV = Pᵀ dO",
        ("with P for Pᵀ in dV", "dV has one row per key, P has one row per query. Key j collects from all queries: column j of P.", "P.mT @ dO", "P @ dO"),
        "dK = dSᵀ Q / √d_k", ("with dS for dSᵀ in dK", "dK has one row per key, dS has one row per query.", "dS.mT @ Q", "dS @ Q"),
    ),
    next="Next: everything else in a block is matrix products, sums and this.",
)  # fmt: skip


DECAY = " - lr * weight_decay * theta"
adamw_step = ExerciseOfSeveral(
    title="one step of AdamW",
    formula="m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², θ ← θ - ηλθ - η m̂/(√v̂ + ε) "
    "with m̂ = m/(1 - β₁ᵗ), v̂ = v/(1 - β₂ᵗ)",
    right=ops.adamw_step, rows=("adamw",), differentiated=False, outputs=("θ", "m", "v"), like=("theta", "m", "v"),
    draw=draws.draw_adamw, cases=("step 12", "first step", OTHER_SIZES), axes="entry",
    mistakes=known(
        "the bias correction, m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ)",
        ("without the bias correction of m", "m starts at 0; after one step it is only (1 - β₁) g.", "m_hat = m / (1 - beta_1**t)", "m_hat = m"),
        ("without the bias correction of v", "v starts at 0 too, and with β₂ = 0.999 it stays too small for a thousand steps.",
         "v_hat = v / (1 - beta_2**t)", "v_hat = v"),
        ("without any bias correction", "m and v start at 0 and are too small at first.", "m_hat = m / (1 - beta_1**t)", "m_hat = m", "v_hat = v / (1 - beta_2**t)", "v_hat = v"),
        ("with t counted from 0", "The first step is t = 1: then 1 - β₁ᵗ is exactly what g was multiplied by.", "**t", "**(t - 1)"),
        ("with t + 1 for t", "t already counts from 1.", "**t", "**(t + 1)"),
        "√v̂ + ε",
        ("with ε inside the root", "In Adam ε stands outside the root; in LayerNorm it stands inside.", "(v_hat**0.5 + eps)", "(v_hat + eps) ** 0.5"),
        ("without the root over v̂", "v̂ is a mean of squares.", "v_hat**0.5", "v_hat"),
        "the decay - ηλθ",
        ("with the decay added to the gradient, which is Adam with L2", "Then the decay is divided by √v̂ as well. AdamW takes it from θ itself.",
         "m = beta_1", "g = g + weight_decay * theta\n    m = beta_1", DECAY, ""),
        ("without the weight decay", "weight_decay is an argument.", DECAY, ""),
        ("with the decay not multiplied by the learning rate", "As in torch, the decay is scaled by η.", "lr * weight_decay", "weight_decay"),
        ("with the decay taken from the new θ", "Both terms, the decay and the step, start from the old θ.",
         DECAY, "", "return theta,", "return theta - lr * weight_decay * theta,"),
        "- η m̂/(√v̂ + ε)", ("with a step uphill", "The gradient points uphill: subtract.", "- lr * m_hat", "+ lr * m_hat"),
        "β₁ and β₂", ("with β₁ and β₂ exchanged", "β₁ belongs to m, β₂ to v.", "m = beta_1", "beta_1, beta_2 = beta_2, beta_1\n    m = beta_1"),
        "m ← β₁ m + (1 - β₁) g",
        ("without the factors 1 - β in front of g and g²", "The weights of old and new sum to 1.", "(1 - beta_1) * g", "g", "(1 - beta_2) * g", "g"),
        ("with β and 1 - β exchanged", "β is near 1 and belongs to what is remembered.",
         "beta_1 * m + (1 - beta_1) *", "(1 - beta_1) * m + beta_1 *", "beta_2 * v + (1 - beta_2) *", "(1 - beta_2) * v + beta_2 *"),
        "v ← β₂ v + (1 - β₂) g²", ("with |g| for g² in v", "It is a square.", "g**2", "g.abs()"),
        "what is kept for the next step",
        ("with m̂ and v̂ returned for m and v", "The corrected ones are for this step only.", "return theta, m, v", "return theta, m_hat, v_hat"),
    ),
    next="Next: a whole Transformer that trains with nothing but what you wrote.",
)  # fmt: skip
