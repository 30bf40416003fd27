r"""The same formulas in torch, for batches, twice.

`FORMULA` writes each one out with elementary operations, in the order of the formula: the set to
read and to step through. `FUSED` calls torch's own kernels: the set to train with. A config names
one of them (`TransformerConfig(ops="fused")`); the ledger proves that they agree.

Shapes: `...` stands for any leading axes. A mask `keep` is boolean, True = may attend,
broadcastable to (..., queries, keys); a query that may attend to nothing gets zeros, and finite
gradients.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .adamw import adamw_step as adamw_step
from .positions import relative_buckets as relative_buckets
from .positions import sinusoidal_positions as sinusoidal_positions

Keep = Bool[Tensor, "..."] | None
Bias = Float[Tensor, "..."] | None

# Up to this many keys torch's matmul and softmax kernels beat its fused attention on a CPU
# (tests/benchmarks/attention.py measures where they cross).
FEW_KEYS = 256


# --- FORMULA: written out ---------------------------------------------------------------------


def softmax(scores: Float[Tensor, "... keys"], keep: Keep = None) -> Float[Tensor, "... keys"]:
    r"""$\mathrm{softmax}(s)_j = e^{s_j} / \sum_{m \in \text{keep}} e^{s_m}$ over the last axis.

    Shapes: (..., keys) -> the same.  Source: Vaswani et al. 2017, section 3.2.1.
    """
    if keep is not None:
        scores = scores.masked_fill(~keep, -math.inf)
    top = scores.detach().amax(-1, keepdim=True)
    empty = top == -math.inf  # nothing kept
    top = top.masked_fill(empty, 0.0)  # avoids -inf - (-inf)
    e = torch.exp(scores - top)
    total = e.sum(-1, keepdim=True)
    return e / total.masked_fill(empty, 1.0)  # 0 / 1, not 0 / 0


def scaled_scores(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    scale: float | None = None,
) -> Float[Tensor, "... queries keys"]:
    r"""$QK^\top / \sqrt{d_k}$: how well each key matches each query; or $QK^\top$ times `scale`.

    Shapes: (..., queries, d_k), (..., keys, d_k) -> (..., queries, keys).
    Source: Vaswani et al. 2017, equation 1.
    """
    return Q @ K.mT * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)


def attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    keep: Keep = None,
    dropout: float = 0.0,
    bias: Bias = None,
    scale: float | None = None,
    causal: bool = False,
) -> Float[Tensor, "... queries d_v"]:
    r"""$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}(QK^\top / \sqrt{d_k} + B)\, V$.

    The paper's has no $B$; relative positions are one (`relative_buckets`).

    Args:
        scale: what to multiply the scores by instead of $1 / \sqrt{d_k}$.
        causal: hide the keys later than the query, beside what `keep` hides.

    Shapes: (..., queries, d_k), (..., keys, d_k), (..., keys, d_v) -> (..., queries, d_v); the bias
    broadcasts to (..., queries, keys).
    Source: Vaswani et al. 2017, equation 1; the bias Raffel et al. 2020, section 2.1.
    Reference: `F.scaled_dot_product_attention`.
    """
    scores = scaled_scores(Q, K, scale)
    if bias is not None:
        scores = scores + bias  # (..., queries, keys)
    weights = softmax(scores, visible(keep, causal, Q.shape[-2], K.shape[-2], Q.device))
    return inverted_dropout(weights, dropout) @ V


def visible(
    keep: Keep, causal: bool, queries: int, keys: int, device: torch.device | None = None
) -> Keep:
    r"""`keep`, and when causal $j \le i + (\text{keys} - \text{queries})$: no key later than its query.

    With fewer queries than keys the queries are the last positions.

    Shapes: (..., queries, keys).  Source: Vaswani et al. 2017, section 3.2.3.
    """
    if not causal or queries == 1:  # the last position sees all
        return keep
    past = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return past if keep is None else keep & past


def layer_norm(
    x: Float[Tensor, "... d_model"],
    gamma: Float[Tensor, "d_model"],
    beta: Float[Tensor, "d_model"],
    eps: float,
) -> Float[Tensor, "... d_model"]:
    r"""$\mathrm{LayerNorm}(x) = \gamma \odot (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$.

    Shapes: (..., d_model) -> the same.  Source: Ba, Kiros and Hinton 2016.
    Reference: `F.layer_norm`.
    """
    mu = x.mean(-1, keepdim=True)
    variance = ((x - mu) ** 2).mean(-1, keepdim=True)  # divides by d, not d - 1
    return gamma * (x - mu) / torch.sqrt(variance + eps) + beta


def rms_norm(
    x: Float[Tensor, "... d_model"], gamma: Float[Tensor, "d_model"], eps: float
) -> Float[Tensor, "... d_model"]:
    r"""$\mathrm{RMSNorm}(x) = \gamma \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}$.

    Shapes: (..., d_model) -> the same.  Source: Zhang and Sennrich 2019.
    Reference: `F.rms_norm`.
    """
    return gamma * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\max(0, x)$.  Source: Vaswani et al. 2017, equation 2.  Reference: `F.relu`."""
    return x * (x > 0)


