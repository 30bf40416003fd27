r"""The exercises of the notebook on generating text: from logits to the distribution for sampling."""

from collections.abc import Callable
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from ...inference.generation import next_token_probabilities
from ...proofs.draws import SIZES, Sizes
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise
from ..engine.patches import known


def draw_logits(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Logits away from zero, and the temperature of the case."""
    logits = 2 * rng.standard_normal((sizes["batch"], sizes["vocab"])) + 3
    return {"logits": logits, "temperature": float(case.removeprefix("T = "))}


def sums_to_one(f: Callable, inputs: Inputs) -> str | None:
    """Which row of probabilities does not sum to one."""
    p = f(*inputs.values())
    row = int((p.sum(-1) - 1).abs().argmax())
    total = float(p[row].sum())
    return None if abs(total - 1) <= EXACT else f"Those of row {row} sum to {total:.3f}."


MET = "a sum that equals p"
SUM = "the probabilities of a row sum to 1"
DIVIDED, SOFTMAX = " / temperature", "return scores.softmax(-1)"
temperature = Exercise(
    title="softmax with a temperature",
    formula="p_v = exp(s_v / T) / Σ_w exp(s_w / T)",
    right=next_token_probabilities, package=lambda logits, temperature: torch.distributions.Categorical(logits=logits / temperature).probs,
    differentiated=False, precise=False, draw=draw_logits, cases=("T = 0.7", "T = 1", "T = 3", "T = 0.004", OTHER_SIZES), axes="batch vocab",
    mistakes=known(
        "the temperature in s/T",
        ("with the logits multiplied by the temperature", "A low temperature must sharpen: it divides, so differences grow.", DIVIDED, " * temperature"),
        ("with the temperature applied after the softmax", "That scales all probabilities alike; to change their proportions it must come before.",
         DIVIDED, "", SOFTMAX, f"{SOFTMAX}.div(temperature)"),
        ("with the temperature ignored", "Divide by it.", DIVIDED, ""),
        ("with the logits divided by the root of the temperature", "The root is for attention's d_k; here it is T itself.", DIVIDED, " * temperature**-0.5"),
        "exp(s_v / T) / ...", ("with the logarithms of the probabilities", "log_softmax gives log p.", SOFTMAX, "return scores.log_softmax(-1)"),
        "the denominator",
        ("with the probabilities to the power 1/T, which no longer sum to 1", "The proportions are right: divide each row by its sum.",
         DIVIDED, "", SOFTMAX, f"{SOFTMAX} ** temperature**-1"),
        "the axis of the softmax",
        ("with the softmax over the batch", "Each row distributes a total probability of 1 over the tokens, the last axis.",
         "amax(-1, keepdim=True)", "amax(0, keepdim=True)", SOFTMAX, "return scores.softmax(0)"),
        "the exponentials",
        ("without subtracting the largest score", "A low temperature makes scores of hundreds, whose exponentials are infinite. torch's softmax subtracts the largest by itself.",
         "(wide - wide.amax(-1, keepdim=True))", "wide", "scores.softmax(-1)", "(scores.exp() / scores.exp().sum(-1, keepdim=True))"),
    ),
    properties={SUM: sums_to_one},
    next="Next: the tail. However low T is, no token's probability is ever 0.",
)  # fmt: skip


def draw_probabilities(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Probabilities, and p: a small one is below the largest of every row; in one case the three
    likeliest of a row sum to p, and to no less in whatever order they are added."""
    p = torch.from_numpy(np.exp(1.5 * rng.standard_normal((sizes["batch"], sizes["vocab"]))))
    p /= p.sum(1, keepdim=True)
    top_p = {"p = 0.8": 0.8, "p = 1": 1.0}.get(case, float(p.amax(1).min()) / 2)
    if case == MET:
        ordered = p[0].sort(descending=True).values
        before, up = ordered.cumsum(0) - ordered, ordered.flip(0).cumsum(0).flip(0)
        top_p = float(before[3])
        sums = [float(sum(three)) for three in permutations(ordered[:3])]
        if ordered.cumsum(0)[2] <= top_p or min(sums) < top_p or up[3] > 1 - top_p:
            return draw_probabilities(rng, case, sizes)
    return {"probabilities": p.numpy(), "top_p": top_p}


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """A token is kept as long as the likelier ones do not reach the bound."""
    ordered, ids = probabilities.sort(-1, descending=True)
    kept = ordered.cumsum(-1) - ordered < top_p
    q = ordered * kept
    q = q / q.sum(-1, keepdim=True)
    return torch.zeros_like(q).scatter(-1, ids, q)


KEPT, RENORMALISED = "ordered.cumsum(-1) - ordered < top_p", "q / q.sum(-1, keepdim=True)"
NONE_LEFT = (RENORMALISED, f"({RENORMALISED}).nan_to_num(0.0)")
PUT_BACK = "torch.zeros_like(q).scatter(-1, ids, q)"
top_p = Exercise(
    title="top-p, the nucleus",
    formula="q_v = p_v / Σ_A p for v in A, otherwise 0; A = the fewest likeliest tokens with Σ_A p_v >= p",
    right=nucleus, twins=(next_token_probabilities,), package=lambda p, top_p: next_token_probabilities(p.log(), top_p=top_p - 1e-12),
    draw=draw_probabilities, differentiated=False, precise=False, cases=("p = 0.8", "p = 1", "small p", MET, OTHER_SIZES), axes="batch vocab",
    mistakes=known(
        "the fewest likeliest tokens with a sum of at least p",
        ("with one token too few, the one that crosses p", "The sum must reach p, so the token that takes it past p belongs to A. A small p must leave the likeliest token, not none.",
         KEPT, "ordered.cumsum(-1) <= top_p + EXACT"),
        ("with one token too few, but never none", "The token that takes the sum past p belongs to A, whichever it is.", KEPT, "(ordered.cumsum(-1) <= top_p) | (ordered.cumsum(-1) == ordered)"),
        ("with one token too few, and rows of zeros where none is left", "A small p must leave the likeliest token.", KEPT, "ordered.cumsum(-1) < top_p", *NONE_LEFT),
        ("with one token too many where a sum equals p", "There p is reached: <, not <=.", KEPT, "ordered.cumsum(-1) - ordered <= top_p"),
        ("with one token too many", "A token is kept if those before it sum to below p.", KEPT, "ordered.cumsum(-1) - ordered - ordered.roll(1, -1) < top_p"),
        ("with the least likely tokens kept", "sort() begins with the smallest unless told descending=True.", "descending=True", "descending=False"),
        ("with the tokens added up in the order of their ids, not of their probability", "Likeliest first: sort before the cumulative sum.",
         "probabilities.sort(-1, descending=True)", "probabilities, torch.arange(probabilities.shape[-1]).expand_as(probabilities)"),
        ("with tokens kept whose own probability is at least p", "p bounds the sum, not the single token.", KEPT, "ordered >= top_p"),
        ("with tokens kept whose own probability is at least p, and rows of zeros where there are none", "p bounds the sum, not the single token.", KEPT, "ordered >= top_p", *NONE_LEFT),
        ("with tokens kept whose own probability is at least 1 - p", "p bounds the sum, not the single token.", KEPT, "ordered >= 1 - top_p"),
        "the denominator Σ_A p",
        ("without dividing by the sum of what is kept", "The probabilities of the kept tokens must sum to one again.", RENORMALISED, "q"),
        ("with what was cut off shared out in equal parts", "Dividing by the sum keeps the proportions; adding the same to each does not.",
         RENORMALISED, "q + kept * ((1 - q.sum(-1, keepdim=True)) / kept.sum(-1, keepdim=True))"),
        ("with a softmax of the kept probabilities", "They are probabilities already: divide by their sum.", RENORMALISED, "q.where(kept, float('-inf')).softmax(-1)"),
        "q_v for token v",
        ("put back by gather, not by scatter", "ids[i] is the token at place i. gather(ids) takes what is at place ids[i]; scatter(ids, q) puts q[i] at place ids[i].",
         PUT_BACK, "q.gather(-1, ids)"),
        ("in the order of the probabilities, not of the vocabulary", "Sorting renamed the tokens. Put each probability back at its own id.", PUT_BACK, "q"),
    ),
    properties={SUM: sums_to_one},
    next="Next: sample from it. The nucleus is small where the model is sure, and large where it is not.",
)  # fmt: skip
