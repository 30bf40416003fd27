"""The ledger's rows for single formulas: softmax, attention, norms, activations, loss, optimiser."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw

from ..formulas import by_hand, by_hand_decoder, decoder_gradients, gradients, ops
from . import draws
from .draws import ABOVE, D_K, D_V, HUGE, KEYS, MASKS, draw
from .formula import Formula, Inputs, both, per_example

# --- Our implementations, where a row arranges them ---------------------------------------------


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x @ W + b


def head(
    kernels: str, x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor | None
) -> Tensor:
    return ops.OPS[kernels].attention(x @ W_Q, z @ W_K, z @ W_V, keep)


# --- References ---------------------------------------------------------------------------------


def torch_softmax(scores: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(~keep, -torch.inf), -1).nan_to_num(0.0)


def torch_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None, bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:  # fmt: skip
    mask = keep
    if bias is not None:
        mask = bias if keep is None else torch.where(keep, bias, -torch.inf)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, scale=scale)


def torch_rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, gamma.shape, gamma, eps)


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


def torch_adamw(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, beta_1: float, beta_2: float,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    theta, m, v, steps_before = theta.clone(), m.clone(), v.clone(), torch.tensor(float(t - 1))
    adamw(
        [theta], [g], [m], [v], [], [steps_before], beta1=beta_1, beta2=beta_2, amsgrad=False,
        maximize=False, foreach=False, **options,
    )  # fmt: skip
    return theta, m, v


# --- The rows -----------------------------------------------------------------------------------


def draw_cross_entropy(rng: np.random.Generator, case: str) -> Inputs:
    targets = rng.integers(0, D_K, KEYS)
    if case == "ignored positions":
        targets[::3] = -100
    smoothing = 0.15 if case == "label smoothing" else 0.0
    logits = 3 * rng.standard_normal((KEYS, D_K))
    return {"logits": logits, "targets": targets, "ignore": -100, "label_smoothing": smoothing}


def activation(name: str, title: str, latex: str, source: str, reference: Callable) -> Formula:
    """The row of a function of one number; the two kinds of GELU differ most between 2 and 3."""
    fused = getattr(ops.FUSED, name)
    return Formula(
        id=name, title=title, source=source, latex=latex,
        draw=lambda rng, case: {"x": 3 * rng.uniform(-1, 1, (KEYS, D_V))},
        by_hand=by_hand.ACTIVATIONS[name], backward_by_hand=gradients.ACTIVATIONS[name][1],
        # torch calls the argument `input`; the formula calls it `x`.
        ours=getattr(ops.FORMULA, name), fused=wraps(fused)(lambda x: fused(x)),
        reference=wraps(reference)(lambda x: reference(x)),
    )  # fmt: skip


ROWS = (
    Formula(
        id="linear", title="linear map", latex=r"y = xW + b",
        source="Vaswani et al. 2017, section 3.2.2, the projections",
        draw=draw("x: batch keys d_v, W: d_v d_k, b: d_k"),
        by_hand=per_example(by_hand.linear), backward_by_hand=gradients.linear_backward,
        ours=linear, reference=lambda x, W, b: F.linear(x, W.T, b),
    ),
    Formula(
        id="softmax", title="softmax", source="Vaswani et al. 2017, section 3.2.1",
        latex=r"\mathrm{softmax}(s)_j = \frac{e^{s_j}}{\sum_m e^{s_m}}",
        draw=draws.draw_softmax, cases=(*MASKS, HUGE, ABOVE),
        by_hand=per_example(by_hand.softmax, axes=2), backward_by_hand=gradients.softmax_backward,
        ours=ops.softmax, fused=ops.FUSED.softmax, reference=torch_softmax,
    ),
    Formula(
        id="attention", title="scaled dot-product attention",
        latex=r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draws.draw_attention, cases=(*MASKS, HUGE, ABOVE),
        by_hand=per_example(lambda **i: by_hand.attention(**i)[0], axes=2, of=by_hand.attention),
        backward_by_hand=gradients.attention_backward,
        ours=ops.attention, fused=ops.FUSED.attention, reference=torch_attention,
    ),
    Formula(
        id="biased_attention", title="attention with a bias",
        latex=r"\mathrm{softmax}(c\,QK^\top + B)\,V", source="Raffel et al. 2020, section 2.1",
        draw=lambda *case: draws.draw_attention(*case)
        | draw("bias: 1 heads queries keys", scale=0.7)(*case),  # one bias for the whole batch
        cases=MASKS,
        by_hand=per_example(lambda **i: by_hand.attention(**i)[0], axes=2, of=by_hand.attention),
        backward_by_hand=decoder_gradients.biased_attention_backward,
        ours=ops.attention, fused=ops.FUSED.attention, reference=torch_attention,
    ),
    Formula(
        id="head", title="one head",
        latex=r"\mathrm{head}_i = \mathrm{Attention}(x W_i^Q,\ z W_i^K,\ z W_i^V)",
        source="Vaswani et al. 2017, section 3.2.2; article, section 4",
        draw=draw("x: batch queries d_model, z: batch keys d_model, W_Q W_K: d_model d_k",
                  "W_V: d_model d_v, keep: batch queries keys"), cases=MASKS,
        by_hand=per_example(by_hand.head), backward_by_hand=gradients.head_backward,
        **both(head),
        reference=lambda x, z, W_Q, W_K, W_V, keep: torch_attention(
            F.linear(x, W_Q.T), F.linear(z, W_K.T), F.linear(z, W_V.T), keep
        ),
    ),
    Formula(
        id="layer_norm", title="LayerNorm", source="Ba, Kiros and Hinton 2016, equations 3 and 4",
        latex=r"\mathrm{LayerNorm}(x) = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta",
        draw=draws.draw_norm, cases=("plain", "tiny"),
        by_hand=per_example(by_hand.layer_norm), backward_by_hand=gradients.layer_norm_backward,
        ours=ops.layer_norm, fused=ops.FUSED.layer_norm,
        reference=lambda x, gamma, beta, eps: F.layer_norm(x, gamma.shape, gamma, beta, eps),
    ),
    Formula(
        id="rms_norm", title="RMSNorm", source="Zhang and Sennrich 2019, equation 4",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\frac1d \sum_j x_j^2 + \epsilon}}",
        draw=draws.draw_rms_norm, cases=("plain", "tiny"),
        by_hand=per_example(by_hand.rms_norm), backward_by_hand=gradients.rms_norm_backward,
        ours=ops.rms_norm, fused=ops.FUSED.rms_norm, reference=torch_rms_norm,
    ),
    activation(
        "relu", "ReLU", r"\mathrm{ReLU}(x) = \max(0, x)", "Vaswani et al. 2017, equation 2", F.relu,
    ),
    activation(
        "gelu", "GELU",
        r"\mathrm{GELU}(x) = \frac x2 \left(1 + \mathrm{erf}\frac{x}{\sqrt2}\right)",
        "Hendrycks and Gimpel 2016, section 2", F.gelu,
    ),
    activation(
        "gelu_tanh", "GELU, tanh",
        r"\frac x2 \left(1 + \tanh\left[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right]\right)",
        "Hendrycks and Gimpel 2016, section 2", partial(F.gelu, approximate="tanh"),
    ),
    Formula(
        id="sinusoidal_positions", title="sinusoidal positions",
        latex=r"PE_{pos,2i} = \sin\frac{pos}{10000^{2i/d}},\quad PE_{pos,2i+1} = \cos\frac{pos}{10000^{2i/d}}",
        source="Vaswani et al. 2017, section 3.5",
        draw=draw(length=23, d_model=lambda case: 16 if case == "even" else 9), cases=("even", "odd"),
        by_hand=by_hand.sinusoidal_positions,
        ours=partial(ops.sinusoidal_positions, dtype=torch.float64), reference=rotating_positions,
    ),
    Formula(
        id="relative_buckets", title="buckets of distances",
        latex=r"b(r) = \min\left(n-1,\ \frac n2 + \left\lfloor\frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}\cdot\frac n2\right\rfloor\right)",
        source="Raffel et al. 2020, section 2.1",
        draw=draw(queries=lambda case: 40 if case == "a cache" else 150, keys=150,
                  n_buckets=lambda case: 32 if case == "bidirectional" else 20,
                  max_distance=lambda case: 128 if case == "bidirectional" else 90,
                  bidirectional=lambda case: case == "bidirectional"),
        cases=("bidirectional", "causal", "a cache"),
        by_hand=by_hand_decoder.relative_buckets, ours=ops.relative_buckets, reference=bucketized,
    ),
    Formula(
        id="cross_entropy", title="cross-entropy",
        latex=r"L = -\frac1N \sum_n \sum_c q_{nc} \log \mathrm{softmax}(\ell_n)_c",
        source="article, section 3.2; Szegedy et al. 2016, section 7",
        draw=draw_cross_entropy, cases=("plain", "ignored positions", "label smoothing"),
        by_hand=by_hand.cross_entropy, backward_by_hand=gradients.cross_entropy_backward,
        ours=ops.cross_entropy, fused=ops.FUSED.cross_entropy,
        reference=lambda logits, targets, ignore, label_smoothing: F.cross_entropy(
            logits, targets, ignore_index=ignore, label_smoothing=label_smoothing
        ),
    ),
    Formula(
        id="adamw", title="one AdamW step", source="Loshchilov and Hutter 2019, algorithm 2",
        latex=r"\theta \leftarrow \theta - \eta\lambda\theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}",
        draw=draws.draw_adamw, cases=("first step", "step 12"), no_gradient=("theta", "g", "m", "v"),
        by_hand=by_hand.adamw_step, ours=ops.adamw_step, reference=torch_adamw,
    ),
)  # fmt: skip
