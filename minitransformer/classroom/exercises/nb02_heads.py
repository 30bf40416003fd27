r"""The exercises of notebook 02: the split into heads, the merge, multi-head attention."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from ...formulas import ops
from ...model import attention as heads
from ...proofs.draws import ABOVE, MASKS, SIZES, Sizes, draw, draw_keep
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise, distance
from ..engine.patches import known
from . import shared
from .shared import AXIS, MASK, NO_KEYS, SCALE, moved

ONE, SEVEN = "one position", "several positions"


def draw_split(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    shapes = "x: batch 1 d_model" if case == ONE else "x: batch queries d_model"
    return draw(shapes, n_heads=sizes["heads"])(rng, case, sizes)


def draw_merge(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    shapes = "heads: batch heads 1 d_k" if case == ONE else "heads: batch heads queries d_k"
    return draw(shapes)(rng, case, sizes)


def tokens_stay(f: Callable, inputs: Inputs) -> str | None:
    """Whether a token's numbers stay with the token in the split into heads."""
    off = moved(f, inputs, "x", np.s_[:, 0]).amax((0, 1, 3)).tolist()
    wrong = [t for t in range(1, len(off)) if off[t] > EXACT]
    return f"Changing token 0 moved your positions {wrong}." if wrong else None


CUT, CONCAT = "x.unflatten(-1, (n_heads, -1)).transpose(1, 2)", "heads.transpose(1, 2).flatten(2)"
split_heads = Exercise(
    title="split into heads",
    formula="(batch, length, h d_k) -> (batch, h, length, d_k)",
    right=heads.split_heads, rows=("multi_head_attention",), draw=draw_split, cases=(SEVEN, ONE, OTHER_SIZES), axes="batch heads length d_k",
    mistakes=known("the split into heads",
        ("cut by view(batch, heads, length, d_k) without a transpose", "A view only renames axes: read row by row, the first d_model numbers are one token, and this spreads them over several positions. Split the last axis, then swap two axes.",
         CUT, "x.reshape(len(x), n_heads, x.shape[1], -1)"),
        ("with every h-th number to a head", "Head i has d_k neighbouring columns, i d_k to (i+1) d_k: the last axis becomes (heads, d_k), in this order. Pretrained weights are laid out like this.",
         CUT, "x.unflatten(-1, (-1, n_heads)).permute(0, 3, 1, 2)"),
        ("with length and d_model exchanged before the cut", "Swap length with heads, after the split.", CUT, "x.mT.reshape(len(x), n_heads, x.shape[1], -1)"),
    ),
    properties={"a token's numbers stay at its position": tokens_stay},
    next="Next: the way back. If you were surprised that no number moves in memory, print `.stride()` before and after.",
)  # fmt: skip

merge_heads = Exercise(
    title="merge the heads",
    formula="Concat(head_1, ..., head_h): (batch, h, length, d_k) -> (batch, length, h d_k)",
    right=heads.merge_heads, rows=("multi_head_attention",), draw=draw_merge, cases=(SEVEN, ONE, OTHER_SIZES), axes="batch length d_model",
    mistakes=known("Concat(head_1, ..., head_h)",
        ("with the heads merged by reshape without a transpose", "Concatenation puts the heads of one token side by side: first the axis of heads must move next to d_k.",
         CONCAT, "heads.reshape(len(heads), heads.shape[2], -1)"),
        ("with the numbers of the heads interleaved", "All of head 1 first, then head 2: axes (heads, d_k).", CONCAT, "heads.permute(0, 2, 3, 1).flatten(2)"),
    ),
    next="Next: attention between the split and the merge.",
)  # fmt: skip


