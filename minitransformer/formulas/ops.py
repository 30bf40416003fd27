r"""The same formulas in torch, for batches, written out with elementary operations.

There are two sets. `FORMULA` follows the formulas, to be read and stepped through; `FUSED` calls
torch's own kernels (`fast`) and is the one to train with. A config names one of them
(`TransformerConfig(ops="fused")`), and the ledger proves that they agree.

Shapes: `...` stands for any leading axes. A mask `keep` is boolean, True = may attend,
broadcastable to (..., queries, keys); a query that may attend to nothing gets zeros and finite
gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from . import fast
from .masks import Bias, Keep, inverted_dropout, visible

Array = TypeVar("Array", Tensor, np.ndarray)


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

    The bias $B$ is not in the paper; relative positions are one (`relative_buckets`).

    Args:
        scale: the factor of the scores, by default $1 / \sqrt{d_k}$.
        causal: hide the keys later than the query, in addition to what `keep` hides.

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

    Shapes: (..., d_model) -> the same.  Source: Zhang and Sennrich 2019.  Reference: `F.rms_norm`.
    """
    return gamma * x / torch.sqrt((x**2).mean(-1, keepdim=True) + eps)


def relu(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\max(0, x)$.  Source: Vaswani et al. 2017, equation 2.  Reference: `F.relu`."""
    return x.masked_fill(x <= 0, 0.0)  # not x * (x > 0), which is NaN at -∞


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

    $q$ is one-hot, smoothed to $(1-\alpha)\,q + \alpha / C$. Without any target the loss is 0, where
    torch gives NaN.

    Shapes: (examples, classes), (examples) -> a number, in nats.
    Source: article, section 3.2; Szegedy et al. 2016, section 7.  Reference: `F.cross_entropy`.
    """
    counts = targets != ignore
    top = logits.detach().amax(-1, keepdim=True)
    log_p = logits - top - torch.log(torch.exp(logits - top).sum(-1, keepdim=True))
    at_target = log_p.gather(-1, targets.where(counts, 0).unsqueeze(-1)).squeeze(-1)
    loss = -at_target
    if label_smoothing:  # not 0 times the logarithm of a probability of 0
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(-1)
    return loss.masked_fill(~counts, 0.0).sum() / counts.sum().clamp(min=1)


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

    Of the $n$ buckets for one direction the first half hold one distance each; the others grow
    logarithmically up to `max_distance`, and the last holds everything beyond.

    $$b(r) = |r| \ \text{ if } |r| < \tfrac n2, \ \text{ else } \
    \min\!\left(n - 1,\ \tfrac n2 + \left\lfloor \frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}
    \cdot \tfrac n2 \right\rfloor\right)$$

    Bidirectional: half of all buckets are for keys before the query, half for keys after it.
    Causal: all are for keys before it; later keys, which are hidden, are in bucket 0. With fewer
    queries than keys the queries are the last positions.

    Shapes: (queries, keys).  Source: Raffel et al. 2020, section 2.1, and its code.
    """
    i = torch.arange(keys - queries, keys).unsqueeze(1)
    r = torch.arange(keys) - i  # (queries, keys)
    n = n_buckets // 2 if bidirectional else n_buckets
    first = n * (r > 0) if bidirectional else 0
    r = r.abs() if bidirectional else (-r).clamp(min=0)
    # In float32, like the published checkpoints: rounding decides where a bucket ends.
    far = torch.log(r.clamp(min=1) / (n / 2)) / math.log(max_distance / (n / 2)) * (n / 2)
    far = (n // 2 + far.long()).clamp(max=n - 1)
    return first + torch.where(r < n // 2, r, far)


def adamw_step(
    theta: Array,
    g: Array,
    m: Array,
    v: Array,
    t: int,
    lr: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Array, Array, Array]:
    r"""Step $t$ of AdamW: $\theta \leftarrow \theta - \eta\lambda\theta - \eta\,\hat m/(\sqrt{\hat v}+\epsilon)$.

    For tensors and NumPy arrays alike; returns the new $\theta, m, v$.

    Shapes: all alike.  Source: Loshchilov and Hutter 2019, algorithm 2.
    Reference: `torch.optim.AdamW`, which training uses.
    """
    m = beta_1 * m + (1 - beta_1) * g
    v = beta_2 * v + (1 - beta_2) * g**2
    m_hat = m / (1 - beta_1**t)
    v_hat = v / (1 - beta_2**t)
    theta = theta - lr * weight_decay * theta - lr * m_hat / (v_hat**0.5 + eps)
    return theta, m, v


# --- The two sets -----------------------------------------------------------------------------


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


def check_input_of(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula, for the shapes that torch's operation takes, and with 16 bits computed in 32.

    In float16 a square overflows from 256 on.
    """

    @functools.wraps(formula)
    def operation(*args: Any, **options: Any) -> Tensor:
        x, *others = [a for a in (*args, *options.values()) if isinstance(a, Tensor)]
        if formula in (layer_norm, rms_norm) and x.shape[-1:] != others[0].shape:
            raise RuntimeError(f"x {tuple(x.shape)}, but the norm has width {len(others[0])}")
        if formula is cross_entropy and x.shape[:-1] != others[0].shape:
            raise ValueError(f"logits {tuple(x.shape)}, but targets {tuple(others[0].shape)}")
        dtype = functools.reduce(
            torch.promote_types, [a.dtype for a in (x, *others) if is_number(a)]
        )
        if dtype not in (torch.float16, torch.bfloat16):
            return formula(*args, **options)
        wide = {name: a.float() if is_number(a) else a for name, a in options.items()}
        return formula(*(a.float() if is_number(a) else a for a in args), **wide).to(dtype)

    return operation


def is_number(a: Any) -> bool:
    """Whether this is a tensor of numbers, not of ids or of a mask."""
    return isinstance(a, Tensor) and a.is_floating_point()


WRITTEN_OUT: tuple[Callable[..., Tensor], ...] = (
    softmax, attention, layer_norm, rms_norm, relu, gelu, gelu_tanh, cross_entropy,
)  # fmt: skip
FORMULA = Ops(*map(check_input_of, WRITTEN_OUT))
FUSED = Ops(
    fast.fused_softmax, fast.fused_attention, fast.fused_layer_norm, fast.fused_rms_norm,
    F.relu, F.gelu, fast.fused_gelu_tanh, fast.fused_cross_entropy,
)  # fmt: skip
OPS = {"formula": FORMULA, "fused": FUSED}


def operations(name: str) -> Ops:
    """The set of operations with this name.

    Raises: ValueError: an unknown set; the message lists the known ones.
    """
    if name not in OPS:
        raise ValueError(f"ops={name!r} is not known; choose one of {tuple(OPS)}")
    return OPS[name]
