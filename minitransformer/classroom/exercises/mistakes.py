r"""The known mistakes: each formula once with switches, and for each mistake the switch that makes it.

Without a switch turned a function here equals the formula; with one turned it is wrong in exactly
one way. Switches of different names can be turned together, so pairs of mistakes need no code.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engine.diagnosis import Mistake

# --- Attention --------------------------------------------------------------------------------

SCALES = {
    "1/sqrt(d_k)": lambda Q, K: 1 / math.sqrt(Q.shape[-1]),
    "1": lambda Q, K: 1.0,
    "1/d_k": lambda Q, K: 1 / Q.shape[-1],
    "sqrt(d_k)": lambda Q, K: math.sqrt(Q.shape[-1]),
    "1/sqrt(keys)": lambda Q, K: 1 / math.sqrt(K.shape[-2]),
    "1/sqrt(heads)": lambda Q, K: 1 / math.sqrt(Q.shape[1]),
    "1/sqrt(h d_k)": lambda Q, K: 1 / math.sqrt(Q.shape[-1] * Q.shape[1]),
}


def scaled_scores(Q: Tensor, K: Tensor, scale: str = "1/sqrt(d_k)") -> Tensor:
    """The scores, under one scale or another."""
    return Q @ K.mT * SCALES[scale](Q, K)


SCALE_MISTAKES = (
    Mistake(
        "without the factor 1/√d_k",
        "the denominator √d_k in QKᵀ/√d_k",
        "A sum of d_k products grows with d_k; the root brings its spread back to 1.",
        {"scale": "1"},
    ),
    Mistake(
        "divided by d_k, not by its root",
        "the denominator √d_k in QKᵀ/√d_k",
        "Variances add up, so the spread grows like the root of d_k.",
        {"scale": "1/d_k"},
    ),
    Mistake(
        "multiplied by √d_k, not divided",
        "the denominator √d_k in QKᵀ/√d_k",
        "The scores should shrink.",
        {"scale": "sqrt(d_k)"},
    ),
    Mistake(
        "divided by the root of the number of keys",
        "the denominator √d_k in QKᵀ/√d_k",
        "d_k is the width of a query, its last axis, not how many keys there are.",
        {"scale": "1/sqrt(keys)"},
    ),
    Mistake(
        "divided by the root of the number of heads",
        "the denominator √d_k in QKᵀ/√d_k",
        "d_k is the width of a query: Q's last axis, size(-1).",
        {"scale": "1/sqrt(heads)"},
    ),
    Mistake(
        "divided by √d_model (all heads together), not by √d_k",
        "the denominator √d_k in QKᵀ/√d_k",
        "Each score sums over the d_k = d_model / h numbers of one head only.",
        {"scale": "1/sqrt(h d_k)"},
    ),
)


def masked_softmax(
    scores: Tensor,
    keep: Tensor | None,
    axis: int = -1,
    mask: str = "before",
    hide: float = -math.inf,
    subtract: str = "row",
    nothing: str = "zeros",
) -> Tensor:
    """Softmax with a mask.

    Args:
        axis: the axis that sums to one.
        mask: "before" the softmax, "after" it, "inverted", "ignored", or "times infinity": where
            nothing is hidden 0 times infinity is added, which is NaN.
        hide: what stands for minus infinity; 0 multiplies the scores by the mask.
        subtract: the largest score of the "row", of "all", or "none".
        nothing: what a row without any key gets: "zeros", "nan", or "patched": -inf is added to
            the scores and NaN replaced by zero afterwards.
    """
    if keep is None or mask == "ignored":
        keep = torch.ones_like(scores, dtype=torch.bool)
    elif mask == "inverted":
        keep = ~keep
    elif mask == "times infinity":
        scores = scores + ~keep * -math.inf
    keep = keep.expand_as(scores)
    if nothing == "patched":
        scores = scores + torch.zeros_like(scores).masked_fill(~keep, hide)
    elif mask != "after":
        scores = scores.masked_fill(~keep, hide)
    top = scores.detach().amax(axis, keepdim=True)
    if subtract == "all":
        top = top.max()
    if subtract == "none":
        top = torch.zeros_like(top)
    empty = (scores == -math.inf).all(axis, keepdim=True)
    if nothing == "zeros":
        top = top.masked_fill(empty, 0.0)
    e = torch.exp(scores - top)
    total = e.sum(axis, keepdim=True)
    weights = e / (total.masked_fill(empty, 1.0) if nothing == "zeros" else total)
    if mask == "after":
        weights = weights.masked_fill(~keep, 0.0)
    return weights.nan_to_num(0.0) if nothing == "patched" else weights


MASK_MISTAKES = (
    Mistake(
        "with the softmax over the queries",
        "the axis of the softmax",
        "Every query shares out one unit among the keys, and keys are the last axis.",
        {"axis": -2},
    ),
    Mistake(
        "with the mask applied after the softmax",
        "where the mask enters",
        "Zeroing weights afterwards leaves rows that sum to less than one. Hide the scores first.",
        {"mask": "after"},
    ),
    Mistake(
        "with the mask inverted",
        "the meaning of keep: True = may attend",
        "The scores to hide are those where keep is False, ~keep.",
        {"mask": "inverted"},
    ),
    Mistake(
        "without the mask",
        "the argument keep",
        "It is given and never used, so hidden keys are averaged in.",
        {"mask": "ignored"},
    ),
    Mistake(
        "with the mask multiplied by -inf and added",
        "the value of a hidden score",
        "Where nothing is hidden that is 0 times infinity: NaN, and it spreads to all. Choose the "
        "places instead, with masked_fill or torch.where.",
        {"mask": "times infinity"},
    ),
    Mistake(
        "with hidden scores set to 0",
        "the value of a hidden score",
        "e⁰ is 1, an ordinary weight (and so is e to 1e-9). What number has exponential 0?",
        {"hide": 0.0},
    ),
    Mistake(
        "with hidden scores set to -10",
        "the value of a hidden score",
        "A trained model has scores below that, and then it sees what is hidden. Use -inf.",
        {"hide": -10.0},
    ),
    Mistake(
        "with hidden scores set to -10,000",
        "the value of a hidden score",
        "A trained model can have scores below that, and then it sees what is hidden. Use -inf.",
        {"hide": -1e4},
    ),
    Mistake(
        "with hidden scores set to -1e9",
        "the value of a hidden score",
        "It works until everything is hidden: then all scores are equal, and the row averages "
        "exactly the keys it must not see. Use -inf, and treat such a row by itself.",
        {"hide": -1e9},
    ),
    Mistake(
        "with NaN for a query that may attend to nothing",
        "a row of scores that is -inf throughout",
        "There the softmax is 0/0. Such a row must give zeros.",
        {"nothing": "nan"},
    ),
    Mistake(
        "with 0/0 or infinity in a row without keys, repaired afterwards",
        "a row of scores that is -inf throughout",
        "The output looks right, but the gradient still passes through the bad number and is NaN, "
        "for the whole model. So it goes with -inf added to the scores and nan_to_num at the end, or "
        "with torch.where after an infinite exponential. Keep the bad number from arising: give "
        "such a row other scores, and zero its weights.",
        {"nothing": "patched"},
    ),
    Mistake(
        "without subtracting the largest score",
        "the exponentials",
        "exp(1000) is infinite. Numerator and denominator may both be divided by e to the largest "
        "score of the row.",
        {"subtract": "none"},
    ),
    Mistake(
        "with the largest score of the whole tensor subtracted, not each row's",
        "the exponentials",
        "A row far below the largest is all zeros then, and 0/0 follows.",
        {"subtract": "all"},
    ),
)


def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    keep: Tensor | None,
    scale: str = "1/sqrt(d_k)",
    average: str = "weights",
    **softmax: Any,
) -> Tensor:
    """Attention; `average` names what multiplies the values."""
    scores = scaled_scores(Q, K, scale)
    if average == "scores":
        return (scores if keep is None else scores.masked_fill(~keep, 0.0)) @ V
    weights = masked_softmax(scores, keep, **softmax)
    if average == "scaled weights":
        weights = masked_softmax(Q @ K.mT, keep, **softmax) * SCALES[scale](Q, K)
    return weights @ V


ATTENTION_MISTAKES = (
    *(m for m in SCALE_MISTAKES if m.change["scale"] != "1/sqrt(h d_k)"),
    *MASK_MISTAKES,
    Mistake(
        "with the softmax over the heads",
        "the axis of the softmax",
        "Heads know nothing of each other; every query shares out one unit among the keys.",
        {"axis": 1},
    ),
    Mistake(
        "without the softmax",
        "softmax(...)",
        "Raw scores are no weights: they may be negative and do not sum to one.",
        {"average": "scores"},
    ),
    Mistake(
        "with the scale after the softmax",
        "the denominator √d_k, inside the softmax",
        "It divides the scores, not the weights; the weights must go on summing to one.",
        {"average": "scaled weights"},
    ),
)

# --- Heads ------------------------------------------------------------------------------------


def split_heads(x: Tensor, n_heads: int, split: str = "right") -> Tensor:
    """(batch, length, d_model) -> (batch, heads, length, d_k)."""
    batch, length, d_model = x.shape
    if split == "view":
        return x.reshape(batch, n_heads, length, d_model // n_heads)
    if split == "strided":
        return x.reshape(batch, length, d_model // n_heads, n_heads).permute(0, 3, 1, 2)
    if split == "rows":
        return x.mT.reshape(batch, n_heads, length, d_model // n_heads)
    return x.reshape(batch, length, n_heads, d_model // n_heads).transpose(1, 2)


def merge_heads(heads: Tensor, merge: str = "right") -> Tensor:
    """(batch, heads, length, d_k) -> (batch, length, d_model)."""
    batch, n_heads, length, d_k = heads.shape
    if merge == "reshape":
        return heads.reshape(batch, length, n_heads * d_k)
    if merge == "strided":
        return heads.permute(0, 2, 3, 1).reshape(batch, length, n_heads * d_k)
    return heads.transpose(1, 2).reshape(batch, length, n_heads * d_k)


SPLIT_MISTAKES = (
    Mistake(
        "cut by view(batch, heads, length, d_k) without a transpose",
        "the cut into heads",
        "A view only renames axes: read row by row, the first d_model numbers are one token, and "
        "this hands them to several positions. Cut the last axis, then exchange two axes.",
        {"split": "view"},
    ),
    Mistake(
        "with every h-th number to a head",
        "the cut into heads",
        "Head i has d_k neighbouring columns, i d_k to (i+1) d_k: the last axis becomes "
        "(heads, d_k), in this order. Pretrained weights are laid out so.",
        {"split": "strided"},
    ),
    Mistake(
        "with length and d_model exchanged before the cut",
        "the cut into heads",
        "Exchange after the cut, and exchange length with heads.",
        {"split": "rows"},
    ),
)
MERGE_MISTAKES = (
    Mistake(
        "with the heads merged by reshape without a transpose",
        "Concat(head_1, ..., head_h)",
        "Concatenation puts the heads of one token side by side: the axis of heads must stand "
        "next to d_k first.",
        {"merge": "reshape"},
    ),
    Mistake(
        "with the numbers of the heads interleaved",
        "Concat(head_1, ..., head_h)",
        "All of head 1 comes first, then all of head 2: the axes in the order (heads, d_k).",
        {"merge": "strided"},
    ),
)


def multi_head_attention(
    x: Tensor,
    z: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    W_O: Tensor,
    n_heads: int,
    keep: Tensor | None,
    maps: str = "W",
    output: str = "W_O",
    source: str = "z",
    heads: str = "n_heads",
    split: str = "right",
    merge: str = "right",
    scale: str = "1/sqrt(d_k)",
    **softmax: Any,
) -> Tensor:
    """Multi-head attention without biases, with a switch for each of its parts."""
    if source == "x":
        z = x
    if source == "exchanged":
        x, z = z, x
    if maps == "transposed":
        W_Q, W_K, W_V = W_Q.T, W_K.T, W_V.T
    if maps == "one for queries and keys":
        W_K = W_Q
    if maps == "one for keys and values":
        W_V = W_K
    if maps == "no values":
        W_V = torch.eye(len(W_V), dtype=W_V.dtype)
    h = 1 if heads == "one" else n_heads
    Q, K, V = (split_heads(y, h, split) for y in (x @ W_Q, z @ W_K, z @ W_V))
    concat = merge_heads(attention(Q, K, V, keep, scale, **softmax), merge)
    if output == "none":
        return concat
    return concat @ (W_O.T if output == "transposed" else W_O)


MULTI_HEAD_MISTAKES = (
    *SPLIT_MISTAKES,
    *MERGE_MISTAKES,
    *(m for m in SCALE_MISTAKES if m.change["scale"] in ("1", "1/d_k", "1/sqrt(h d_k)")),
    *(m for m in MASK_MISTAKES if m.change.keys() & {"mask", "axis", "nothing"}),
    Mistake(
        "without W_O",
        "W_O at the end",
        "Without it every head writes to its own columns and the heads never mix.",
        {"output": "none"},
    ),
    Mistake(
        "with W_O transposed",
        "W_O at the end",
        "The formula multiplies from the right, Concat(...) W_O. (nn.Linear stores the transpose.)",
        {"output": "transposed"},
    ),
    Mistake(
        "with W_Q, W_K and W_V transposed",
        "x W_Q, z W_K, z W_V",
        "The formula multiplies from the right, x W. (nn.Linear stores the transpose.)",
        {"maps": "transposed"},
    ),
    Mistake(
        "with W_Q also for the keys",
        "z W_K",
        "With one map for both, the score of i and j is that of j and i: nobody can look back "
        "without being looked at.",
        {"maps": "one for queries and keys"},
    ),
    Mistake(
        "with W_K also for the values",
        "z W_V",
        "What is found by and what is handed on are two things, with two maps.",
        {"maps": "one for keys and values"},
    ),
    Mistake(
        "without W_V",
        "z W_V",
        "The values are z W_V, not z.",
        {"maps": "no values"},
    ),
    Mistake(
        "with keys and values from x",
        "z W_K and z W_V",
        "x asks, z answers. In self-attention they are the same, in cross-attention not.",
        {"source": "x"},
    ),
    Mistake(
        "with a single head as wide as d_model",
        "the heads",
        "n_heads is given and never used.",
        {"heads": "one"},
    ),
)

# --- The block --------------------------------------------------------------------------------

AXES: dict[str, tuple[int, ...]] = {
    "d_model": (-1,), "length": (1,), "batch": (0,), "both": (1, 2), "all": (0, 1, 2),
}  # fmt: skip


def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    over: str = "d_model",
    divisor: str = "d",
    epsilon: str = "inside",
    numerator: str = "x - mu",
    root: bool = True,
    affine: str = "gamma, beta",
) -> Tensor:
    """LayerNorm with a switch for each of its parts."""
    axes = AXES[over]
    mu = x.mean(axes, keepdim=True)
    if numerator == "RMSNorm":
        mu = torch.zeros_like(mu)
    variance = ((x - mu) ** 2).mean(axes, keepdim=True)
    n = math.prod(x.shape[a] for a in axes)
    variance = variance * {"d": 1, "d - 1": n / (n - 1), "1": n}[divisor]
    inside = variance + {"inside": eps, "fixed": 1e-5}.get(epsilon, 0.0)
    spread = torch.sqrt(inside) if root else inside
    if epsilon == "outside":
        spread = spread + eps
    y = (x if numerator == "x" else x - mu) / spread
    if affine == "beta first":
        return gamma * (y + beta)
    y = y if affine in ("no gamma", "neither") else gamma * y
    return y if affine in ("no beta", "neither") else y + beta


LAYER_NORM_MISTAKES = (
    Mistake(
        "with the variance divided by d - 1",
        "the variance σ²",
        "torch's .var() and .std() divide by d - 1 unless told not to (correction=0). LayerNorm "
        "divides by d.",
        {"divisor": "d - 1"},
    ),
    Mistake(
        "with the sum of squares, not their mean",
        "the variance σ²",
        "σ² is the mean of (x - μ)² over the d_model numbers.",
        {"divisor": "1"},
    ),
    Mistake(
        "with 1e-5 for ε",
        "√(σ² + ε)",
        "ε is an argument. Models have their own: BERT 1e-12, GPT-2 1e-5, T5 1e-6.",
        {"epsilon": "fixed"},
    ),
    Mistake(
        "with ε added to the standard deviation",
        "√(σ² + ε)",
        "ε stands inside the root, beside the variance.",
        {"epsilon": "outside"},
    ),
    Mistake(
        "without ε",
        "√(σ² + ε)",
        "A position whose numbers are all equal has variance 0, and 0/0 is NaN.",
        {"epsilon": "missing"},
    ),
    Mistake(
        "without the square root",
        "√(σ² + ε)",
        "Divide by the standard deviation; the variance is its square.",
        {"root": False},
    ),
    Mistake(
        "with x for x - μ in the numerator",
        "the numerator x - μ",
        "The output's mean must be 0 before γ and β.",
        {"numerator": "x"},
    ),
    Mistake(
        "without any mean, which is RMSNorm",
        "μ, in the numerator and in σ²",
        "T5 and many later models use RMSNorm; here the mean is subtracted.",
        {"numerator": "RMSNorm"},
    ),
    Mistake(
        "over the sequence",
        "the axis of μ and σ²",
        "Every position is normalised by itself, over its d_model numbers. This way a token's "
        "output depends on its neighbours, in a decoder on future ones.",
        {"over": "length"},
    ),
    Mistake(
        "over the batch",
        "the axis of μ and σ²",
        "That is batch normalisation: an example's output depends on the others of its batch.",
        {"over": "batch"},
    ),
    Mistake(
        "over sequence and d_model together",
        "the axis of μ and σ²",
        "Every position has its own mean and variance.",
        {"over": "both"},
    ),
    Mistake(
        "over the whole tensor",
        "the axis of μ and σ²",
        "x.mean() without an axis averages everything; every position has its own mean and variance.",
        {"over": "all"},
    ),
    Mistake("without γ", "γ ⊙ ...", "The gain is an argument.", {"affine": "no gamma"}),
    Mistake("without β", "... + β", "The shift is an argument.", {"affine": "no beta"}),
    Mistake(
        "without γ and β",
        "γ ⊙ ... + β",
        "Gain and shift are arguments: what the model learns about the scale of each number.",
        {"affine": "neither"},
    ),
    Mistake(
        "with β added before the gain",
        "γ ⊙ ... + β",
        "Multiply first, then add.",
        {"affine": "beta first"},
    ),
)


def feed_forward(
    x: Tensor,
    W_1: Tensor,
    b_1: Tensor,
    W_2: Tensor,
    b_2: Tensor,
    f: str = "relu",
    place: str = "middle",
    biases: str = "b_1, b_2",
    residual: bool = False,
) -> Tensor:
    """The two maps and what stands between them."""
    activation: Callable[[Tensor], Tensor] = {
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "leaky": torch.nn.functional.leaky_relu,
        "tanh gelu": lambda a: torch.nn.functional.gelu(a, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "sigmoid": torch.sigmoid,
        "none": lambda a: a,
    }[f]
    if biases == "no b_1":
        b_1 = torch.zeros_like(b_1)
    if biases == "no b_2":
        b_2 = torch.zeros_like(b_2)
    if place == "before b_1":
        y = (activation(x @ W_1) + b_1) @ W_2 + b_2
    elif place == "start":
        y = (activation(x) @ W_1 + b_1) @ W_2 + b_2
    elif place == "end":
        y = activation((x @ W_1 + b_1) @ W_2 + b_2)
    else:
        y = activation(x @ W_1 + b_1) @ W_2 + b_2
        y = activation(y) if place == "middle and end" else y
    return x + y if residual else y


MIDDLE = "max(0, ...) between the two maps"
FEED_FORWARD_MISTAKES = (
    Mistake(
        "without the ReLU",
        MIDDLE,
        "Two linear maps in a row are one linear map: nothing is gained.",
        {"f": "none"},
    ),
    Mistake("with GELU for ReLU", MIDDLE, "BERT has GELU; the paper has max(0, x).", {"f": "gelu"}),
    Mistake(
        "with GELU's tanh form for ReLU",
        MIDDLE,
        "GPT-2 has it; here is max(0, x).",
        {"f": "tanh gelu"},
    ),
    Mistake("with SiLU for ReLU", MIDDLE, "Llama has it; here is max(0, x).", {"f": "silu"}),
    Mistake("with a sigmoid for ReLU", MIDDLE, "Above zero it changes nothing.", {"f": "sigmoid"}),
    Mistake("with a leaky ReLU", MIDDLE, "Below zero it is exactly 0.", {"f": "leaky"}),
    Mistake(
        "with the ReLU at the end, not in the middle",
        MIDDLE,
        "The output is added to the residual stream and may well be negative.",
        {"place": "end"},
    ),
    Mistake(
        "with a second ReLU at the end",
        MIDDLE,
        "The output is added to the residual stream and may well be negative.",
        {"place": "middle and end"},
    ),
    Mistake("with the ReLU on x", MIDDLE, "First the map W_1.", {"place": "start"}),
    Mistake(
        "with b_1 added after the ReLU",
        "max(0, xW_1 + b_1)",
        "The bias belongs inside: it moves the kink.",
        {"place": "before b_1"},
    ),
    Mistake("without b_1", "xW_1 + b_1", "The bias is an argument.", {"biases": "no b_1"}),
    Mistake("without b_2", "... + b_2", "The bias is an argument.", {"biases": "no b_2"}),
    Mistake(
        "with the residual already added",
        "the whole: FFN(x), not x + FFN(x)",
        "The block adds the residual.",
        {"residual": True},
    ),
)


def encoder_block(
    x: Tensor,
    attention: Callable[[Tensor], Tensor],
    feed_forward: Callable[[Tensor], Tensor],
    norm_1: Callable[[Tensor], Tensor],
    norm_2: Callable[[Tensor], Tensor],
    norm_position: str,
    position: str = "as asked",
    first: str = "x",
    second: str = "a",
    norms: str = "two",
    fed: str = "a",
    halves: str = "both",
) -> Tensor:
    """The block, with switches for what is added, what is normed and in which order."""
    if norms == "norm_1 twice":
        norm_2 = norm_1
    if norms == "exchanged":
        norm_1, norm_2 = norm_2, norm_1
    if norms == "no norm_2":
        norm_2 = lambda a: a  # noqa: E731
    if position == "exchanged":
        norm_position = {"post": "pre", "pre": "post"}[norm_position]
    elif position != "as asked":
        norm_position = position

    if halves == "first":
        feed_forward, norm_2 = torch.zeros_like, norm_2 if norm_position == "pre" else lambda a: a
    if halves == "second":
        attention, norm_1 = torch.zeros_like, norm_1 if norm_position == "pre" else lambda a: a

    def residual(kind: str, stream: Tensor, normed: Tensor) -> Tensor | float:
        kinds: dict[str, Tensor | float] = {"none": 0.0, "normed": normed, "original": x}
        return kinds.get(kind, stream)

    if norm_position == "both":
        a = norm_1(residual(first, x, x) + attention(norm_1(x)))
        return norm_2(residual(second, a, a) + feed_forward(norm_2(x if fed == "x" else a)))
    if norm_position == "inside":  # the norm on the sublayer's output, neither pre nor post
        a = residual(first, x, x) + norm_1(attention(x))
        return residual(second, a, a) + norm_2(feed_forward(a))
    if norm_position == "post":
        a = norm_1(residual(first, x, x) + attention(x))
        return norm_2(residual(second, a, a) + feed_forward(x if fed == "x" else a))
    n = norm_1(x)
    a = residual(first, x, n) + attention(n)
    m = norm_2(x if fed == "x" else a)
    return residual(second, a, m) + feed_forward(m)


POSITION_MISTAKES = (
    Mistake(
        "with pre-LN and post-LN exchanged",
        "norm_position",
        '"post" norms the sum of stream and sublayer; "pre" norms what goes into the sublayer.',
        {"position": "exchanged"},
    ),
    Mistake(
        "with post-LN in both cases",
        "norm_position",
        'For "pre" the norm stands inside the branch and the sum is left alone.',
        {"position": "post"},
    ),
    Mistake(
        "with pre-LN in both cases",
        "norm_position",
        'For "post" the norm stands around the sum.',
        {"position": "pre"},
    ),
)
RESIDUALS = "the residuals, x + ... and a + ..."
BLOCK_MISTAKES = (
    *POSITION_MISTAKES,
    Mistake(
        "with the norm on the sublayer's output, x + LN(MHA(x))",
        "what the norms are applied to",
        "post: LN(x + MHA(x)). pre: x + MHA(LN(x)).",
        {"position": "inside"},
    ),
    Mistake(
        "with each norm both before the sublayer and after the sum",
        "what the norms are applied to",
        "Each norm has one place, and norm_position says which.",
        {"position": "both"},
    ),
    Mistake(
        "without the residual around the attention",
        "x + MHA(...)",
        "Add what went into the sublayer to what comes out.",
        {"first": "none"},
    ),
    Mistake(
        "without the residual around the feed-forward network",
        "a + FFN(...)",
        "Add what went into the sublayer to what comes out.",
        {"second": "none"},
    ),
    Mistake(
        "with the normed x as pre-LN's first residual",
        RESIDUALS,
        "In pre-LN the stream itself is never normed: x + MHA(LN(x)).",
        {"first": "normed"},
    ),
    Mistake(
        "with the normed a as pre-LN's second residual",
        RESIDUALS,
        "In pre-LN the stream itself is never normed: a + FFN(LN(a)).",
        {"second": "normed"},
    ),
    Mistake(
        "with x as the second residual, for a",
        RESIDUALS,
        "The second sublayer adds to what the first one made; this throws the attention away.",
        {"second": "original"},
    ),
    Mistake(
        "with the feed-forward network fed x, not a",
        "FFN(...)",
        "The second sublayer reads what the first one made.",
        {"fed": "x"},
    ),
    Mistake(
        "with norm_1 twice",
        "LN_1 and LN_2",
        "The two norms have gains and shifts of their own.",
        {"norms": "norm_1 twice"},
    ),
    Mistake(
        "with the two norms exchanged",
        "LN_1 and LN_2",
        "norm_1 belongs to the attention, norm_2 to the feed-forward network.",
        {"norms": "exchanged"},
    ),
    Mistake(
        "with the attention's half only",
        "y = ..., the second half",
        "The feed-forward network follows, with a residual and a norm of its own.",
        {"halves": "first"},
    ),
    Mistake(
        "with the feed-forward network's half only",
        "a = ..., the first half",
        "The attention comes first, with a residual and a norm of its own.",
        {"halves": "second"},
    ),
    Mistake(
        "without norm_2",
        "LN_2",
        "Each sublayer has a norm.",
        {"norms": "no norm_2"},
    ),
)


# --- Losses -----------------------------------------------------------------------------------


def token_losses(logits: Tensor, targets: Tensor, p: str = "softmax") -> Tensor:
    """-log p of each target, or what is taken for it."""
    if p == "twice":
        logits = logits.softmax(-1)
    log_p = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return -log_p.exp() if p == "without the logarithm" else -log_p


def averaged(losses: Tensor, counted: Tensor, mean: str = "tokens") -> Tensor:
    """The mean over the counted tokens, or what is taken for it."""
    losses = losses * counted
    if mean == "texts":
        return (losses.sum(1) / counted.sum(1)).mean()
    divisors: dict[str, Any] = {
        "tokens": counted.sum(), "positions": counted.numel(), "batch": len(counted), "sum": 1,
    }  # fmt: skip
    return losses.sum() / divisors[mean]


LOG_MISTAKES = (
    Mistake(
        "with the softmax taken twice",
        "log p",
        "cross_entropy takes logits and does the softmax itself.",
        {"p": "twice"},
    ),
    Mistake(
        "without the logarithm",
        "log p",
        "The mean of -log p, not of -p.",
        {"p": "without the logarithm"},
    ),
)
