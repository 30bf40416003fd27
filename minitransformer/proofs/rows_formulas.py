"""The ledger's rows for single formulas: softmax, attention, norms, activations, loss, optimiser."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..formulas import by_hand, by_hand_decoder, decoder_gradients, gradients, ops
from .draws import (
    BATCH,
    D_K,
    D_V,
    HEADS,
    HUGE,
    KEYS,
    MASKS,
    QUERIES,
    draw_adamw,
    draw_attention,
    draw_keep,
    draw_norm,
    draw_softmax,
)
from .formula import Formula, Inputs

ROWS: list[Formula] = []
add = ROWS.append


def draw_linear(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((BATCH, KEYS, D_V)),
        "W": rng.standard_normal((D_V, D_K)),
        "b": rng.standard_normal(D_K),
    }


def linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return x @ W + b


def torch_linear(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return F.linear(x, W.T, b)


add(
    Formula(
        id="linear",
        title="linear map",
        latex=r"y = xW + b",
        source="Vaswani et al. 2017, section 3.2.2, the projections",
        draw=draw_linear,
        by_hand=by_hand.over_batch(by_hand.linear, "x"),
        ours=linear,
        reference=torch_linear,
        backward_by_hand=gradients.linear_backward,
    )
)


def softmax_by_hand(scores: np.ndarray, keep: np.ndarray | None) -> np.ndarray:
    result = np.zeros_like(scores)
    for i in np.ndindex(scores.shape[:-1]):
        result[i] = by_hand.softmax(scores[i], None if keep is None else keep[i])
    return result


def torch_softmax(scores: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return torch.softmax(scores, -1)
    return torch.softmax(scores.masked_fill(~keep, -torch.inf), -1).nan_to_num(0.0)


add(
    Formula(
        id="softmax",
        title="softmax",
        latex=r"\mathrm{softmax}(s)_j = \frac{e^{s_j}}{\sum_m e^{s_m}}",
        source="Vaswani et al. 2017, section 3.2.1",
        draw=draw_softmax,
        by_hand=softmax_by_hand,
        ours=ops.softmax,
        fused=ops.fused_softmax,
        backward_by_hand=gradients.softmax_backward,
        reference=torch_softmax,
        cases=(*MASKS, HUGE),
    )
)


def attention_by_hand(
    Q: np.ndarray, K: np.ndarray, V: np.ndarray, keep: np.ndarray | None
) -> np.ndarray:
    output = np.zeros((*Q.shape[:-1], V.shape[-1]))
    for i in np.ndindex(Q.shape[:2]):
        output[i] = by_hand.attention(Q[i], K[i], V[i], None if keep is None else keep[i])[0]
    return output


def torch_attention(Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


add(
    Formula(
        id="attention",
        title="scaled dot-product attention",
        latex=r"\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right) V",
        source="Vaswani et al. 2017, equation 1; article, section 4",
        draw=draw_attention,
        by_hand=attention_by_hand,
        ours=ops.attention,
        fused=ops.fused_attention,
        backward_by_hand=gradients.attention_backward,
        reference=torch_attention,
        cases=(*MASKS, HUGE),
    )
)


def draw_biased_attention(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_attention(rng, case)
    inputs["bias"] = 2 * rng.standard_normal((1, HEADS, QUERIES, KEYS))  # one for the whole batch
    return inputs | {"scale": 0.7}


def biased_attention_by_hand(
    Q: np.ndarray, K: np.ndarray, V: np.ndarray, keep: np.ndarray | None, bias: np.ndarray,
    scale: float,
) -> np.ndarray:  # fmt: skip
    output = np.zeros((*Q.shape[:-1], V.shape[-1]))
    for n, h in np.ndindex(Q.shape[:2]):
        mask = None if keep is None else keep[n, h]
        output[n, h] = by_hand.attention(Q[n, h], K[n, h], V[n, h], mask, bias[0, h], scale)[0]
    return output


def biased_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None, bias: Tensor, scale: float
) -> Tensor:
    return ops.attention(Q, K, V, keep, bias=bias, scale=scale)


def fused_biased_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None, bias: Tensor, scale: float
) -> Tensor:
    return ops.fused_attention(Q, K, V, keep, bias=bias, scale=scale)


def torch_biased_attention(
    Q: Tensor, K: Tensor, V: Tensor, keep: Tensor | None, bias: Tensor, scale: float
) -> Tensor:
    mask = bias if keep is None else torch.where(keep, bias, -torch.inf)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=mask, scale=scale)


add(
    Formula(
        id="biased_attention",
        title="attention with a bias",
        latex=r"\mathrm{softmax}(c\,QK^\top + B)\,V",
        source="Raffel et al. 2020, section 2.1",
        draw=draw_biased_attention,
        by_hand=biased_attention_by_hand,
        ours=biased_attention,
        fused=fused_biased_attention,
        backward_by_hand=decoder_gradients.biased_attention_backward,
        reference=torch_biased_attention,
        cases=MASKS,
        shows=(ops.attention,),
    )
)


def draw_head(rng: np.random.Generator, case: str) -> Inputs:
    d_model = 17

    def W(d: int) -> np.ndarray:
        return rng.standard_normal((d_model, d)) / d_model**0.5

    return {
        "x": 1.5 * rng.standard_normal((BATCH, QUERIES, d_model)),
        "z": 1.5 * rng.standard_normal((BATCH, KEYS, d_model)),
        "W_Q": 1.5 * W(D_K), "W_K": W(D_K), "W_V": W(D_V),
        "keep": draw_keep(rng, case, (BATCH, QUERIES, KEYS)),
    }  # fmt: skip


def head(
    x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor | None
) -> Tensor:
    return ops.attention(x @ W_Q, z @ W_K, z @ W_V, keep)


def fused_head(
    x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor | None
) -> Tensor:
    return ops.fused_attention(x @ W_Q, z @ W_K, z @ W_V, keep)


def torch_head(
    x: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor | None
) -> Tensor:
    Q, K, V = F.linear(x, W_Q.T), F.linear(z, W_K.T), F.linear(z, W_V.T)
    return F.scaled_dot_product_attention(Q, K, V, attn_mask=keep)


add(
    Formula(
        id="head",
        title="one head",
        latex=r"\mathrm{head}_i = \mathrm{Attention}(x W_i^Q,\ z W_i^K,\ z W_i^V)",
        source="Vaswani et al. 2017, section 3.2.2; article, section 4",
        draw=draw_head,
        by_hand=by_hand.over_batch(by_hand.head, "x", "z", "keep"),
        ours=head,
        fused=fused_head,
        backward_by_hand=gradients.head_backward,
        reference=torch_head,
        cases=MASKS,
    )
)


def draw_rms(rng: np.random.Generator, case: str) -> Inputs:
    inputs = draw_norm(rng, case)
    del inputs["beta"]
    return inputs


def torch_layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), gamma, beta, eps)


def torch_rms_norm(x: Tensor, gamma: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gamma, eps)


add(
    Formula(
        id="layer_norm",
        title="LayerNorm",
        latex=r"\mathrm{LayerNorm}(x) = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta",
        source="Ba, Kiros and Hinton 2016, equations 3 and 4",
        draw=draw_norm,
        by_hand=by_hand.over_batch(by_hand.layer_norm, "x"),
        ours=ops.layer_norm,
        fused=ops.fused_layer_norm,
        backward_by_hand=gradients.layer_norm_backward,
        reference=torch_layer_norm,
        cases=("plain", "tiny"),
    )
)
add(
    Formula(
        id="rms_norm",
        title="RMSNorm",
        latex=r"\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\frac1d \sum_j x_j^2 + \epsilon}}",
        source="Zhang and Sennrich 2019, equation 4",
        draw=draw_rms,
        by_hand=by_hand.over_batch(by_hand.rms_norm, "x"),
        ours=ops.rms_norm,
        fused=ops.fused_rms_norm,
        backward_by_hand=gradients.rms_norm_backward,
        reference=torch_rms_norm,
        cases=("plain", "tiny"),
    )
)


def draw_entries(rng: np.random.Generator, case: str) -> Inputs:
    return {"x": 3 * rng.uniform(-1, 1, (KEYS, D_V))}  # where the kinds of GELU differ most


def of_x(f: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """torch calls the argument `input`, the formula `x`."""
    return lambda x: f(x)


for name, title, latex, source, reference in (
    ("relu", "ReLU", r"\mathrm{ReLU}(x) = \max(0, x)", "Vaswani et al. 2017, equation 2", F.relu),
    (
        "gelu",
        "GELU",
        r"\mathrm{GELU}(x) = \frac x2 \left(1 + \mathrm{erf}\frac{x}{\sqrt2}\right)",
        "Hendrycks and Gimpel 2016, section 2",
        F.gelu,
    ),
    (
        "gelu_tanh",
        "GELU, tanh",
        r"\frac x2 \left(1 + \tanh\left[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right]\right)",
        "Hendrycks and Gimpel 2016, section 2",
        torch.nn.GELU("tanh"),
    ),
):
    add(
        Formula(
            id=name,
            title=title,
            latex=latex,
            source=source,
            draw=draw_entries,
            by_hand=by_hand.ACTIVATIONS[name],
            ours=getattr(ops.FORMULA, name),
            fused=of_x(getattr(ops.FUSED, name)),
            backward_by_hand=gradients.ACTIVATIONS[name][1],
            reference=of_x(reference),
        )
    )


def draw_positions(rng: np.random.Generator, case: str) -> Inputs:
    return {"length": 23, "d_model": 16 if case == "even" else 9}


def our_positions(length: int, d_model: int) -> Tensor:
    return ops.sinusoidal_positions(length, d_model, torch.float64)


def rotating_positions(length: int, d_model: int) -> Tensor:
    """An independent witness: turn a complex number by a fixed angle from row to row."""
    frequency = 1e4 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    turn = torch.polar(torch.ones_like(frequency), frequency)
    z = torch.cumprod(torch.cat([torch.ones_like(turn)[None], turn.repeat(length - 1, 1)]), 0)
    return torch.stack([z.imag, z.real], -1).flatten(1)[:, :d_model]


add(
    Formula(
        id="sinusoidal_positions",
        title="sinusoidal positions",
        latex=r"PE_{pos,2i} = \sin\frac{pos}{10000^{2i/d}},\quad PE_{pos,2i+1} = \cos\frac{pos}{10000^{2i/d}}",
        source="Vaswani et al. 2017, section 3.5",
        draw=draw_positions,
        by_hand=by_hand.sinusoidal_positions,
        ours=our_positions,
        reference=rotating_positions,
        cases=("even", "odd"),
        shows=(ops.sinusoidal_positions,),
    )
)


def draw_buckets(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "queries": 40 if case == "a cache" else 150, "keys": 150,
        "n_buckets": 32 if case == "bidirectional" else 20,
        "max_distance": 128 if case == "bidirectional" else 90,
        "bidirectional": case == "bidirectional",
    }  # fmt: skip


def bucketized(
    queries: int, keys: int, n_buckets: int, max_distance: int, bidirectional: bool
) -> Tensor:
    """An independent witness: where each bucket begins, and a search among these."""
    r = torch.arange(keys) - torch.arange(keys - queries, keys)[:, None]
    half = n_buckets // 4 if bidirectional else n_buckets // 2
    ends = half * (max_distance / half) ** (torch.arange(half, dtype=torch.float64) / half)
    begins = torch.cat([torch.arange(1, half), torch.ceil(ends - 1e-9).long()])
    distance = r.abs() if bidirectional else -r
    behind = (r > 0) * 2 * half if bidirectional else 0
    return torch.bucketize(distance, begins, right=True) + behind


add(
    Formula(
        id="relative_buckets",
        title="buckets of distances",
        latex=r"b(r) = \min\left(n-1,\ \frac n2 + \left\lfloor\frac{\log(2|r|/n)}{\log(2\,r_{max}/n)}\cdot\frac n2\right\rfloor\right)",
        source="Raffel et al. 2020, section 2.1",
        draw=draw_buckets,
        by_hand=by_hand_decoder.relative_buckets,
        ours=ops.relative_buckets,
        reference=bucketized,
        cases=("bidirectional", "causal", "a cache"),
    )
)


def draw_cross_entropy(rng: np.random.Generator, case: str) -> Inputs:
    targets = rng.integers(0, D_K, KEYS)
    if case == "ignored positions":
        targets[::3] = -100
    return {
        "logits": 3 * rng.standard_normal((KEYS, D_K)),
        "targets": targets,
        "ignore": -100,
        "label_smoothing": 0.15 if case == "label smoothing" else 0.0,
    }


def torch_cross_entropy(
    logits: Tensor, targets: Tensor, ignore: int, label_smoothing: float
) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=ignore, label_smoothing=label_smoothing)


add(
    Formula(
        id="cross_entropy",
        title="cross-entropy",
        latex=r"L = -\frac1N \sum_n \sum_c q_{nc} \log \mathrm{softmax}(\ell_n)_c",
        source="article, section 3.2; Szegedy et al. 2016, section 7",
        draw=draw_cross_entropy,
        by_hand=by_hand.cross_entropy,
        ours=ops.cross_entropy,
        fused=ops.fused_cross_entropy,
        backward_by_hand=gradients.cross_entropy_backward,
        reference=torch_cross_entropy,
        cases=("plain", "ignored positions", "label smoothing"),
    )
)


def torch_adamw(
    theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, lr: float, beta_1: float,
    beta_2: float, eps: float, weight_decay: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    parameter = torch.nn.Parameter(theta.clone())
    parameter.grad = g.clone()
    optimizer = torch.optim.AdamW(
        [parameter], lr, (beta_1, beta_2), eps, weight_decay, foreach=False
    )
    optimizer.state[parameter] = {
        "step": torch.tensor(float(t - 1)), "exp_avg": m.clone(), "exp_avg_sq": v.clone(),
    }  # fmt: skip
    optimizer.step()
    state = optimizer.state[parameter]
    return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]


add(
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
    )
)
