r"""The exercises of the notebook on generating text: from logits to the distribution that is drawn from.

The known mistakes are, as in `mistakes.py`, the formula written once with switches.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...proofs.draws import BATCH
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, Mistake

VOCAB = 11

# --- Temperature ------------------------------------------------------------------------------


def draw_logits(rng: np.random.Generator, case: str) -> Inputs:
    T = {"T = 0.5": 0.5, "T = 1": 1.0, "T = 2": 2.0}.get(case, 0.004)
    return {"logits": 2 * rng.standard_normal((BATCH, VOCAB)) + 3, "temperature": T}


def temperature_variant(
    logits: Tensor,
    temperature: float,
    T: str = "divides",
    axis: int = -1,
    subtract: str = "the largest",
) -> Tensor:
    """Softmax with a temperature, with a switch for each of its parts."""
    factor = {"divides": 1 / temperature, "multiplies": temperature, "root": temperature**-0.5}
    scores = logits * factor.get(T, 1.0)
    if subtract == "the largest":
        scores = scores - scores.detach().amax(axis, keepdim=True)
    e = scores.exp()
    p = e / e.sum(axis, keepdim=True)
    if T == "power":
        return p ** (1 / temperature)
    return p / temperature if T == "after" else p


def sums_to_one(f: Callable, inputs: Inputs) -> str | None:
    """How the probabilities of a row fail to sum to one."""
    p = f(*inputs.values())
    off = (p.sum(-1) - 1).abs()
    if float(off.max()) <= EXACT:
        return None
    row = int(off.argmax())
    return f"Those of row {row} sum to {float(p[row].sum()):.3f}."


DIVIDES = "the temperature in s/T"
SUM = "the probabilities of a row sum to 1"
temperature = Exercise(
    title="softmax with a temperature",
    formula="p_v = exp(s_v / T) / Σ_w exp(s_w / T)",
    reference=lambda logits, temperature: (logits / temperature).softmax(-1),
    variant=temperature_variant,
    draw=draw_logits,
    cases=("T = 0.5", "T = 1", "T = 2", "T = 0.004"),
    axes="batch vocab",
    mistakes=(
        Mistake(
            "with the logits multiplied by the temperature",
            DIVIDES,
            "A low temperature must sharpen: it makes differences larger, so it divides.",
            {"T": "multiplies"},
        ),
        Mistake(
            "with the temperature applied after the softmax",
            DIVIDES,
            "That scales all probabilities alike; what changes their proportions must come before.",
            {"T": "after"},
        ),
        Mistake(
            "with the probabilities to the power 1/T, which no longer sum to 1",
            "the sum under the line",
            "The proportions are right: divide each row by its sum.",
            {"T": "power"},
        ),
        Mistake("with the temperature ignored", DIVIDES, "Divide by it.", {"T": "ignored"}),
        Mistake(
            "with the logits divided by the root of the temperature",
            DIVIDES,
            "The root belongs to attention, there with d_k; here it is T itself.",
            {"T": "root"},
        ),
        Mistake(
            "with the softmax over the batch",
            "the axis of the softmax",
            "Each row shares out one unit among the words, the last axis.",
            {"axis": 0},
        ),
        Mistake(
            "without subtracting the largest score",
            "the exponentials",
            "A low temperature makes scores of hundreds, whose exponential is infinite. torch's "
            "softmax subtracts the largest by itself.",
            {"subtract": "none"},
        ),
    ),
    properties={SUM: sums_to_one},
    next="Next: the tail. However low T is, no token's probability is ever 0.",
)

# --- Top-p ------------------------------------------------------------------------------------


def draw_probabilities(rng: np.random.Generator, case: str) -> Inputs:
    p = np.exp(1.5 * rng.standard_normal((BATCH, VOCAB)))
    least = p.max(1, keepdims=True) / p.sum(1, keepdims=True)
    top_p = {"p = 0.8": 0.8, "p = 1": 1.0}.get(case, float(least.min()) / 2)
    return {"probabilities": p / p.sum(1, keepdims=True), "top_p": top_p}


def top_p_reference(probabilities: Tensor, top_p: float) -> Tensor:
    """The rule word for word: take the likeliest that are left until the sum suffices."""
    kept = torch.zeros_like(probabilities)
    for p, chosen in zip(probabilities.detach(), kept, strict=True):
        total = 0.0
        for v in p.argsort(descending=True).tolist():
            if total >= top_p:
                break
            chosen[v], total = 1.0, total + float(p[v])
    q = probabilities * kept
    return q / q.sum(-1, keepdim=True)


def top_p_variant(
    probabilities: Tensor,
    top_p: float,
    border: str = "crossing kept",
    order: str = "likeliest first",
    rest: str = "renormalised",
    place: str = "by id",
    rule: str = "sum",
) -> Tensor:
    """The nucleus with a switch for each of its parts."""
    ordered, ids = probabilities.sort(-1, descending=order == "likeliest first")
    if order == "by id":
        ids = torch.arange(ordered.shape[-1]).expand_as(ordered)
        ordered = probabilities
    total = ordered.cumsum(-1)
    before = total - ordered
    if rule == "sum":
        kept = {
            "crossing kept": before < top_p,
            "crossing dropped": total <= top_p + EXACT,
            "one more": (before - ordered.roll(1, -1)).index_fill(-1, torch.tensor(0), 0.0) < top_p,
        }[border]
    else:
        kept = ordered >= (top_p if rule == "at least p" else 1 - top_p)
    q = ordered * kept
    if rest == "renormalised":
        q = q / q.sum(-1, keepdim=True)
    if rest == "shared out":
        q = q + kept * ((1 - q.sum(-1, keepdim=True)) / kept.sum(-1, keepdim=True))
    if place == "gathered":
        return q.gather(-1, ids)
    return q if place == "sorted" else torch.zeros_like(q).scatter(-1, ids, q)


ENOUGH = "the fewest likeliest tokens with a sum of at least p"
top_p = Exercise(
    title="top-p, the nucleus",
    formula="q_v = p_v / Σ_A p for v in A, else 0; A = the fewest likeliest tokens with Σ_A p_v >= p",
    reference=top_p_reference,
    variant=top_p_variant,
    draw=draw_probabilities,
    cases=("p = 0.8", "p = 1", "small p"),
    axes="batch vocab",
    mistakes=(
        Mistake(
            "with one token too few, the one that crosses p",
            ENOUGH,
            "The sum must reach p, so the token that carries it over belongs to A. A small p must "
            "leave the likeliest token, not none.",
            {"border": "crossing dropped"},
        ),
        Mistake(
            "with one token too many",
            ENOUGH,
            "A token is in as long as the sum of those before it does not suffice.",
            {"border": "one more"},
        ),
        Mistake(
            "without dividing by the sum of what is kept",
            "Σ_A p under the line",
            "What is left must sum to one again.",
            {"rest": "as it is"},
        ),
        Mistake(
            "with what was cut off shared out in equal parts",
            "Σ_A p under the line",
            "Dividing by the sum keeps the proportions; adding the same to each does not.",
            {"rest": "shared out"},
        ),
        Mistake(
            "with the least likely tokens kept",
            ENOUGH,
            "sort() begins with the smallest unless told descending=True.",
            {"order": "least likely first"},
        ),
        Mistake(
            "with the tokens added up in the order of their ids, not of their probability",
            ENOUGH,
            "Likeliest first: sort before the cumulative sum.",
            {"order": "by id"},
        ),
        Mistake(
            "put back by gather, not by scatter",
            "q_v for token v",
            "ids[i] is the token that stands at place i. gather(ids) asks what stands at place ids[i]; "
            "scatter(ids, q) puts q[i] to token ids[i].",
            {"place": "gathered"},
        ),
        Mistake(
            "in the order of the probabilities, not of the vocabulary",
            "q_v for token v",
            "Sorting renamed the tokens. Put each probability back to its own id.",
            {"place": "sorted"},
        ),
        Mistake(
            "with tokens kept whose own probability is at least p",
            ENOUGH,
            "p bounds the sum, not the single token.",
            {"rule": "at least p"},
        ),
        Mistake(
            "with tokens kept whose own probability is at least 1 - p",
            ENOUGH,
            "p bounds the sum, not the single token.",
            {"rule": "at least 1 - p"},
        ),
    ),
    properties={SUM: sums_to_one},
    next="Next: draw from it. The nucleus is small where the model is sure, and large where it is not.",
)
