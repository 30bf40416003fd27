r"""The exercises of the notebook on gradients: backward passes, and AdamW's step.

The reference of a backward pass is autograd. The known mistakes are, as in `mistakes.py`, the formula
written once with switches.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...proofs.draws import (
    BATCH,
    D_V,
    HEADS,
    MASKS,
    QUERIES,
    draw_adamw,
    draw_attention,
    draw_norm,
    draw_softmax,
)
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, Mistake, Result, distance
from .mistakes import masked_softmax


def packed(*outputs: Tensor) -> Tensor:
    """Several outputs as one long row, the form in which they are compared."""
    return torch.cat([a.flatten() for a in outputs])


@dataclass(frozen=True)
class ExerciseOfSeveral(Exercise):
    """An exercise whose answer is a tuple of tensors; reference and variant give them packed."""

    outputs: tuple[str, ...] = ()
    """Their names, in order."""
    like: tuple[str, ...] = ()
    """For each, the input that it is shaped like."""

    def answer(self, student: Any, seed: int) -> Result:
        """As of one tensor, and which of several is wrong."""
        if not callable(student):
            return super().answer(student, seed)

        @functools.wraps(student)  # so that a crash shows the student's own line
        def one_row(*inputs: Any) -> Any:
            output = student(*inputs)
            good = isinstance(output, tuple | list) and all(isinstance(a, Tensor) for a in output)
            return packed(*output) if good else output

        wrong = self.wrong_outputs(student, seed)
        if wrong:
            return Result(self.title, False, wrong)
        result = super().answer(one_row, seed)
        if result.passed or result.mistakes:
            return result
        return Result(self.title, False, f"{result.message}{self.which(one_row, seed)}")

    def wrong_outputs(self, student: Callable, seed: int) -> str:
        """What is wrong with the number of outputs, their kind or their shapes; "" if nothing."""
        wanted = ", ".join(self.outputs)
        for case, inputs in self.inputs(seed).items():
            try:
                output = student(*copies(inputs))
            except Exception:  # told about when it is diagnosed
                return ""
            if isinstance(output, Tensor) and output.dim() == 1:  # packed already
                return ""
            if not isinstance(output, tuple | list) or len(output) != len(self.outputs):
                got = "one thing" if not isinstance(output, tuple | list) else f"{len(output)}"
                return f"Return {len(self.outputs)} tensors, {wanted}; your function returns {got}."
            for name, like, a in zip(self.outputs, self.like, output, strict=True):
                if not isinstance(a, Tensor):
                    return f"{name} must be a torch tensor, it is {type(a).__name__}."
                if a.shape != inputs[like].shape:
                    return (
                        f"The shape of {name} is wrong (case: {case}): wanted that of {like}, "
                        f"{tuple(inputs[like].shape)}, got {tuple(a.shape)}. A gradient has the "
                        "shape of what it is the gradient of."
                    )
        return ""

    def which(self, one_row: Callable, seed: int) -> str:
        """Which of the outputs are right, where no known mistake explains the others."""
        right = set(self.outputs)
        for inputs in self.inputs(seed).values():
            sizes = [inputs[name].numel() for name in self.like]
            try:
                pairs = zip(
                    one_row(*copies(inputs)).split(sizes),
                    self.reference(**inputs).split(sizes),
                    strict=True,
                )
            except Exception:
                return ""
            for name, (a, b) in zip(self.outputs, pairs, strict=True):
                if distance(a.detach(), b) > EXACT:
                    right.discard(name)
        others = ", ".join(name for name in self.outputs if name not in right)
        both = f"\n\nWrong: {others}. Right: {', '.join(sorted(right)) or 'none'}."
        return both if others else ""


def copies(inputs: Inputs) -> list[Any]:
    """The arguments, tensors copied."""
    return [a.clone() if isinstance(a, Tensor) else a for a in inputs.values()]


def by_autograd(f: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What autograd says: the gradients of f's inputs, given the gradient of its output."""
    given = [a if a.requires_grad else a.detach().requires_grad_() for a in inputs]
    # As a sum: given dy itself, torch first imports its symbolic shapes, which takes seconds.
    loss = (f(*given) * dy).sum()
    return torch.autograd.grad(loss, given, create_graph=dy.requires_grad)


