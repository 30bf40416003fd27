r"""What a decoder adds, in NumPy, index by index, as in `by_hand`.

Symbols: $y$ the decoder's stream, $z$ the encoder's output, $E$ a table of embeddings with one row
per word or bucket.
"""

from collections.abc import Callable
from math import floor, log, sqrt

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from .by_hand import ACTIVATIONS, linear


def causal_mask(queries: int, keys: int) -> Bool[ndarray, "queries keys"]:
    r"""Query $i$ may see key $j$ if $j \le i + (\text{keys} - \text{queries})$: no query sees the future.

    Shapes: (queries, keys).  Source: Vaswani et al. 2017, section 3.2.3.
    """
    keep = np.zeros((queries, keys), dtype=bool)
    for i, j in np.ndindex(queries, keys):
        keep[i, j] = j <= i + (keys - queries)
    return keep


def relative_bucket(r: int, n_buckets: int, max_distance: int, bidirectional: bool) -> int:
    r"""The bucket of one distance $r = j - i$ from query to key.

    With $n$ buckets for one direction:

    $$b(r) = |r| \ \text{ if } |r| < \tfrac n2, \ \text{ else } \
    \min\!\left(n - 1,\ \tfrac n2 + \left\lfloor \frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}
    \cdot \tfrac n2 \right\rfloor\right)$$

    Bidirectional: later keys have the second half of the buckets. Causal: they are in bucket 0.

    Shapes: a number -> a number.  Source: Raffel et al. 2020, section 2.1, and its code.
    """
    n = n_buckets // 2 if bidirectional else n_buckets
    first = n if bidirectional and r > 0 else 0
    r = abs(r) if bidirectional else max(-r, 0)
    if r < n // 2:
        return first + r
    share = log(r / (n / 2)) / log(max_distance / (n / 2))
    # Rounding may leave the logarithm of a power just below a whole number.
    return first + min(n - 1, n // 2 + floor(share * (n / 2) + 1e-9))


def relative_buckets(
    queries: int, keys: int, n_buckets: int, max_distance: int, bidirectional: bool
) -> Int[ndarray, "queries keys"]:
    r"""$b(j - i)$ of every query $i$ and key $j$; the queries are the last positions.

    Shapes: (queries, keys).  Source: as `relative_bucket`.
    """
    buckets = np.zeros((queries, keys), dtype=int)
    for i, j in np.ndindex(queries, keys):
        r = j - (i + keys - queries)
        buckets[i, j] = relative_bucket(r, n_buckets, max_distance, bidirectional)
    return buckets


def relative_position_bias(
    E: Float[ndarray, "n_buckets heads"],
    queries: int,
    keys: int,
    max_distance: int,
    bidirectional: bool,
) -> Float[ndarray, "1 heads queries keys"]:
    r"""The bias that is added to the scores of head $h$: $B_{hij} = E_{b(j-i),\,h}$.

    Shapes: (1, heads, queries, keys), 1 for the batch.  Source: Raffel et al. 2020, section 2.1.
    """
    n_buckets, heads = E.shape
    b = relative_buckets(queries, keys, n_buckets, max_distance, bidirectional)
    B = np.zeros((1, heads, queries, keys))
    for h, i, j in np.ndindex(heads, queries, keys):
        B[0, h, i, j] = E[b[i, j], h]
    return B


def gated_feed_forward(
    x: Float[ndarray, "length d_model"],
    W_1: Float[ndarray, "d_model d_ff"],
    W_2: Float[ndarray, "d_ff d_model"],
    W_3: Float[ndarray, "d_model d_ff"],
    activation: str = "gelu_tanh",
) -> Float[ndarray, "length d_model"]:
    r"""A feed-forward whose inner entries are multiplied: $\mathrm{FFN}(x) = (f(xW_1) \odot xW_3)\,W_2$.

    Shapes: (length, d_model) -> the same, through (length, d_ff).
    Source: Shazeer 2020, equation 6 (there $V$ is our $W_3$); used by T5 v1.1.
    """
    return linear(ACTIVATIONS[activation](linear(x, W_1)) * linear(x, W_3), W_2)


def decoder_block(
    y: Float[ndarray, "length d_model"],
    z: Float[ndarray, "keys d_model"],
    attention: Callable,
    cross_attention: Callable,
    feed_forward: Callable,
    norm_1: Callable,
    norm_c: Callable,
    norm_2: Callable,
    norm_position: str = "post",
) -> Float[ndarray, "length d_model"]:
    r"""A full decoder block; `attention` is causal, and `cross_attention(a, z)` has its queries from $a$.

    post-LN: $a = \mathrm{LN}_1(y + \mathrm{MHA}(y)), \quad c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)),
    \quad y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))$

    pre-LN: $a = y + \mathrm{MHA}(\mathrm{LN}_1(y)), \quad c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z),
    \quad y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))$

    Shapes: (length, d_model) and (keys, d_model) -> (length, d_model).
    Source: post-LN Vaswani et al. 2017, section 3.1; pre-LN Xiong et al. 2020.
    """
    if norm_position == "post":
        a = norm_1(y + attention(y))
        c = norm_c(a + cross_attention(a, z))
        return norm_2(c + feed_forward(c))
    a = y + attention(norm_1(y))
    c = a + cross_attention(norm_c(a), z)
    return c + feed_forward(norm_2(c))


def tied_logits(
    h: Float[ndarray, "length d_model"], E: Float[ndarray, "vocab d_model"], scaled: bool = False
) -> Float[ndarray, "length vocab"]:
    r"""How well word $v$ fits at $t$: $\ell_{tv} = \sum_j h_{tj} E_{vj}$, with the embedding table $E$.

    With `scaled` multiplied by $d_{model}^{-1/2}$, as in T5 v1.0.

    Shapes: (length, d_model) -> (length, vocab).
    Source: Vaswani et al. 2017, section 3.4; Press and Wolf 2017.
    """
    (length, d), vocab = h.shape, len(E)
    logits, scale = np.zeros((length, vocab)), 1 / sqrt(d) if scaled else 1.0
    for t, v in np.ndindex(length, vocab):
        logits[t, v] = scale * sum(h[t, j] * E[v, j] for j in range(d))
    return logits
