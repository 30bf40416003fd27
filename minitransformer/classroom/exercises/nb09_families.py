r"""The exercises of the notebook on checkpoints: T5's relative buckets, and GPT-2's fused matrix."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...pretrained import gpt2
from ...proofs.draws import SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise, distance
from ..engine.patches import known

FAR = 38
BUCKETS = {7: (20, 33), 10: (12, 29)}
"""For so many queries: with these no bucket ends at a whole number, so that rounding cannot decide."""


def draw_distances(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Every distance from -FAR to FAR, in random order: also 0, and the borders n/2 and r_max."""
    queries, keys = sizes["queries"], sizes["keys"]
    r = rng.permutation(np.resize(np.arange(-FAR, FAR + 1), queries * keys))
    n_buckets, max_distance = BUCKETS[queries]
    return {
        "r": r.reshape(queries, keys), "n_buckets": n_buckets, "max_distance": max_distance,
        "bidirectional": case == "bidirectional",
    }  # fmt: skip


def bucket_of_distance(r: Tensor, n_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Near distances one bucket each, far ones by their logarithm; half of all for each direction."""
    n = n_buckets // 2 if bidirectional else n_buckets
    behind = n * (r > 0) if bidirectional else 0
    r = r.abs() if bidirectional else (-r).clamp(min=0)
    half = n // 2
    far = torch.log(r.clamp(min=1).double() / half) / math.log(max_distance / half) * half
    far = (half + far.floor().long()).clamp(max=n - 1)
    return behind + torch.where(r < half, r, far)


def near_ones_alone(f: Callable, inputs: Inputs) -> str | None:
    """Whether the key at the query itself and those next to it can be told apart."""
    r = torch.tensor([[0, -1, -2, -3]])
    buckets = f(r, *list(inputs.values())[1:])[0].tolist()
    same = len(set(buckets)) < len(buckets)
    return f"The distances {r[0].tolist()} get the buckets {buckets}." if same else None


relative_bucket = Exercise(
    title="T5's relative buckets",
    formula="|r| if |r| < n/2, otherwise min(n - 1, n/2 + ⌊log(2|r|/n) / log(2 r_max/n) · n/2⌋)",
    right=bucket_of_distance, twins=(ops.relative_buckets,), package=lambda r, *rest: ops.relative_buckets(2 * FAR + 1, 2 * FAR + 1, *rest)[FAR, FAR + r],
    differentiated=False, draw=draw_distances, cases=("bidirectional", "causal", OTHER_SIZES), axes="queries keys",
    mistakes=known(
        "the sign of r = j - i",
        ("with the directions exchanged", "r is key minus query: negative for keys before the query. The second half of the buckets is for r > 0; in the causal case, all are for r <= 0.",
         "(r > 0)", "(r < 0)", "(-r)", "r"),
        "n, which is half of n_buckets when bidirectional",
        ("with one set of buckets for both directions", "A key three positions before the query must be told apart from one three positions after it.",
         "n_buckets // 2 if bidirectional else n_buckets", "n_buckets", "n * (r > 0) if bidirectional else 0", "0"),
        ("with two sets of buckets in the causal case too", "There nothing comes after the query: all n_buckets are for r <= 0.",
         " if bidirectional else n_buckets", "", " if bidirectional else 0", "", " if bidirectional else (-r).clamp(min=0)", ""),
        "b(r) for r > 0 when bidirectional",
        ("with the same bucket for a key before and behind", "Keys after the query go n buckets higher.", "n * (r > 0) if bidirectional else 0", "0"),
        "log(2|r|/n) / log(2 r_max/n)",
        ("with the logarithm of |r| itself, not of |r| in units of n/2", "The far buckets begin at |r| = n/2: there the logarithm must be 0.", " / half)", ")"),
        "|r| for r > 0",
        ("with the future folded onto the past in the causal case", "Without the second half there is no place for keys after the query. They are hidden, and all go to bucket 0.",
         "r.abs() if bidirectional else (-r).clamp(min=0)", "r.abs()"),
        "the logarithm",
        ("with a bucket for each distance up to the last", "Only the first half of the buckets hold one distance each; the others share the farther distances.",
         "torch.where(r < half, r, far)", "r.clamp(max=n - 1)"),
        "min(n - 1, ...)",
        ("without the last bucket as a bound", "Distances beyond r_max belong in the last bucket too, not in the other half.", ".clamp(max=n - 1)", ""),
        "⌊...⌋", ("rounded to the nearest bucket, not down", "A bucket begins where the logarithm reaches a whole number.", ".floor()", ".round()"),
        "n/2 + ...", ("with the far buckets starting at 0", "The first n/2 buckets are taken: the far ones come after them.", "(half + far", "(far"),
    ),
    properties={"the nearest keys each have a bucket of their own": near_ones_alone},
    next="Next: a table with a number for each bucket and head, added to the scores.",
)  # fmt: skip


def three_maps(c_attn: Tensor) -> Tensor:
    """The blocks of columns, each one transposed."""
    W_Q, W_K, W_V = c_attn.chunk(3, dim=1)
    return torch.stack([W_Q.T, W_K.T, W_V.T])


def columns_stay_together(f: Callable, inputs: Inputs) -> str | None:
    """Whether the three parts still compute what the fused matrix does, in whatever order."""
    c_attn = inputs["c_attn"]
    x = torch.randn(c_attn.shape[0], dtype=c_attn.dtype)
    fused, parts = (x @ c_attn).sort().values, (f(c_attn) @ x).flatten().sort().values
    said = "Your three maps do not give the numbers of x @ c_attn: a column of c_attn, which makes "
    said += "one number of the output, has to become a row."
    return said if distance(fused, parts) > EXACT else None


def draw_c_attn(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    return draw(f"c_attn: {12 if sizes is SIZES else 14} {3 * (20 if sizes is SIZES else 9)}")(
        rng, case
    )


ORDER, COLUMNS = "W_Q, W_K, W_V =", "c_attn.chunk(3, dim=1)"
split_c_attn = Exercise(
    title="GPT-2's fused matrix",
    formula="c_attn = [W_Q | W_K | W_V], (d_in, 3 d_out) -> (3, d_out, d_in)",
    right=three_maps, twins=(gpt2.normalise,), package=lambda c_attn: torch.stack([*gpt2.normalise({"h.0.attn.c_attn.weight": c_attn}, {}).values()]),
    differentiated=False, draw=draw_c_attn, cases=("random numbers", OTHER_SIZES), axes="which d_out d_in",
    mistakes=known(
        "[W_Q | W_K | W_V]",
        ("in the order K, Q, V", "The queries' columns come first.", ORDER, "W_K, W_Q, W_V ="),
        ("in the order V, K, Q", "The queries' columns come first, the values' last.", ORDER, "W_V, W_K, W_Q ="),
        ("in the order Q, V, K", "The keys' columns come second, the values' last.", ORDER, "W_Q, W_V, W_K ="),
        ("with every third column for each", "They stand side by side: the first d_out columns are W_Q's.", COLUMNS, "(c_attn[:, i::3] for i in range(3))"),
        "the axis of the split",
        ("cut along the rows of c_attn, not along its columns", "The stored matrix is (in, out), and the outputs are of three kinds. A reshape to (3, d_in, d_out) cuts along the memory, row by row.",
         COLUMNS, "c_attn.reshape(3, len(c_attn), -1)"),
        "(d_in, d_out) -> (d_out, d_in)",
        ("with a reshape in place of the transpose", "The shape is right, the numbers are not in their places: a reshape keeps their order in memory, a transpose swaps rows and columns.",
         ".T", ".reshape(-1, len(c_attn))"),
    ),
    properties={"together the three compute what the fused matrix does": columns_stay_together},
    next="Next: the same for the bias, which has no second axis to transpose.",
)  # fmt: skip