def draw_multi_head(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    shapes = "x: batch queries d_model, z: batch keys d_model, W_Q W_K W_V W_O: d_model d_model"
    inputs = draw(shapes, n_heads=sizes["heads"])(rng, case, sizes)
    batch, queries, keys = (sizes[axis] for axis in ("batch", "queries", "keys"))
    mask = "left padding" if case == ABOVE else case
    inputs["keep"] = draw_keep(rng, mask, (batch, 1, queries, keys))
    if case == ABOVE:  # for about half of the queries
        inputs["z"][~inputs["keep"][:, 0, 0]] *= 1e4
    return inputs


def by_module(x: Tensor, z: Tensor, W_Q, W_K, W_V, W_O, n_heads: int, keep) -> Tensor:
    """The package's module, given the exercise's maps."""
    module = heads.MultiHeadAttention(len(W_Q), n_heads, bias=False, ops="formula")
    maps = {"W_Q.weight": W_Q.mT, "W_K.weight": W_K.mT, "W_V.weight": W_V.mT, "W_O.weight": W_O.mT}
    return functional_call(module, maps, (x, z, keep))


def order_of_queries(f: Callable, inputs: Inputs) -> str | None:
    """Whether reordering the queries reorders the outputs; only without a mask."""
    if inputs["keep"] is not None:
        return None
    x, *rest = inputs.values()
    order = torch.arange(x.shape[1]).flip(0)
    off = distance(f(x[:, order], *rest), f(x, *rest)[:, order])
    return f"Reversing the tokens of x changed your outputs by {off:.2f}." if off > EXACT else None


FIRST = "    Q = split_heads("
multi_head_attention = Exercise(
    title="multi-head attention",
    formula="Concat(head_1, ..., head_h) W_O, head_i = Attention(x W_Q_i, z W_K_i, z W_V_i)",
    right=shared.multi_head_attention, package=by_module, twins=(heads.MultiHeadAttention.forward,),
    parts=(ops.softmax, ops.scaled_scores, ops.attention, heads.split_heads, heads.merge_heads),
    draw=draw_multi_head, cases=(*MASKS, ABOVE, OTHER_SIZES), axes="batch queries d_model",
    mistakes=split_heads.mistakes + merge_heads.mistakes + SCALE[:5] + SCALE[-1:] + AXIS + MASK + NO_KEYS + known(
        "W_O at the end",
        ("without W_O", "Without it every head writes to its own columns, and the heads never mix.", " @ W_O\n", "\n"),
        ("with W_O transposed", "The formula multiplies from the right, Concat(...) W_O. (nn.Linear stores the transpose.)", " @ W_O\n", " @ W_O.T\n"),
        "x W_Q, z W_K, z W_V",
        ("with W_Q, W_K and W_V transposed", "The formula multiplies from the right, x W. (nn.Linear stores the transpose.)",
         FIRST, f"    W_Q, W_K, W_V = W_Q.T, W_K.T, W_V.T\n{FIRST}"),
        "z W_K",
        ("with W_Q also for the keys", "With one map, the score of i for j equals that of j for i: looking means being looked at.", "z @ W_K", "z @ W_Q"),
        "z W_V",
        ("with W_K also for the values", "What a token is found by and what it passes on are two different things, with two maps.", "z @ W_V", "z @ W_K"),
        ("without W_V", "The values are z W_V, not z.", "z @ W_V", "z"),
        "z W_K and z W_V",
        ("with keys and values from x", "x asks, z answers. In self-attention they are the same, in cross-attention not.", FIRST, f"    z = x\n{FIRST}"),
        ("with W_K and W_V exchanged", "A token is found by its key, z W_K, and passes on its value, z W_V.", FIRST, f"    W_K, W_V = W_V, W_K\n{FIRST}"),
        "x W_Q and z W_K", ("with W_Q and W_K exchanged", "W_Q is for the queries, which come from x.", FIRST, f"    W_Q, W_K = W_K, W_Q\n{FIRST}"),
        "the whole: without a residual", ("with the residual already added", "The block adds the residual.", "return merge_heads(", "return x + merge_heads("),
        "the heads", ("with a single head as wide as d_model", "n_heads is given but never used.", ", n_heads)", ", 1)"),
    ),
    properties={"without a mask, the order of the queries does not matter": order_of_queries},
    next="Next: notebook 03 puts it into a block.",
)  # fmt: skip
