r"""The exercises of the notebook on checkpoints: T5's relative buckets, and GPT-2's fused matrix.

The known mistakes are, as in `mistakes.py`, the formula written once with switches.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...proofs.draws import KEYS, QUERIES
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, Mistake, distance

# --- Relative positions: which distances share a bucket ---------------------------------------

N_BUCKETS, MAX_DISTANCE = 20, 33
"""The ends of the buckets are no whole numbers then, so that rounding cannot decide."""


def draw_distances(rng: np.random.Generator, case: str) -> Inputs:
    """Every distance from -38 to 38 once, in no order."""
    r = rng.permutation(np.arange(QUERIES * KEYS) - QUERIES * KEYS // 2)
    both = case == "bidirectional"
    return {
        "r": r.reshape(QUERIES, KEYS),
        "n_buckets": N_BUCKETS,
        "max_distance": MAX_DISTANCE,
        "bidirectional": both,
    }


def relative_bucket_variant(
    r: Tensor,
    n_buckets: int,
    max_distance: int,
    bidirectional: bool,
    direction: str = "key - query",
    halves: str = "two",
    future: str = "bucket 0",
    near: str = "half",
    last: str = "clamped",
    rounded: str = "down",
    start: str = "where near ones end",
    unit: str = "n/2",
) -> Tensor:
    """The bucket of a distance, with switches."""
    r = -r if direction == "query - key" else r
    n = n_buckets // 2 if bidirectional and halves != "one" else n_buckets
    first = n * (r > 0) if bidirectional and halves == "two" else torch.zeros_like(r)
    away = r.abs() if bidirectional or future == "folded" else (-r).clamp(min=0)
    if near == "all":
        return first + away.clamp(max=n - 1)
    half = n // 2
    one = half if unit == "n/2" else 1
    share = torch.log(away.clamp(min=1).double() / one) / math.log(max_distance / one)
    far = share * (n - half)
    far = far.round().long() if rounded == "to nearest" else far.floor().long()
    far = far + half if start == "where near ones end" else far.clamp(min=0)
    if last == "clamped":
        far = far.clamp(max=n - 1)
    return first + torch.where(away < half, away, far)


def near_ones_alone(f: Callable, inputs: Inputs) -> str | None:
    """Whether the key at the query itself and those next to it can be told apart."""
    r = torch.tensor([[0, -1, -2, -3]])
    buckets = f(r, *list(inputs.values())[1:])[0].tolist()
    if len(set(buckets)) == 4:
        return None
    return f"The distances {r[0].tolist()} get the buckets {buckets}."


relative_bucket = Exercise(
    title="T5's relative buckets",
    formula="|r| if |r| < n/2, else min(n - 1, n/2 + ⌊log(2|r|/n) / log(2 r_max/n) · n/2⌋)",
    reference=relative_bucket_variant,
    variant=relative_bucket_variant,
    draw=draw_distances,
    cases=("bidirectional", "causal"),
    axes="queries keys",
    mistakes=(
        Mistake(
            "with the directions exchanged",
            "the sign of r = j - i",
            "r is key minus query, so keys before the query have a negative r. Bidirectional, the "
            "second half of the buckets is for r > 0; causal, all buckets are for r <= 0.",
            {"direction": "query - key"},
        ),
        Mistake(
            "with one set of buckets for both directions",
            "n, which is half of n_buckets when bidirectional",
            "A key three before the query is told from a key three behind it.",
            {"halves": "one"},
        ),
        Mistake(
            "with the same bucket for a key before and behind",
            "b(r) for r > 0 when bidirectional",
            "|r| forgets the direction. Keys behind the query go n buckets higher.",
            {"halves": "not told apart"},
        ),
        Mistake(
            "with the logarithm of |r| itself, not of |r| in units of n/2",
            "log(2|r|/n) / log(2 r_max/n)",
            "The far buckets begin at |r| = n/2: there the logarithm must be 0.",
            {"unit": "1"},
        ),
        Mistake(
            "with the future folded onto the past in the causal case",
            "|r| for r > 0",
            "Without the second half there is no place for keys behind the query. They are hidden, "
            "and all go to bucket 0.",
            {"future": "folded"},
        ),
        Mistake(
            "with a bucket for each distance up to the last",
            "the logarithm",
            "Only the first half of the buckets hold one distance each; the others share out what is "
            "farther.",
            {"near": "all"},
        ),
        Mistake(
            "without the last bucket as a bound",
            "min(n - 1, ...)",
            "What is farther than r_max is in the last bucket too, and not in another direction's.",
            {"last": "open"},
        ),
        Mistake(
            "rounded to the nearest bucket, not down",
            "⌊...⌋",
            "A bucket begins where the logarithm reaches a whole number.",
            {"rounded": "to nearest"},
        ),
        Mistake(
            "with the far buckets starting at 0",
            "n/2 + ...",
            "The first n/2 buckets are taken: far ones come after them.",
            {"start": "0"},
        ),
    ),
    properties={"the nearest keys each have a bucket of their own": near_ones_alone},
    next="Next: a table with a number for each bucket and head, added to the scores.",
)

# --- GPT-2's c_attn ---------------------------------------------------------------------------

D_IN, D_OUT = 12, 20


def draw_c_attn(rng: np.random.Generator, case: str) -> Inputs:
    """A fused matrix; not square in its parts, so that the axes can be told apart."""
    return {"c_attn": rng.standard_normal((D_IN, 3 * D_OUT))}


def split_c_attn_variant(
    c_attn: Tensor, order: str = "qkv", cut: str = "columns", turn: str = "transpose"
) -> Tensor:
    """W_Q, W_K and W_V out of the fused matrix, with switches."""
    d_in, wide = c_attn.shape
    parts = {
        "columns": c_attn.chunk(3, 1),
        "every third": [c_attn[:, i::3] for i in range(3)],
        "rows": list(c_attn.reshape(3, d_in, wide // 3)),
    }[cut]
    parts = [parts["qkv".index(w)] for w in order]
    if turn == "reshape":
        return torch.stack([W.reshape(wide // 3, d_in) for W in parts])
    return torch.stack([W.T for W in parts])


def columns_stay_together(f: Callable, inputs: Inputs) -> str | None:
    """Whether the three parts still compute what the fused matrix does, in whatever order."""
    c_attn = inputs["c_attn"]
    x = torch.randn(c_attn.shape[0], dtype=c_attn.dtype)
    fused, parts = (x @ c_attn).sort().values, (f(c_attn) @ x).flatten().sort().values
    if distance(fused, parts) <= EXACT:
        return None
    return (
        "The numbers x @ c_attn are not those of your three maps of x: a column of c_attn, which makes "
        "one number of the output, has to become one row."
    )


split_c_attn = Exercise(
    title="GPT-2's fused matrix",
    formula="c_attn = [W_Q | W_K | W_V], (d_in, 3 d_out) -> (3, d_out, d_in)",
    reference=split_c_attn_variant,
    variant=split_c_attn_variant,
    draw=draw_c_attn,
    cases=("random numbers",),
    axes="which d_out d_in",
    mistakes=(
        Mistake(
            "in the order K, Q, V",
            "[W_Q | W_K | W_V]",
            "The queries' columns come first.",
            {"order": "kqv"},
        ),
        Mistake(
            "in the order V, K, Q",
            "[W_Q | W_K | W_V]",
            "The queries' columns come first, the values' last.",
            {"order": "vkq"},
        ),
        Mistake(
            "in the order Q, V, K",
            "[W_Q | W_K | W_V]",
            "The keys' columns come second, the values' last.",
            {"order": "qvk"},
        ),
        Mistake(
            "with every third column for each",
            "[W_Q | W_K | W_V]",
            "The three stand side by side as blocks: the first d_out columns are W_Q's.",
            {"cut": "every third"},
        ),
        Mistake(
            "cut along the rows of c_attn, not along its columns",
            "the axis that is cut",
            "The stored matrix is (in, out), and it is the outputs that are of three kinds. A reshape to "
            "(3, d_in, d_out) cuts the memory, which lies row by row.",
            {"cut": "rows"},
        ),
        Mistake(
            "with a reshape in place of the transpose",
            "(d_in, d_out) -> (d_out, d_in)",
            "The shape is right and the numbers are in the wrong places: a reshape keeps their order in "
            "memory, a transpose exchanges rows and columns.",
            {"turn": "reshape"},
        ),
    ),
    properties={"together the three compute what the fused matrix does": columns_stay_together},
    next="Next: the same for the bias, which has no second axis to turn.",
)
