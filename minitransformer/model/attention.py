r"""Attention as modules, and the masks.

One convention everywhere: a mask `keep` is boolean, True = may attend, broadcastable to
(batch, heads, queries, keys). That is `F.scaled_dot_product_attention`'s; `nn.MultiheadAttention`
has the opposite one.
"""

from collections.abc import Iterator
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..formulas import ops
from ..formulas.ops import operations
from .kv_cache import KeyValues
from .layers import starts
from .shapes import Bias, Mask, Memory, Queries


def padding_mask(
    ids: Int[Tensor, "batch keys"], pad_id: int | None
) -> Bool[Tensor, "batch 1 1 keys"]:
    """True where the key is a real token: padding is hidden as a *key* (a column), never as a query.

    Shapes: (batch, keys) -> (batch, 1, 1, keys).

    >>> padding_mask(torch.tensor([[7, 8, 0]]), pad_id=0)[0, 0, 0].tolist()
    [True, True, False]
    """
    return (ids != (-1 if pad_id is None else pad_id))[:, None, None, :]  # no id is -1


def token_positions(keep: Bool[Tensor, "batch 1 1 keys"]) -> Int[Tensor, "batch keys"]:
    """The position of each token when only real ones count, for prompts padded on the left.

    Shapes: (batch, 1, 1, keys) -> (batch, keys).

    >>> token_positions(padding_mask(torch.tensor([[0, 0, 7, 8]]), pad_id=0)).tolist()
    [[0, 0, 0, 1]]
    """
    return (keep[:, 0, 0].long().cumsum(-1) - 1).clamp(min=0)