# --- Softmax ----------------------------------------------------------------------------------


def draw_softmax_backward(rng: np.random.Generator, case: str) -> Inputs:
    scores, keep = draw_softmax(rng, case).values()
    P = ops.softmax(torch.from_numpy(scores), None if keep is None else torch.from_numpy(keep))
    return {"dP": rng.standard_normal(scores.shape), "P": P.numpy()}


def softmax_reference(dP: Tensor, P: Tensor) -> Tensor:
    """The whole matrix of derivatives, entry by entry: P_j ([j = m] - P_m)."""
    keys = P.shape[-1]
    jacobian = P[..., :, None] * (torch.eye(keys, dtype=P.dtype) - P[..., None, :])
    return (dP[..., None, :] @ jacobian).squeeze(-2)


def softmax_variant(
    dP: Tensor,
    P: Tensor,
    sum_term: str = "sum of dP P",
    axis: int = -1,
    factor: str = "P",
) -> Tensor:
    """softmax backward with a switch for each of its parts."""
    summed: Any = {
        "sum of dP P": (dP * P).sum(axis, keepdim=True),
        "none": 0.0,
        "sum of dP": dP.sum(axis, keepdim=True),
        "mean": (dP * P).mean(axis, keepdim=True),
        "own": dP * P,
        "added": -(dP * P).sum(axis, keepdim=True),
    }[sum_term]
    return (dP - summed) * (P if factor == "P" else 1.0)


SUM_TERM = "the term - Σ_j dP_j P_j"
SOFTMAX_MISTAKES = (
    Mistake(
        "without the sum, dS = P ⊙ dP",
        SUM_TERM,
        "All weights of a row share one denominator: raising one score lowers every other weight.",
        {"sum_term": "none"},
    ),
    Mistake(
        "with the sum of dP, not of dP ⊙ P",
        SUM_TERM,
        "Each dP_j counts as much as its weight P_j.",
        {"sum_term": "sum of dP"},
    ),
    Mistake(
        "with a mean in place of the sum",
        SUM_TERM,
        "The weights P already sum to 1, so Σ dP P is an average as it is.",
        {"sum_term": "mean"},
    ),
    Mistake(
        "with only its diagonal, dP ⊙ P ⊙ (1 - P)",
        SUM_TERM,
        "That is the derivative of a weight by its own score, the sigmoid's. The others depend on "
        "this score too.",
        {"sum_term": "own"},
    ),
    Mistake(
        "with the sum added, not subtracted",
        SUM_TERM,
        "What one weight gains the others lose.",
        {"sum_term": "added"},
    ),
    Mistake(
        "with the sum over the queries",
        SUM_TERM,
        "The softmax ran over the keys, the last axis; so does its derivative.",
        {"axis": -2},
    ),
    Mistake(
        "without the factor P in front",
        "the factor P",
        "A weight that is nearly 0 hardly moves when its score does.",
        {"factor": "none"},
    ),
)


def constant_does_nothing(f: Callable, inputs: Inputs) -> str | None:
    """Whether each row of dS sums to zero: a constant added to all scores changes no weight."""
    sums = f(*copies(inputs)).sum(-1)
    off = float(sums.abs().max())
    return f"Your rows sum to up to {off:.2f}." if off > EXACT else None


softmax_backward = Exercise(
    title="softmax backward",
    formula="dS = P ⊙ (dP - Σ_j dP_j P_j)",
    reference=softmax_reference,
    variant=softmax_variant,
    draw=draw_softmax_backward,
    cases=MASKS,
    axes="batch queries keys",
    mistakes=SOFTMAX_MISTAKES,
    properties={"every row of dS sums to 0": constant_does_nothing},
    next="Next: the same idea one step on, in LayerNorm.",
)

# --- LayerNorm --------------------------------------------------------------------------------