def gelu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\frac x2 (1 + \mathrm{erf}(x / \sqrt2))$.

    Source: Hendrycks and Gimpel 2016.  Reference: `F.gelu`.
    """
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\frac x2 (1 + \tanh[\sqrt{2/\pi}(x + 0.044715 x^3)])$.

    Source: Hendrycks and Gimpel 2016.  Reference: `F.gelu(approximate="tanh")`.
    """
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def cross_entropy(
    logits: Float[Tensor, "examples classes"],
    targets: Int[Tensor, "examples"],
    ignore: int = -100,
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    r"""$L = -\frac1N \sum_n \sum_c q_{nc} \log p_{nc}$ over the targets that are not `ignore`.

    $q$ is one-hot, smoothed to $(1-\alpha)\,q + \alpha / C$. No target at all: 0, where torch says
    NaN.

    Shapes: (examples, classes), (examples) -> a number, in nats.
    Source: article, section 3.2; Szegedy et al. 2016, section 7.  Reference: `F.cross_entropy`.
    """
    counts = targets != ignore
    top = logits.detach().amax(-1, keepdim=True)
    log_p = logits - top - torch.log(torch.exp(logits - top).sum(-1, keepdim=True))
    at_target = log_p.gather(-1, targets.where(counts, 0).unsqueeze(-1)).squeeze(-1)
    loss = -(1 - label_smoothing) * at_target - label_smoothing * log_p.mean(-1)
    return (loss * counts).sum() / counts.sum().clamp(min=1)


# --- FUSED: torch's kernels -------------------------------------------------------------------


def fused_softmax(
    scores: Float[Tensor, "... keys"], keep: Keep = None
) -> Float[Tensor, "... keys"]:
    """`softmax` by torch's kernel, in float32 at least: in 16 bits it is less exact, and slower."""
    dtype = scores.dtype
    scores = scores.to(torch.promote_types(dtype, torch.float32))
    if keep is None:
        return torch.softmax(scores, -1).to(dtype)
    some = keep.any(-1, keepdim=True)
    # A query without any key is let see all of them, and zeroed afterwards: no NaN on the way.
    # Adding a small broadcast mask is cheaper than filling the scores.
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
    """`attention` by the faster of torch's ways: few keys on a CPU, or its fused kernel."""
    queries, keys = Q.shape[-2], K.shape[-2]
    # No mask to be stored: at best causality, which a single query, the last, does not need.
    bare = keep is None and bias is None and (not causal or queries in (1, keys))
    writing = bare and queries == 1 and not Q.requires_grad  # fused is then faster at any length
    if keys <= FEW_KEYS and Q.device.type == "cpu" and not writing:
        return few_keys_attention(Q, K, V, keep, dropout, bias, scale, causal)
    options: dict[str, Any] = dict(dropout_p=dropout, scale=scale)
    if bare:
        return F.scaled_dot_product_attention(Q, K, V, is_causal=causal and queries > 1, **options)
    mask = visible(keep, causal, queries, keys, Q.device)
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, **options)


def few_keys_attention(
    Q: Float[Tensor, "... queries d_k"],
    K: Float[Tensor, "... keys d_k"],
    V: Float[Tensor, "... keys d_v"],
    keep: Keep = None,
    dropout: float = 0.0,
    bias: Bias = None,
    scale: float | None = None,
    causal: bool = False,
) -> Float[Tensor, "... queries d_v"]:
    """`attention` by torch's matmul and softmax; the scores are stored, so only for few keys."""
    scores = (Q * (1 / math.sqrt(Q.shape[-1]) if scale is None else scale)) @ K.mT
    if bias is not None:
        scores = scores + bias
    weights = fused_softmax(scores, visible(keep, causal, Q.shape[-2], K.shape[-2], Q.device))
    return inverted_dropout(weights, dropout) @ V


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


class Ops(NamedTuple):
    """One set of operations; a config chooses which."""

    softmax: Callable[..., Tensor]
    attention: Callable[..., Tensor]
    layer_norm: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    relu: Callable[..., Tensor]
    gelu: Callable[..., Tensor]
    gelu_tanh: Callable[..., Tensor]
    cross_entropy: Callable[..., Tensor]


FORMULA = Ops(softmax, attention, layer_norm, rms_norm, relu, gelu, gelu_tanh, cross_entropy)
FUSED = Ops(
    fused_softmax,
    fused_attention,
    fused_layer_norm,
    fused_rms_norm,
    F.relu,
    F.gelu,
    fused_gelu_tanh,
    fused_cross_entropy,
)
OPS = {"formula": FORMULA, "fused": FUSED}


# --- One version only -------------------------------------------------------------------------


def inverted_dropout(x: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    r"""Zero each entry with probability $p$, multiply the others by $1/(1-p)$: the mean stays.

    One 64-bit random number decides four entries, 16 bits each, so $p$ is met to 1/65536. On a CPU
    drawing the mask is the cost of dropout, and this makes it several times cheaper than
    `F.dropout` (tests/benchmarks/training_step.py).

    Shapes: (...) -> the same.  Source: Srivastava et al. 2014; the scaling at training time is
    the usual "inverted" form.
    """
    dropped = round(p * 65536)  # of the 65536 values that 16 bits have
    if dropped == 0:
        return x
    n = x.numel()
    bits = torch.empty((n + 3) // 4, dtype=torch.int64, device=x.device).random_(-(2**63), None)
    lanes = bits.view(torch.int16)[:n].view(x.shape)  # uniform on -32768 ... 32767
    threshold = dropped - 32769  # fits into 16 bits, also at p near 1
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.gt(lanes, threshold, out=kept)  # 0 or 1 in x's type; through booleans: twice as long
    return x * kept.mul_(1 / (1 - p))
