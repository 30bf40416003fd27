r"""Where a token stands, in torch: waves that are added to embeddings, buckets of distances."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sinusoidal_positions(
    length: int, d_model: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "length d_model"]:
    r"""$PE_{pos,2i} = \sin(pos / 10000^{2i/d})$, $PE_{pos,2i+1} = \cos(pos / 10000^{2i/d})$.

    Shapes: (length, d_model).  Source: Vaswani et al. 2017, section 3.5.
    """
    pos = torch.arange(length, dtype=torch.float64).unsqueeze(1)  # (length, 1)
    two_i = torch.arange(0, d_model, 2, dtype=torch.float64)
    angle = pos / 10000 ** (two_i / d_model)  # (length, ceil(d / 2))
    table = torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)  # sin, cos, sin, cos ...
    return table[:, :d_model].to(dtype)


def relative_buckets(
    queries: int, keys: int, n_buckets: int, max_distance: int, bidirectional: bool
) -> Int[Tensor, "queries keys"]:
    r"""Distances $r = j - i$ from query to key, sorted into buckets: near ones alone, far ones together.

    Of the $n$ buckets for one direction the first half hold one distance each, the others grow
    like a logarithm up to `max_distance`; what is farther is in the last.

    $$b(r) = |r| \ \text{ if } |r| < \tfrac n2, \ \text{ else } \
    \min\!\left(n - 1,\ \tfrac n2 + \left\lfloor \frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}
    \cdot \tfrac n2 \right\rfloor\right)$$

    Bidirectional: half of all buckets for the keys before the query, half for those behind.
    Causal: all for the keys before, and those behind, which are hidden, are in bucket 0. With
    fewer queries than keys the queries are the last positions.

    Shapes: (queries, keys).  Source: Raffel et al. 2020, section 2.1, and its code.
    """
    i = torch.arange(keys - queries, keys).unsqueeze(1)
    r = torch.arange(keys) - i  # (queries, keys)
    n = n_buckets // 2 if bidirectional else n_buckets
    first = n * (r > 0) if bidirectional else 0
    r = r.abs() if bidirectional else (-r).clamp(min=0)
    # In float32, as the checkpoints were trained: rounding decides where a bucket ends.
    far = torch.log(r.clamp(min=1) / (n / 2)) / math.log(max_distance / (n / 2)) * (n / 2)
    far = (n // 2 + far.long()).clamp(max=n - 1)
    return first + torch.where(r < n // 2, r, far)
