"""The ledger's rows for single formulas: softmax, attention, norms, activations, loss, optimiser."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..formulas import by_hand, by_hand_decoder, decoder_gradients, gradients, ops
from .draws import (
    D_K,
    D_V,
    HUGE,
    KEYS,
    MASKS,
    draw,
    draw_adamw,
    draw_attention,
    draw_norm,
    draw_softmax,
)  # fmt: skip
from .formula import Formula, Inputs, both, per_example

Keep = Tensor | None

# --- Linear map, softmax, attention -------------------------------------------------------------


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x @ W + b


def torch_linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, W.T, b)


def torch_softmax(scores: Tensor, keep: Keep) -> Tensor:
    if keep is None:
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(~keep, -torch.inf), -1).nan_to_num(0.0)


@wraps(by_hand.attention)
def attention_by_hand(**inputs: Any) -> np.ndarray:
    return by_hand.attention(**inputs)[0]


def torch_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Keep, bias: Keep = None, scale: float | None = None
) -> Tensor:
    mask = keep
    if bias is not None:
        mask = bias if keep is None else torch.where(keep, bias, -torch.inf)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, scale=scale)


def draw_biased_attention(rng: np.random.Generator, case: str) -> Inputs:
    bias = draw("bias: 1 heads queries keys", scale=0.7)  # one for the whole batch
    return draw_attention(rng, case) | bias(rng, case)


def head(
    kernels: str, x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Keep
) -> Tensor:
    return ops.OPS[kernels].attention(x @ W_Q, z @ W_K, z @ W_V, keep)


def torch_head(x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Keep) -> Tensor:
    Q, K, V = F.linear(x, W_Q.T), F.linear(z, W_K.T), F.linear(z, W_V.T)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


# --- Norms, activations, positions --------------------------------------------------------------


def torch_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gamma, beta, eps)


def draw_rms_norm(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_norm(rng, case)
    del inputs["beta"]
    return inputs


def torch_rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gamma, eps)


def activation(name: str, title: str, latex: str, source: str, reference: Callable) -> Formula:
    return Formula(
        id=name,
        title=title,
        latex=latex,
        source=source,
        # Uniform: the two kinds of GELU differ most between 2 and 3.
        draw=lambda rng, case: {"x": 3 * rng.uniform(-1, 1, (KEYS, D_V))},
        by_hand=by_hand.ACTIVATIONS[name],
        ours=getattr(ops.FORMULA, name),
        fused=of_x(getattr(ops.FUSED, name)),
        reference=of_x(reference),
        backward_by_hand=gradients.ACTIVATIONS[name][1],
    )


def of_x(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """torch calls the argument `input`; the formula calls it `x`."""
    return wraps(f)(lambda x: f(x))


def rotating_positions(length: int, d_model: int) -> Tensor:
    """An independent witness: turn a complex number by a fixed angle from row to row."""
    frequency = 1e4 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    turn = torch.polar(torch.ones_like(frequency), frequency)
    z = torch.cumprod(torch.cat([torch.ones_like(turn)[None], turn.repeat(length - 1, 1)]), 0)
    return torch.stack([z.imag, z.real], -1).flatten(1)[:, :d_model]


def bucketized(
    queries: int, keys: int, n_buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """An independent witness: compute where each bucket begins, and search among the beginnings."""
    r = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
    half = n_buckets // 4 if bidirectional else n_buckets // 2
    ends = half * (max_distance / half) ** (torch.arange(half, dtype=torch.float64) / half)
    begins = torch.cat([torch.arange(1, half), torch.ceil(ends - 1e-9).long()])
    distance = r.abs() if bidirectional else -r
    behind = (r > 0) * 2 * half if bidirectional else 0
    return torch.bucketize(distance, begins, right=True) + behind


# --- Loss and optimiser -------------------------------------------------------------------------


def draw_cross_entropy(rng: np.random.Generator, case: str) -> Inputs:
    targets = rng.integers(0, D_K, KEYS)
    if case == "ignored positions":
        targets[::3] = -100
    smoothing = 0.15 if case == "label smoothing" else 0.0
    logits = 3 * rng.standard_normal((KEYS, D_K))
    return {"logits": logits, "targets": targets, "ignore": -100, "label_smoothing": smoothing}


def torch_cross_entropy(
    logits: Tensor, targets: Tensor, ignore: int, label_smoothing: float
) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=ignore, label_smoothing=label_smoothing)


def torch_adamw(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta_1: float,
    beta_2: float, eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parameter = torch.nn.Parameter(theta.clone())
    parameter.grad = g.clone()
    betas = (beta_1, beta_2)
    optimizer = torch.optim.AdamW([parameter], lr, betas, eps, weight_decay, foreach=False)
    averages = {"exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    optimizer.state[parameter] = {"step": torch.tensor(float(t - 1)), **averages}
    optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


# --- The rows -----------------------------------------------------------------------------------

ROWS = (
    Formula(
        id="linear",
        title="linear map",
        latex=r"y = xW + b",
        source="Vaswani et al. 2017, section 3.2.2, the projections",
        draw=draw("x: batch keys d_v, W: d_v d_k, b: d_k"),
        by_hand=per_example(by_hand.linear),
        ours=linear,
        reference=torch_linear,
        backward_by_hand=gradients.linear_backward,
    ),
    Formula(
        id="softmax",
        title="softmax",
        latex=r"\mathrm{softmax}(s)_j = \frac{e^{s_j}}{\sum_m e^{s_m}}",
        source="Vaswani et al. 2017, section 3.2.1",
        draw=draw_softmax,
        by_hand=per_example(by_hand.softmax, axes=2),
        ours=ops.softmax,
        fused=ops.fused_softmax,
        reference=torch_softmax,
        backward_by_hand=gradients.softmax_backward,
        cases=(*MASKS, HUGE),
    ),
    Formula(
        id="attention",
        title="scaled dot-product attention",
        latex=r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draw_attention,
        by_hand=per_example(attention_by_hand, axes=2),
        ours=ops.attention,
        fused=ops.fused_attention,
        reference=torch_attention,
        backward_by_hand=gradients.attention_backward,
        cases=(*MASKS, HUGE),
    ),
    Formula(
        id="biased_attention",
        title="attention with a bias",
        latex=r"\mathrm{softmax}(c\,QK^\top + B)\,V",
        source="Raffel et al. 2020, section 2.1",
        draw=draw_biased_attention,
        by_hand=per_example(attention_by_hand, axes=2),
        ours=ops.attention,
        fused=ops.fused_attention,
        reference=torch_attention,
        backward_by_hand=decoder_gradients.biased_attention_backward,
        cases=MASKS,
    ),
    Formula(
        id="head",
        title="one head",
        latex=r"\mathrm{head}_i = \mathrm{Attention}(x W_i^Q,\ z W_i^K,\ z W_i^V)",
        source="Vaswani et al. 2017, section 3.2.2; article, section 4",
        draw=draw(
            "x: batch queries d_model, z: batch keys d_model, W_Q W_K: d_model d_k, "
            "W_V: d_model d_v, keep: batch queries keys"
        ),
        by_hand=per_example(by_hand.head),
        **both(head),
        reference=torch_head,
        backward_by_hand=gradients.head_backward,
        cases=MASKS,
    ),
    Formula(
        id="layer_norm",
        title="LayerNorm",
        latex=r"\mathrm{LayerNorm}(x) = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta",
        source="Ba, Kiros and Hinton 2016, equations 3 and 4",
        draw=draw_norm,
        by_hand=per_example(by_hand.layer_norm),
        ours=ops.layer_norm,
        fused=ops.fused_layer_norm,
        reference=torch_layer_norm,
        backward_by_hand=gradients.layer_norm_backward,
        cases=("plain", "tiny"),
    ),
    Formula(
        id="rms_norm",
        title="RMSNorm",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\frac1d \sum_j x_j^2 + \epsilon}}",
        source="Zhang and Sennrich 2019, equation 4",
        draw=draw_rms_norm,
        by_hand=per_example(by_hand.rms_norm),
        ours=ops.rms_norm,
        fused=ops.fused_rms_norm,
        reference=torch_rms_norm,
        backward_by_hand=gradients.rms_norm_backward,
        cases=("plain", "tiny"),
    ),
    activation(
        "relu",
        "ReLU",
        r"\mathrm{ReLU}(x) = \max(0, x)",
        "Vaswani et al. 2017, equation 2",
        F.relu,
    ),
    activation(
        "gelu",
        "GELU",
        r"\mathrm{GELU}(x) = \frac x2 \left(1 + \mathrm{erf}\frac{x}{\sqrt2}\right)",
        "Hendrycks and Gimpel 2016, section 2",
        F.gelu,
    ),
    activation(
        "gelu_tanh",
        "GELU, tanh",
        r"\frac x2 \left(1 + \tanh\left[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right]\right)",
        "Hendrycks and Gimpel 2016, section 2",
        partial(F.gelu, approximate="tanh"),
    ),
    Formula(
        id="sinusoidal_positions",
        title="sinusoidal positions",
        latex=r"PE_{pos,2i} = \sin\frac{pos}{10000^{2i/d}},\quad PE_{pos,2i+1} = \cos\frac{pos}{10000^{2i/d}}",
        source="Vaswani et al. 2017, section 3.5",
        draw=draw(length=23, d_model=lambda case: 16 if case == "even" else 9),
        by_hand=by_hand.sinusoidal_positions,
        ours=partial(ops.sinusoidal_positions, dtype=torch.float64),
        reference=rotating_positions,
        cases=("even", "odd"),
    ),
    Formula(
        id="relative_buckets",
        title="buckets of distances",
        latex=r"b(r) = \min\left(n-1,\ \frac n2 + \left\lfloor\frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}\cdot\frac n2\right\rfloor\right)",
        source="Raffel et al. 2020, section 2.1",
        draw=draw(
            queries=lambda case: 40 if case == "a cache" else 150,
            keys=150,
            n_buckets=lambda case: 32 if case == "bidirectional" else 20,
            max_distance=lambda case: 128 if case == "bidirectional" else 90,
            bidirectional=lambda case: case == "bidirectional",
        ),
        by_hand=by_hand_decoder.relative_buckets,
        ours=ops.relative_buckets,
        reference=bucketized,
        cases=("bidirectional", "causal", "a cache"),
    ),
    Formula(
        id="cross_entropy",
        title="cross-entropy",
        latex=r"L = -\frac1N \sum_n \sum_c q_{nc} \log \mathrm{softmax}(\ell_n)_c",
        source="article, section 3.2; Szegedy et al. 2016, section 7",
        draw=draw_cross_entropy,
        by_hand=by_hand.cross_entropy,
        ours=ops.cross_entropy,
        fused=ops.fused_cross_entropy,
        reference=torch_cross_entropy,
        backward_by_hand=gradients.cross_entropy_backward,
        cases=("plain", "ignored positions", "label smoothing"),
    ),
    Formula(
        id="adamw",
        title="one AdamW step",
        latex=r"\theta \leftarrow \theta - \eta\lambda\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}",
        source="Loshchilov and Hutter 2019, algorithm 2",
        draw=draw_adamw,
        by_hand=by_hand.adamw_step,
        ours=ops.adamw_step,
        reference=torch_adamw,
        cases=("first step", "step 12"),
        no_gradient=("theta", "g", "m", "v"),
    ),
)
