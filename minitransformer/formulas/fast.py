r"""The formulas of `ops` by torch's own kernels: the set to train with.

Shapes and arguments as in `ops`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .masks import Bias, Keep, inverted_dropout, visible

# Up to this many keys torch's matmul and softmax kernels beat its fused attention on a CPU
# (tests/benchmarks/attention.py measures where they cross).
FEW_KEYS = 256


def fused_softmax(
    scores: Float[Tensor, "... keys"], keep: Keep = None
) -> Float[Tensor, "... keys"]:
    """`softmax` by torch's kernel, in at least float32: 16 bits are less exact, and slower."""
    dtype = scores.dtype
    scores = scores.to(torch.promote_types(dtype, torch.float32))
    if keep is None:
        return torch.softmax(scores, -1).to(dtype)
    some = keep.any(-1, keepdim=True)
    # A query with no visible key temporarily attends to all keys and is zeroed afterwards, so no NaN
    # ever arises. Adding a small broadcast mask is cheaper than filling the scores.
    blocked = torch.zeros(keep.shape, dtype=scores.dtype, device=scores.device)
    weights = torch.softmax(scores + blocked.masked_fill(~keep & some, -math.inf), -1).to(dtype)
    return weights if some.all() else weights * some


def fused_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    keep: Keep = None,
    dropout: float = 0.0,
    bias: Bias = None,
    scale: float | None = None,
    causal: bool = False,
) -> Float[Tensor, "... queries d_v"]:
    """`attention` by the faster of two ways: `few_keys_attention` on a CPU, or torch's fused kernel."""
    queries, keys = Q.shape[-2], K.shape[-2]
    # No mask to store: at most causality, which a single query, the last one, does not need.
    bare = keep is None and bias is None and (not causal or queries in (1, keys))
    writing = bare and queries == 1 and not Q.requires_grad  # then fused is faster at any length
    few = keys <= FEW_KEYS and Q.device.type == "cpu" and not writing
    options: dict[str, Any] = dict(dropout_p=dropout, scale=scale)
    if bare and not few:
        return F.scaled_dot_product_attention(Q, K, V, is_causal=causal and queries > 1, **options)
    mask = visible(keep, causal, queries, keys, Q.device)
    if few:
        return few_keys_attention(Q, K, V, mask, dropout, bias, scale)
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, **options)


def few_keys_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Keep, dropout: float, bias: Bias, scale: float | None
) -> Tensor:
    """`attention` by torch's matmul and softmax; it stores the scores, so it is for few keys only."""
    scores = (Q * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)) @ K.mT
    if bias is not None:
        scores = scores + bias
    return inverted_dropout(fused_softmax(scores, keep), dropout) @ V


def fused_layer_norm(
    x: Float[Tensor, "... d_model"],
    gamma: Float[Tensor, "d_model"],
    beta: Float[Tensor, "d_model"],
    eps: float,
) -> Float[Tensor, "... d_model"]:
    """`layer_norm` by torch's kernel."""
    return F.layer_norm(x, gamma.shape, gamma, beta, eps)


def fused_rms_norm(
    x: Float[Tensor, "... d_model"], gamma: Float[Tensor, "d_model"], eps: float
) -> Float[Tensor, "... d_model"]:
    """`rms_norm` by torch's kernel."""
    return F.rms_norm(x, gamma.shape, gamma, eps)


def fused_gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`gelu_tanh` by torch's kernel."""
    return F.gelu(x, approximate="tanh")


def fused_cross_entropy(
    logits: Float[Tensor, "examples classes"],
    targets: Int[Tensor, "examples"],
    ignore: int = -100,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """`cross_entropy` by torch's kernel; 0 where every target is ignored."""
    total = F.cross_entropy(
        logits, targets, ignore_index=ignore, label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (targets != ignore).sum().clamp(min=1)