def causal_mask(queries: int, keys: int | None = None) -> Bool[Tensor, "queries keys"]:
    r"""True where the key is not later than the query.

    With fewer queries than keys (a cache) the queries are the *last* positions:
    query $i$ sees key $j$ when $j \le i + (\text{keys} - \text{queries})$.

    Shapes: (queries, keys).  Source: Vaswani et al. 2017, section 3.2.3.

    >>> causal_mask(2, 3).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    keys = queries if keys is None else keys
    if not 1 <= queries <= keys:
        raise ValueError(
            f"a causal mask needs 1 <= queries <= keys, got {queries} queries and {keys} keys"
        )
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def check_keep(keep: Tensor | None, shape: tuple[int, ...]) -> None:
    """Reject a mask that does not fit, before broadcasting hides the mistake.

    Raises: TypeError unless it is boolean, ValueError unless it broadcasts to `shape`.
    """
    if keep is None:
        return
    if keep.dtype is not torch.bool:
        raise TypeError(
            f"keep must be a boolean mask (True = may attend), got {keep.dtype}; a 0/1 mask becomes "
            "one with keep.bool(), an additive one (0 / -inf) with keep == 0"
        )
    try:
        fits = torch.broadcast_shapes(tuple(keep.shape), shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"keep of shape {tuple(keep.shape)} does not broadcast to (..., queries, keys) = "
            f"{shape}; padding_mask(ids, pad_id) gives (batch, 1, 1, keys), "
            "causal_mask(n) gives (n, n)"
        )


def scaled_dot_product_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    keep: Mask = None,
    bias: Bias = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "... queries d_v"], Float[Tensor, "... queries keys"]]:
    r"""Each query averages the values, weighted by how well its key matches; returns the weights too.

    $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right) V$$

    Args:
        keep: True = may attend, broadcastable to (..., queries, keys). A query that may attend to
            nothing gets zero weights and a zero output.
        bias: added to the scores, broadcastable to (..., queries, keys); not in the formula.
        scale: the factor of the scores, by default $1 / \sqrt{d_k}$.

    Shapes: (..., queries, d_k), (..., keys, d_k), (..., keys, d_v) -> (..., queries, d_v) and
    (..., queries, keys).
    Raises: TypeError, ValueError as `check_keep`; ValueError when Q, K and V do not fit together.
    Source: Vaswani et al. 2017, equation 1.  Reference: `F.scaled_dot_product_attention`.

    >>> Q, K, V = torch.zeros(1, 2), torch.zeros(2, 2), torch.tensor([[1.0], [3.0]])
    >>> scaled_dot_product_attention(Q, K, V)[0].tolist()  # equal scores: the plain mean
    [[2.0]]
    """
    if Q.shape[-1] != K.shape[-1] or K.shape[-2] != V.shape[-2]:
        raise ValueError(
            "Q and K must share d_k, K and V their number of keys; got "
            f"Q {tuple(Q.shape)}, K {tuple(K.shape)}, V {tuple(V.shape)}"
        )
    scores = ops.scaled_scores(Q, K, scale)
    if bias is not None:
        scores = scores + bias
    check_keep(keep, tuple(scores.shape))
    weights = ops.softmax(scores, keep)
    return weights @ V, weights


def split_heads(
    x: Float[Tensor, "batch length wide"], n_heads: int
) -> Float[Tensor, "batch heads length d_k"]:
    r"""Cut the last axis into heads: columns $i d_k$ to $(i+1) d_k$ belong to head $i$.

    Shapes: (batch, length, h d_k) -> (batch, h, length, d_k).
    """
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(
    heads: Float[Tensor, "batch heads length d_k"],
) -> Float[Tensor, "batch length wide"]:
    r"""$\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)$, the way back from `split_heads`.

    Shapes: (batch, h, length, d_k) -> (batch, length, h d_k).
    """
    return heads.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    r"""Several attentions side by side, each in its own subspace, mixed by one last map.

    $$\mathrm{MultiHeadAttention}(x, z) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O
    \qquad \mathrm{head}_i = \mathrm{Attention}(x W_i^Q,\ z W_i^K,\ z W_i^V)$$

    The $h$ matrices $W_i^Q$ stand side by side in one linear map `W_Q`, and so on.

    Args:
        n_heads: $h$; must divide `d_model`, unless `d_head` is given.
        bias: whether the four maps have biases (not in the formula; in BERT and GPT-2).
        dropout: probability of dropping an attention weight in training.
        d_head: $d_k$, by default $d_{model} / h$.
        scale: whether scores are divided by $\sqrt{d_k}$.

    Shapes: (batch, queries, d_model), (batch, keys, d_model) -> (batch, queries, d_model).
    Raises: ValueError for heads that do not fit, or unknown ops.
    Source: Vaswani et al. 2017, section 3.2.2.  Reference: `nn.MultiheadAttention`.
    """

    def __init__(
        self, d_model: int, n_heads: int, bias: bool = True, dropout: float = 0.0,
        ops: str = "fused", d_head: int | None = None, scale: bool = True,
    ):  # fmt: skip
        super().__init__()
        if d_head is None and d_model % n_heads:
            raise ValueError(
                f"n_heads={n_heads} does not divide d_model={d_model}; give another, or d_head"
            )
        wide = n_heads * (d_model // n_heads if d_head is None else d_head)
        self.n_heads, self.dropout, self.ops, self.f = n_heads, dropout, ops, operations(ops)
        self.scale = None if scale else 1.0  # None: 1 / sqrt(d_k)
        self.W_Q = starts(nn.Linear(d_model, wide, bias), "query")
        self.W_K = nn.Linear(d_model, wide, bias)
        self.W_V = nn.Linear(d_model, wide, bias)
        self.W_O = starts(nn.Linear(wide, d_model, bias), "residual")

    def forward(
        self, x: Queries, memory: Memory | None = None, keep: Mask = None, bias: Bias = None,
        causal: bool = False, cache: KeyValues | None = None,
    ) -> Queries:  # fmt: skip
        """Attend from `x` to `memory`, or to `x` itself without one.

        Args:
            bias: added to the scores, broadcastable to (batch, heads, queries, keys).
            causal: hide the keys later than the query, in addition to what `keep` hides.
            cache: keys and values of earlier calls, to which the new ones are added.

        Raises: TypeError, ValueError as `check_keep`.
        """
        if cache is None:
            Q, K, V = self.project(x, memory, keep)
        else:
            Q, K, V = self.project_cached(x, memory, keep, cache)
        dropout = self.dropout if self.training else 0.0
        heads = self.f.attention(Q, K, V, keep, dropout, bias, self.scale, causal)
        return self.W_O(merge_heads(heads))

    def weights(
        self, x: Queries, memory: Memory | None = None, keep: Mask = None, bias: Bias = None,
        causal: bool = False, cache: None = None,
    ) -> Float[Tensor, "batch heads queries keys"]:  # fmt: skip
        """The weights that `forward` averages with; no cache is read, since reading would change it."""
        Q, K, V = self.project(x, memory, keep)
        keep = ops.visible(keep, causal, Q.shape[2], K.shape[2], x.device)
        return scaled_dot_product_attention(Q, K, V, keep, bias, self.scale)[1]

    def project(self, x: Tensor, memory: Tensor | None, keep: Mask) -> Iterator[Tensor]:
        """Queries of x, keys and values of memory or x, cut into heads."""
        z = x if memory is None else memory
        check_keep(keep, (len(x), self.n_heads, x.shape[1], z.shape[1]))
        return (split_heads(y, self.n_heads) for y in (self.W_Q(x), self.W_K(z), self.W_V(z)))

    def project_cached(
        self, x: Tensor, memory: Tensor | None, keep: Mask, cache: KeyValues
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`project`, with the keys and values of the cache before the new ones."""
        if memory is None:
            y = cache.project(x, self.W_Q, self.W_K, self.W_V)
            y = y.view(*x.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
            Q, (K, V) = y[0], cache.update(lambda: y[1:])
        else:
            split = partial(split_heads, n_heads=self.n_heads)
            Q = split(self.W_Q(x))
            maps = self.W_K, self.W_V
            K, V = cache.update(lambda: torch.stack([split(W(memory)) for W in maps]))
        check_keep(keep, (len(x), self.n_heads, x.shape[1], K.shape[2]))
        return Q, K, V


class RelativePositionBias(nn.Module):
    r"""A learned number per head and distance from query to key, added to the scores.

    $$B_{hij} = E_{b(j - i),\,h}$$

    A stack has one: the self-attention of every block adds the same bias.

    Shapes: (1, heads, queries, keys).
    Source: Raffel et al. 2020, section 2.1; the buckets $b$ are `ops.relative_buckets`.
    """

    def __init__(self, n_heads: int, n_buckets: int, max_distance: int, bidirectional: bool):
        super().__init__()
        self.max_distance, self.bidirectional = max_distance, bidirectional
        self.buckets = starts(nn.Embedding(n_buckets, n_heads), "buckets")

    def forward(self, queries: int, keys: int) -> Float[Tensor, "1 heads queries keys"]:
        """The bias for the last `queries` of `keys` positions."""
        E = self.buckets.weight
        b = ops.relative_buckets(queries, keys, len(E), self.max_distance, self.bidirectional)
        return E[b.to(E.device)].permute(2, 0, 1).unsqueeze(0)
