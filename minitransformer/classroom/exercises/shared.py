r"""What several notebooks' exercises share: mistakes in scores and softmax, and the two sublayers.

`SCALE` patches `ops.scaled_scores`; `AXIS`, `MASK`, `HIDDEN`, `NO_KEYS` and `LARGEST` patch
`ops.softmax`. An exercise whose right answer calls these functions lists them as its `parts`, and
the call uses their bare names.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...formulas.ops import attention
from ...model.attention import merge_heads, split_heads
from ...proofs.draws import FEED_FORWARD, Sizes, draw, matrix
from ...proofs.formula import Inputs
from ..engine.patches import known

# fmt: off
ROOT = "math.sqrt(Q.shape[-1])"
SCALE = known("the denominator √d_k in QKᵀ/√d_k",
    ("without the factor 1/√d_k", "A sum of d_k products grows with d_k; dividing by the root brings its spread back to 1.", f"1 / {ROOT}", "1.0"),
    ("divided by d_k, not by its root", "Variances add up, so the spread grows like the root of d_k.", ROOT, "Q.shape[-1]"),
    ("divided by d_k/2, not by its root", "In Python `d_k ** 1/2` is (d_k ** 1) / 2. Write d_k ** 0.5, or math.sqrt(d_k).", ROOT, "(Q.shape[-1] / 2)"),
    ("divided by 2 d_k", "`/ d_k ** 1/2` divides by d_k, and then by 2. Write d_k ** 0.5, or math.sqrt(d_k).", ROOT, "(Q.shape[-1] * 2)"),
    ("divided by √d_k rounded down", "A root is rarely a whole number: leave out int() and //.", ROOT, "int(math.sqrt(Q.shape[-1]))"),
    ("multiplied by √d_k, not divided", "The scores should shrink.", f"1 / {ROOT}", ROOT),
    ("divided by the root of the number of keys", "d_k is the width of a query, its last axis, not the number of keys.", ROOT, "math.sqrt(K.shape[-2])"),
    ("divided by the root of the number of heads", "d_k is the width of a query: Q's last axis, size(-1).", ROOT, "math.sqrt(Q.shape[1])"),
    ("divided by √d_model (all heads together), not by √d_k", "Each score sums over the d_k = d_model / h numbers of one head only.",
     ROOT, "math.sqrt(Q.shape[-1] * Q.shape[1])"),
)

HIDE = "scores = scores.masked_fill(~keep, -math.inf)"
AXIS = known("the axis of the softmax",
    ("with the softmax over the queries", "Each query distributes its weight of 1 over the last axis, the keys.", "(-1, keepdim=True)", "(-2, keepdim=True)"),
)
MASK = known(
    "where the mask enters",
    ("with the mask applied after the softmax", "Zeroing weights afterwards leaves rows that sum to less than one. Hide the scores first.",
     HIDE, "pass", "return e / total", "return (e if keep is None else e * keep) / total"),
    "the meaning of keep: True = may attend", ("with the mask inverted", "The scores to hide are those where keep is False, ~keep.", "~keep", "keep"),
    "the argument keep", ("without the mask", "It is given but never used, so hidden keys are averaged in.", HIDE, "pass"),
    "the value of a hidden score",
    ("with the mask multiplied by -inf and added", "Where nothing is hidden, 0 times infinity gives NaN, which spreads everywhere. Select the places instead, with masked_fill or torch.where.",
     "scores.masked_fill(~keep, -math.inf)", "scores + ~keep * -math.inf"),
    ("with the mask multiplied by -inf and added, and NaN turned into 0", "0 times infinity is NaN wherever nothing is hidden, and with the NaN the weights are lost. Select the places with masked_fill or torch.where.",
     "scores.masked_fill(~keep, -math.inf)", "scores + ~keep * -math.inf", "e / total.masked_fill(empty, 1.0)", "(e / total).nan_to_num(0.0)"),
    ("with keep added to the scores", "Adding 1 to a score multiplies its weight by e, and hides nothing. A float mask that is added must be -inf at the hidden keys.", HIDE, "scores = scores + keep"),
)
HIDDEN = known("the value of a hidden score",
    ("with hidden scores set to 0", "e⁰ is 1, an ordinary weight (and so is e to 1e-9). Which number has exponential 0?", "~keep, -math.inf", "~keep, 0.0"),
    ("with hidden scores set to -10", "A trained model has scores below that, and then it sees what is hidden. Use -inf.", "~keep, -math.inf", "~keep, -10.0"),
    ("with hidden scores set to a finite number such as -10,000", "A model can have scores below that, and then it sees what is hidden. Use -inf.", "~keep, -math.inf", "~keep, -1e4"),
    ("with a finite number added to hidden scores, not -inf", "A hidden score may be far above the others, and then it still counts. Put -inf in its place.",
     "scores.masked_fill(~keep, -math.inf)", "scores - 1e4 * ~keep"),
    ("with equal weights for a query that may attend to nothing", "Its hidden scores are all equal, whether set to -1e9 or to 0, so the softmax averages exactly the keys that it must not see. Zero the weights of such a row after the softmax.",
     "~keep, -math.inf", "~keep, -1e9"),
)
NO_KEYS = known("a row of scores that is -inf throughout",
    ("with NaN for a query that may attend to nothing", "There the softmax is 0/0. Such a row must give zeros.",
     ".masked_fill(empty, 0.0)", "", ".masked_fill(empty, 1.0)", ""),
    ("with 0/0 or infinity in a row without keys, repaired afterwards", "The output looks right, but the gradient still passes through the bad number and is NaN, for the whole model. This happens with -inf added to the scores and nan_to_num at the end, or with torch.where after an infinite exponential. Keep the bad number from arising: give such a row other scores, and zero its weights.",
     "scores.masked_fill(~keep, -math.inf)", "scores + torch.zeros_like(scores).masked_fill(~keep, -math.inf)", ".masked_fill(empty, 0.0)", "",
     "e / total.masked_fill(empty, 1.0)", "(e / total).nan_to_num(0.0)"),
)
KEPT_LATER = (HIDE, "pass", "torch.exp(scores - top)", "torch.exp(scores - top) * (1 if keep is None else keep)", "total.masked_fill(empty, 1.0)", "total.clamp(min=1e-300)")
LARGEST = known("the exponentials",
    ("without subtracting the largest score", "exp(1000) is infinite. Divide above and below by e to the row's largest score.", "scores - top", "scores"),
    ("with the largest score of the whole tensor subtracted, not each row's", "A row far below the largest becomes all zeros, and 0/0 follows.",
     "top.masked_fill(empty", "top.max().masked_fill(empty"),
    ("with the largest score of the whole tensor subtracted, and 0/0 avoided", "A row far below the largest score becomes all zeros. Subtract each row's own largest kept score.", *KEPT_LATER,
     ".amax(-1, keepdim=True)", ".amax()"),
    ("with no weight left for the kept keys where a hidden score is far above", "The largest score of a row must be that of its kept keys, as must the softmax that is renormalised. Put -inf in place of the hidden scores first; a finite number only lowers them.", *KEPT_LATER),
    ("with powers of 2, not of e", "exp(s) is e to the power of s; a base of 2 flattens the weights.", "torch.exp(", "torch.exp2("),
)

# For a loss that says `.log_softmax(-1)`.
LOG = known("log p",
    ("with the softmax taken twice", "cross_entropy takes logits and applies the softmax itself.", ".log_softmax(-1)", ".softmax(-1).log_softmax(-1)"),
    ("without the minus", "log p is negative, and a loss is positive: take -log p.", ".log_softmax(-1)", ".log_softmax(-1).neg()"),
    ("with the logits themselves for log p", "nll_loss takes log-probabilities: log_softmax first, or cross_entropy.", ".log_softmax(-1)", ""),
    ("without the logarithm", "Take the mean of -log p, not of -p.", ".log_softmax(-1)", ".softmax(-1)"),
)

# For a block that says `if norm_position == "post":`.
POST = 'norm_position == "post"'
POSITION = known("norm_position",
    ("with pre-LN and post-LN exchanged", '"post" normalises the sum, "pre" the input of the sublayer.', POST, 'norm_position == "pre"'),
    ("with post-LN in both cases", 'For "pre" the norm stands inside the branch, and the sum is left alone.', POST, "True"),
    ("with pre-LN in both cases", 'For "post" the norm stands around the sum.', POST, "False"),
)
# fmt: on


def multi_head_attention(
    x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, W_O: Tensor, n_heads: int,
    keep: Tensor | None,
) -> Tensor:  # fmt: skip
    """Multi-head attention without biases: queries from x, keys and values from z."""
    Q = split_heads(x @ W_Q, n_heads)
    K = split_heads(z @ W_K, n_heads)
    V = split_heads(z @ W_V, n_heads)
    return merge_heads(attention(Q, K, V, keep)) @ W_O


def feed_forward(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
    """The formula; the package has it as a module only."""
    return ops.relu(x @ W_1 + b_1) @ W_2 + b_2


def random_attention(rng: np.random.Generator, sizes: Sizes) -> Callable[..., Tensor]:
    """`multi_head_attention` with random maps: a function of x, z and keep."""
    d, heads = sizes["d_model"], sizes["heads"]
    Q, K, V, O = (torch.from_numpy(matrix(rng, d, d)) for _ in range(4))  # noqa: E741
    return lambda x, z, keep: multi_head_attention(x, z, Q, K, V, O, heads, keep)


def random_feed_forward(rng: np.random.Generator, sizes: Sizes) -> Callable[[Tensor], Tensor]:
    """`feed_forward` with random maps and biases."""
    maps = [torch.from_numpy(a) for a in draw(FEED_FORWARD)(rng, "", sizes).values()]
    return lambda x: feed_forward(x, *maps)


def random_norm(rng: np.random.Generator, sizes: Sizes) -> Callable[[Tensor], Tensor]:
    """A LayerNorm with random gain and shift."""
    gamma, beta = (torch.from_numpy(rng.standard_normal(sizes["d_model"])) for _ in range(2))
    return lambda x: ops.layer_norm(x, gamma, beta, 0.1)


def moved(f: Callable[..., Tensor], inputs: Inputs, name: str, where: Any) -> Tensor:
    """How far each output moves when one of the inputs changes at these places."""
    other = inputs[name].clone()
    other[where] += torch.randn_like(other[where])
    return (f(*(inputs | {name: other}).values()) - f(*inputs.values())).abs()


def filled(ids: list[int], length: int, pad_id: int) -> Tensor:
    """The ids as a tensor of that length, padded on the right."""
    return torch.tensor((ids + [pad_id] * length)[:length])