def draw_layer_norm_backward(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_norm(rng, "plain" if case == "one token" else case)
    x, gamma = inputs["x"], inputs["gamma"]
    if case == "one token":
        x = x[:1, :1]
    return {"dy": rng.standard_normal(x.shape), "x": x, "gamma": gamma, "beta": inputs["beta"]} | {
        "eps": inputs["eps"]
    }


def layer_norm_reference(dy: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return packed(*by_autograd(lambda x, g, b: ops.layer_norm(x, g, b, eps), dy, x, gamma, beta))


def layer_norm_variant(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    mean: str = "subtracted",
    along_x: str = "subtracted",
    gain: str = "inside",
    spread: str = "1/s",
    epsilon: bool = True,
    divisor: str = "d",
    summed: bool = True,
    dgamma: str = "dy x_hat",
    dbeta: str = "dy",
) -> Tensor:
    """LayerNorm backward with a switch for each of its parts."""
    one_less = int(divisor == "d - 1")
    s = torch.sqrt(x.var(-1, correction=one_less, keepdim=True) + (eps if epsilon else 0.0))
    x_hat = (x - x.mean(-1, keepdim=True)) / s
    dx_hat = dy * gamma if gain == "inside" else dy
    dx = dx_hat
    if mean != "none":
        dx = dx - dx_hat.mean(-1, keepdim=True)
    if along_x != "none":
        of = {"subtracted": dx_hat * x_hat, "x": dx_hat * x, "no x_hat": dx_hat}[along_x]
        dx = dx - x_hat * of.mean(-1, keepdim=True)
    dx = dx * gamma if gain == "outside" else dx
    dx = {"1/s": dx / s, "none": dx, "1/s^2": dx / s**2}[spread]
    of_gamma = {"dy x_hat": dy * x_hat, "dy x": dy * x, "dx_hat x_hat": dy * gamma * x_hat}[dgamma]
    of_beta = {"dy": dy, "dx_hat": dy * gamma}[dbeta]
    over = torch.sum if summed else torch.mean
    return packed(dx, over(of_gamma, (0, 1)), over(of_beta, (0, 1)))


LAYER_NORM_MISTAKES = (
    Mistake(
        "without - mean(dx̂)",
        "the first mean",
        "μ depends on every number of the token, so x_j also acts through μ.",
        {"mean": "none"},
    ),
    Mistake(
        "without - x̂ mean(dx̂ ⊙ x̂)",
        "the second mean",
        "s depends on every number of the token, so x_j also acts through s.",
        {"along_x": "none"},
    ),
    Mistake(
        "with x, not x̂, in the second mean",
        "the second mean",
        "It measures how far dx̂ points along the normalised x̂.",
        {"along_x": "x"},
    ),
    Mistake(
        "with mean(dx̂) for mean(dx̂ ⊙ x̂)",
        "the second mean",
        "x̂ stands twice in this term: inside the mean and in front.",
        {"along_x": "no x_hat"},
    ),
    Mistake(
        "without γ in dx",
        "dx̂ = dy ⊙ γ",
        "y = γ ⊙ x̂ + β: going back, the first thing that is met is γ.",
        {"gain": "none"},
    ),
    Mistake(
        "with γ multiplied after the means",
        "dx̂ = dy ⊙ γ",
        "γ differs from place to place, so it cannot be taken out of a mean.",
        {"gain": "outside"},
    ),
    Mistake(
        "without the factor 1/s",
        "the factor 1/s",
        "A token of large numbers was divided by a large s; its gradient is too.",
        {"spread": "none"},
    ),
    Mistake(
        "with 1/s², not 1/s",
        "the factor 1/s",
        "s is the root of the variance.",
        {"spread": "1/s^2"},
    ),
    Mistake(
        "without ε in s",
        "s = √(σ² + ε)",
        "Backward must use the same s as forward.",
        {"epsilon": False},
    ),
    Mistake(
        "with the variance divided by d - 1",
        "s = √(σ² + ε)",
        "Backward must use the same s as forward: torch's .var() divides by d - 1 unless told not to.",
        {"divisor": "d - 1"},
    ),
    Mistake(
        "with means, not sums, in dγ and dβ",
        "the sums of dγ and dβ",
        "γ and β are used at every position, and what comes back from all of them is added.",
        {"summed": False},
    ),
    Mistake(
        "with x, not x̂, in dγ",
        "dγ = Σ dy ⊙ x̂",
        "γ multiplies x̂.",
        {"dgamma": "dy x"},
    ),
    Mistake(
        "with γ in dγ",
        "dγ = Σ dy ⊙ x̂",
        "The derivative of γ x̂ by γ is x̂.",
        {"dgamma": "dx_hat x_hat"},
    ),
    Mistake(
        "with γ in dβ",
        "dβ = Σ dy",
        "β is added last: it sees dy as it comes.",
        {"dbeta": "dx_hat"},
    ),
)

layer_norm_backward = ExerciseOfSeveral(
    title="LayerNorm backward",
    formula="dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ ⊙ x̂)) / s with dx̂ = dy ⊙ γ; dγ = Σ dy ⊙ x̂, dβ = Σ dy",
    reference=layer_norm_reference,
    variant=layer_norm_variant,
    draw=draw_layer_norm_backward,
    cases=("plain", "tiny", "one token"),
    axes="entry",
    mistakes=LAYER_NORM_MISTAKES,
    outputs=("dx", "dγ", "dβ"),
    like=("x", "gamma", "beta"),
    next="Next: softmax's derivative and two matrix products are attention's.",
)

# --- Attention --------------------------------------------------------------------------------

SQUARE = "as many queries as keys"


def draw_attention_backward(rng: np.random.Generator, case: str) -> Inputs:
    # The square case comes first: there a forgotten transpose still runs, and can be named.
    inputs = draw_attention(rng, "causal" if case == SQUARE else case)
    if case == SQUARE:
        inputs["K"], inputs["V"] = inputs["K"][..., :QUERIES, :], inputs["V"][..., :QUERIES, :]
        inputs["keep"] = np.broadcast_to(
            np.tri(QUERIES, dtype=bool), (BATCH, HEADS, QUERIES, QUERIES)
        ).copy()
    return {"dO": rng.standard_normal((BATCH, HEADS, QUERIES, D_V))} | {
        name: a if a is None else np.ascontiguousarray(a) for name, a in inputs.items()
    }


def attention_reference(dO: Tensor, Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    return packed(*by_autograd(lambda Q, K, V: ops.attention(Q, K, V, keep), dO, Q, K, V))


def attention_variant(
    dO: Tensor,
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    keep: Tensor | None,
    mask: str = "applied",
    nothing: str = "zeros",
    sum_term: str = "sum of dP P",
    axis: int = -1,
    scale_dQ: str = "1/sqrt(d_k)",
    scale_dK: str = "1/sqrt(d_k)",
    scale_S: bool = True,
    dV: str = "P^T dO",
    dK: str = "dS^T Q",
) -> Tensor:
    """Attention backward with a switch for each of its parts."""
    root = math.sqrt(Q.shape[-1])
    factor = {"1/sqrt(d_k)": 1 / root, "1": 1.0, "1/d_k": 1 / root**2}
    scores = Q @ K.mT / (root if scale_S else 1.0)
    P = masked_softmax(scores, keep if mask == "applied" else None, nothing=nothing)
    dP = dO @ V.mT
    dS = softmax_variant(dP, P, sum_term, axis)
    of_V = (P if dV == "P dO" else P.mT) @ dO
    of_K = (dS if dK == "dS Q" else dS.mT) @ Q
    return packed(dS @ K * factor[scale_dQ], of_K * factor[scale_dK], of_V)


SCALE = "the factor 1/√d_k"
ROOT = "S = QKᵀ/√d_k: what was divided on the way forward is divided on the way back."
ATTENTION_MISTAKES = (
    Mistake("without 1/√d_k in dQ", f"{SCALE} of dQ", ROOT, {"scale_dQ": "1"}),
    Mistake("without 1/√d_k in dK", f"{SCALE} of dK", ROOT, {"scale_dK": "1"}),
    Mistake("with 1/d_k in dQ", f"{SCALE} of dQ", "Is it there twice?", {"scale_dQ": "1/d_k"}),
    Mistake("with 1/d_k in dK", f"{SCALE} of dK", "Is it there twice?", {"scale_dK": "1/d_k"}),
    Mistake(
        "without 1/√d_k in the scores that P is computed from",
        "S = QKᵀ/√d_k",
        "Backward needs the same P as forward.",
        {"scale_S": False},
    ),
    Mistake(
        "with the mask not applied in backward",
        "P = softmax(S) over the kept keys",
        "Backward needs the same P as forward, with zeros at the hidden keys; then their gradient "
        "is 0 by itself.",
        {"mask": "forgotten"},
    ),
    Mistake(
        "with NaN for a query that may attend to nothing",
        "P = softmax(S) over the kept keys",
        "There the softmax is 0/0. Forward gave zeros: P is zero there too, and so is all that comes "
        "back.",
        {"nothing": "nan"},
    ),
    Mistake(
        "without softmax's sum, dS = P ⊙ dP",
        "dS = P ⊙ (dP - rowsum(dP ⊙ P))",
        "It is exercise 1, inside.",
        {"sum_term": "none"},
    ),
    Mistake(
        "with softmax's sum over the queries",
        "rowsum(dP ⊙ P)",
        "The softmax ran over the keys, the last axis.",
        {"axis": -2},
    ),
    Mistake(
        "with P for Pᵀ in dV",
        "dV = Pᵀ dO",
        "dV has a row a key, P has a row a query. Key j collects from all queries: column j of P.",
        {"dV": "P dO"},
    ),
    Mistake(
        "with dS for dSᵀ in dK",
        "dK = dSᵀ Q / √d_k",
        "dK has a row a key, dS has a row a query.",
        {"dK": "dS Q"},
    ),
)

attention_backward = ExerciseOfSeveral(
    title="attention backward",
    formula="dV = Pᵀ dO, dP = dO Vᵀ, dS = P ⊙ (dP - rowsum(dP ⊙ P)), dQ = dS K/√d_k, "
    "dK = dSᵀ Q/√d_k",
    reference=attention_reference,
    variant=attention_variant,
    draw=draw_attention_backward,
    cases=(SQUARE, *MASKS),
    axes="entry",
    mistakes=ATTENTION_MISTAKES,
    outputs=("dQ", "dK", "dV"),
    like=("Q", "K", "V"),
    next="Next: everything else in a block is matrix products, sums and this.",
)
# --- AdamW ------------------------------------------------------------------------------------


def adamw_reference(*inputs: Any, **named: Any) -> Tensor:
    return packed(*ops.adamw_step(*inputs, **named))


def adamw_variant(
    theta: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    t: int,
    lr: float,
    beta_1: float,
    beta_2: float,
    eps: float,
    weight_decay: float,
    correct_m: bool = True,
    correct_v: bool = True,
    counted: str = "from 1",
    epsilon: str = "outside",
    decay: str = "of theta",
    average: str = "running mean",
    square: bool = True,
    root: bool = True,
    keeps: str = "m, v",
) -> Tensor:
    """AdamW's step with a switch for each of its parts."""
    t = {"from 1": t, "from 0": t - 1, "from 2": t + 1}[counted]
    if decay == "in g":
        g = g + weight_decay * theta
    if average == "exchanged":
        keep_m, keep_v = 1 - beta_1, 1 - beta_2
    else:
        keep_m, keep_v = beta_1, beta_2
    new_m, new_v = (1.0, 1.0) if average == "sum" else (1 - keep_m, 1 - keep_v)
    m = keep_m * m + new_m * g
    v = keep_v * v + new_v * (g**2 if square else g.abs())
    # 1 / 0 as tensors: infinite, where Python's floats would raise.
    m_hat = m / torch.tensor(1 - beta_1**t, dtype=m.dtype) if correct_m else m
    v_hat = v / torch.tensor(1 - beta_2**t, dtype=v.dtype) if correct_v else v
    spread = torch.sqrt(v_hat + (eps if epsilon == "inside" else 0.0)) if root else v_hat
    new = theta - lr * m_hat / (spread + (eps if epsilon == "outside" else 0.0))
    if decay == "of theta":
        new = new - lr * weight_decay * theta
    if decay == "of the new theta":
        new = new - lr * weight_decay * new
    if decay == "without lr":
        new = new - weight_decay * theta
    return packed(new, m_hat, v_hat) if keeps == "corrected" else packed(new, m, v)


DECAY = "the decay - ηλθ"
ADAMW_MISTAKES = (
    Mistake(
        "without the bias correction of m",
        "m̂ = m / (1 - β₁ᵗ)",
        "m starts at 0; after one step it is only (1 - β₁) g.",
        {"correct_m": False},
    ),
    Mistake(
        "with the bias correction only on m, not on v",
        "v̂ = v / (1 - β₂ᵗ)",
        "v starts at 0 too, and with β₂ = 0.999 it stays too small for a thousand steps.",
        {"correct_v": False},
    ),
    Mistake(
        "with t counted from 0",
        "βᵗ in the bias correction",
        "The first step is t = 1: then 1 - β₁ᵗ is exactly what g was multiplied by.",
        {"counted": "from 0"},
    ),
    Mistake(
        "with t + 1 for t",
        "βᵗ in the bias correction",
        "t counts from 1 already.",
        {"counted": "from 2"},
    ),
    Mistake(
        "with ε inside the root",
        "√v̂ + ε",
        "In Adam ε stands beside the root; in LayerNorm it stands inside.",
        {"epsilon": "inside"},
    ),
    Mistake(
        "with the decay added to the gradient, which is Adam with L2",
        DECAY,
        "That way the decay too is divided by √v̂. AdamW takes it from θ itself.",
        {"decay": "in g"},
    ),
    Mistake("without the weight decay", DECAY, "weight_decay is an argument.", {"decay": "none"}),
    Mistake(
        "with the decay not multiplied by the learning rate",
        DECAY,
        "As torch writes it, the decay is scaled by η.",
        {"decay": "without lr"},
    ),
    Mistake(
        "with the decay taken from the new θ",
        DECAY,
        "Both terms, the decay and the step, start from the old θ.",
        {"decay": "of the new theta"},
    ),
    Mistake(
        "without the factors 1 - β in front of g and g²",
        "m ← β₁ m + (1 - β₁) g",
        "m and v are running means: the weights of old and new sum to 1.",
        {"average": "sum"},
    ),
    Mistake(
        "with β and 1 - β exchanged",
        "m ← β₁ m + (1 - β₁) g",
        "β is near 1 and belongs to what is remembered.",
        {"average": "exchanged"},
    ),
    Mistake("with |g| for g² in v", "v ← β₂ v + (1 - β₂) g²", "A square.", {"square": False}),
    Mistake("without the root over v̂", "√v̂ + ε", "v̂ is a mean of squares.", {"root": False}),
    Mistake(
        "with m̂ and v̂ returned for m and v",
        "what is kept for the next step",
        "The corrected ones are for this step only; the next continues from m and v.",
        {"keeps": "corrected"},
    ),
)

adamw_step = ExerciseOfSeveral(
    title="one step of AdamW",
    formula="m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², θ ← θ - ηλθ - η m̂/(√v̂ + ε) "
    "with m̂ = m/(1 - β₁ᵗ), v̂ = v/(1 - β₂ᵗ)",
    reference=adamw_reference,
    variant=adamw_variant,
    draw=draw_adamw,
    cases=("step 12", "first step"),
    axes="entry",
    mistakes=ADAMW_MISTAKES,
    outputs=("θ", "m", "v"),
    like=("theta", "m", "v"),
    differentiated=False,
    next="Next: a whole Transformer that trains with nothing but what you wrote.",
)
