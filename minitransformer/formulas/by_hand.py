r"""Every formula in NumPy, index by index: the slowest and plainest way to write it.

On purpose nothing here is vectorised. A sum over $j$ is a sum over `j`, an entry $w_{ij}$ is
`weights[i, j]`, and a reader with paper and pencil can follow every number. The functions take one
sequence (no batch axis) in float64.

Symbols: $Q, K, V$ queries, keys, values; $d_k$ their width; $h$ heads; $\gamma, \beta$ gain and
shift of a norm; `keep[i, j]` is True where query $i$ may attend to key $j$.
"""

from collections.abc import Callable
from math import erf, exp, log, pi, sqrt, tanh

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray


def softmax(scores: Float[ndarray, "keys"], keep: Bool[ndarray, "keys"] | None = None):
    r"""One row of weights, positive and summing to one.

    $$\mathrm{softmax}(s)_j = \frac{e^{s_j}}{\sum_{m \in \text{keep}} e^{s_m}}$$

    Subtracting the largest score first changes nothing (numerator and denominator share the
    factor) and keeps $e^{s}$ from overflowing. Where nothing is kept every weight is zero.

    Shapes: (keys) -> (keys).  Source: Bridle 1990; Vaswani et al. 2017, section 3.2.1.
    """
    kept = [j for j in range(len(scores)) if keep is None or keep[j]]
    weights = np.zeros(len(scores))
    if not kept:
        return weights
    top = max(scores[j] for j in kept)
    total = sum(exp(scores[j] - top) for j in kept)
    for j in kept:
        weights[j] = exp(scores[j] - top) / total
    return weights


def linear(
    x: Float[ndarray, "length d_in"],
    W: Float[ndarray, "d_in d_out"],
    b: Float[ndarray, "d_out"] | None = None,
) -> Float[ndarray, "length d_out"]:
    r"""A linear map of every position: $y_{tj} = \sum_i x_{ti} W_{ij} + b_j$.

    Shapes: (length, d_in) -> (length, d_out). The paper's orientation, $xW$; torch's `nn.Linear`
    stores $W^\top$.
    """
    (length, d_in), d_out = x.shape, W.shape[1]
    y = np.zeros((length, d_out))
    for t, j in np.ndindex(length, d_out):
        y[t, j] = sum(x[t, i] * W[i, j] for i in range(d_in))
        if b is not None:
            y[t, j] += b[j]
    return y


def attention(
    Q: Float[ndarray, "queries d_k"],
    K: Float[ndarray, "keys d_k"],
    V: Float[ndarray, "keys d_v"],
    keep: Bool[ndarray, "queries keys"] | None = None,
    bias: Float[ndarray, "queries keys"] | None = None,
    scale: float | None = None,
) -> tuple[Float[ndarray, "queries d_v"], Float[ndarray, "queries keys"]]:
    r"""Scaled dot-product attention: each query averages the values, weighted by its keys.

    $$\mathrm{Attention}(Q, K, V) = \mathrm{softmax}\!\left(\frac{QK^\top}{\sqrt{d_k}}\right) V$$

    Index by index: $s_{ij} = \frac{1}{\sqrt{d_k}} \sum_l Q_{il} K_{jl}$,
    $w_{i\cdot} = \mathrm{softmax}(s_{i\cdot})$, $o_{ic} = \sum_j w_{ij} V_{jc}$.

    T5 adds a bias $b_{ij}$ to $s_{ij}$, and uses another scale than $1/\sqrt{d_k}$.

    Shapes: output and weights, as annotated.  Source: Vaswani et al. 2017, equation 1.
    """
    (queries, d_k), (keys, d_v) = Q.shape, V.shape
    output, weights = np.zeros((queries, d_v)), np.zeros((queries, keys))
    for i in range(queries):
        scores = np.zeros(keys)
        for j in range(keys):
            product = sum(Q[i, m] * K[j, m] for m in range(d_k))
            scores[j] = product / sqrt(d_k) if scale is None else product * scale
            if bias is not None:
                scores[j] += bias[i, j]
        weights[i] = softmax(scores, None if keep is None else keep[i])
        for c in range(d_v):
            output[i, c] = sum(weights[i, j] * V[j, c] for j in range(keys))
    return output, weights


def head(
    x: Float[ndarray, "queries d_model"],
    z: Float[ndarray, "keys d_model"],
    W_Q: Float[ndarray, "d_model d_k"],
    W_K: Float[ndarray, "d_model d_k"],
    W_V: Float[ndarray, "d_model d_v"],
    keep: Bool[ndarray, "queries keys"] | None = None,
) -> Float[ndarray, "queries d_v"]:
    r"""One head: $\mathrm{head}_i = \mathrm{Attention}(x W_i^Q, z W_i^K, z W_i^V)$.

    With $z = x$ it is self-attention, with another sequence $z$ cross-attention.

    Shapes: (queries, d_model) and (keys, d_model) -> (queries, d_v).
    Source: Vaswani et al. 2017, section 3.2.2; article, section 4.
    """
    return attention(linear(x, W_Q), linear(z, W_K), linear(z, W_V), keep)[0]


def multi_head_attention(
    x: Float[ndarray, "queries d_model"],
    z: Float[ndarray, "keys d_model"],
    W_Q: Float[ndarray, "heads d_model d_k"],
    W_K: Float[ndarray, "heads d_model d_k"],
    W_V: Float[ndarray, "heads d_model d_v"],
    W_O: Float[ndarray, "heads_d_v d_model"],
    keep: Bool[ndarray, "queries keys"] | None = None,
    b_Q: Float[ndarray, "heads d_k"] | None = None,
    b_K: Float[ndarray, "heads d_k"] | None = None,
    b_V: Float[ndarray, "heads d_v"] | None = None,
    b_O: Float[ndarray, "d_model"] | None = None,
) -> Float[ndarray, "queries d_model"]:
    r"""Several heads side by side, then one map that mixes them.

    $$\mathrm{MultiHeadAttention}(x, z) = \mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\, W^O$$

    The biases are not in the paper's formula; BERT and GPT-2 have them.

    Shapes: (queries, d_model) and (keys, d_model) -> (queries, d_model); $W^O$ is (h d_v, d_model).
    Source: Vaswani et al. 2017, section 3.2.2; article, section 4.
    """
    heads = []
    for i in range(len(W_Q)):
        Q = linear(x, W_Q[i], None if b_Q is None else b_Q[i])
        K = linear(z, W_K[i], None if b_K is None else b_K[i])
        V = linear(z, W_V[i], None if b_V is None else b_V[i])
        heads.append(attention(Q, K, V, keep)[0])
    return linear(np.concatenate(heads, axis=1), W_O, b_O)


def layer_norm(
    x: Float[ndarray, "length d_model"],
    gamma: Float[ndarray, "d_model"],
    beta: Float[ndarray, "d_model"],
    eps: float,
) -> Float[ndarray, "length d_model"]:
    r"""Layer normalisation: each position gets mean 0 and variance 1, then a learned gain and shift.

    $$\mathrm{LayerNorm}(x)_j = \gamma_j \frac{x_j - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_j,
    \quad \mu = \frac1d \sum_j x_j, \quad \sigma^2 = \frac1d \sum_j (x_j - \mu)^2$$

    The variance divides by $d$, not $d - 1$, and $\epsilon$ stands inside the root.

    Shapes: (length, d_model) -> the same.  Source: Ba, Kiros and Hinton 2016, equations 3 and 4.
    """
    (length, d), y = x.shape, np.zeros_like(x)
    for t in range(length):
        mu = sum(x[t]) / d
        variance = sum((x[t, j] - mu) ** 2 for j in range(d)) / d
        for j in range(d):
            y[t, j] = gamma[j] * (x[t, j] - mu) / sqrt(variance + eps) + beta[j]
    return y


def rms_norm(
    x: Float[ndarray, "length d_model"], gamma: Float[ndarray, "d_model"], eps: float
) -> Float[ndarray, "length d_model"]:
    r"""Root-mean-square normalisation: LayerNorm without the mean and without the shift.

    $$\mathrm{RMSNorm}(x)_j = \gamma_j \frac{x_j}{\sqrt{\frac1d \sum_m x_m^2 + \epsilon}}$$

    Shapes: (length, d_model) -> the same.  Source: Zhang and Sennrich 2019, equation 4; used by T5.
    """
    (length, d), y = x.shape, np.zeros_like(x)
    for t in range(length):
        mean_square = sum(x[t, j] ** 2 for j in range(d)) / d
        for j in range(d):
            y[t, j] = gamma[j] * x[t, j] / sqrt(mean_square + eps)
    return y


def relu(x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    r"""$\mathrm{ReLU}(x) = \max(0, x)$.  Source: Vaswani et al. 2017, equation 2."""
    return entry_by_entry(lambda a: max(0.0, a), x)


def gelu(x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    r"""$\mathrm{GELU}(x) = x\,\Phi(x) = \frac x2 \left(1 + \mathrm{erf}\frac{x}{\sqrt2}\right)$.

    Source: Hendrycks and Gimpel 2016, section 2; used by BERT.
    """
    return entry_by_entry(lambda a: a / 2 * (1 + erf(a / sqrt(2))), x)


def gelu_tanh(x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    r"""GELU's approximation: $\frac x2 \left(1 + \tanh\left[\sqrt{2/\pi}\,(x + 0.044715\,x^3)\right]\right)$.

    At most 4.8e-4 away from GELU, which is enough to spoil a parity test.

    Shapes: (...) -> the same.  Source: Hendrycks and Gimpel 2016, section 2; used by GPT-2.
    """
    return entry_by_entry(lambda a: a / 2 * (1 + tanh(sqrt(2 / pi) * (a + 0.044715 * a**3))), x)


ACTIVATIONS: dict[str, Callable] = {"relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh}


def feed_forward(
    x: Float[ndarray, "length d_model"],
    W_1: Float[ndarray, "d_model d_ff"],
    b_1: Float[ndarray, "d_ff"],
    W_2: Float[ndarray, "d_ff d_model"],
    b_2: Float[ndarray, "d_model"],
    activation: str = "relu",
) -> Float[ndarray, "length d_model"]:
    r"""The same two-layer network at each position: $\mathrm{FFN}(x) = \max(0, xW_1 + b_1)W_2 + b_2$.

    BERT and GPT-2 have a GELU instead of the maximum.

    Shapes: (length, d_model) -> the same, through (length, d_ff).
    Source: Vaswani et al. 2017, equation 2.
    """
    return linear(ACTIVATIONS[activation](linear(x, W_1, b_1)), W_2, b_2)


def sinusoidal_positions(length: int, d_model: int) -> Float[ndarray, "length d_model"]:
    r"""A fixed vector per position: interleaved sines and cosines of falling frequency.

    $$PE_{pos, 2i} = \sin\!\left(pos / 10000^{2i/d}\right), \qquad
    PE_{pos, 2i+1} = \cos\!\left(pos / 10000^{2i/d}\right)$$

    Shapes: (length, d_model).  Source: Vaswani et al. 2017, section 3.5.
    """
    table = np.zeros((length, d_model))
    for pos, column in np.ndindex(length, d_model):
        i = column // 2
        angle = pos / 10000 ** (2 * i / d_model)
        table[pos, column] = np.sin(angle) if column % 2 == 0 else np.cos(angle)
    return table


def encoder_sublayer(
    x: Float[ndarray, "length d_model"],
    gamma: Float[ndarray, "d_model"],
    beta: Float[ndarray, "d_model"],
    eps: float,
    keep: Bool[ndarray, "length length"] | None = None,
    **attention_weights: ndarray,
) -> Float[ndarray, "length d_model"]:
    r"""The article's encoder: $\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$.

    Shapes: (length, d_model) -> the same.  Source: article, section 4.
    """
    return decoder_sublayer(x, x, gamma, beta, eps, keep, **attention_weights)


def decoder_sublayer(
    y: Float[ndarray, "queries d_model"],
    z: Float[ndarray, "keys d_model"],
    gamma: Float[ndarray, "d_model"],
    beta: Float[ndarray, "d_model"],
    eps: float,
    keep: Bool[ndarray, "queries keys"] | None = None,
    **attention_weights: ndarray,
) -> Float[ndarray, "queries d_model"]:
    r"""The article's decoder: $\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z))$.

    Queries come from $y$, keys and values from $z$, the encoder's output.

    Shapes: (queries, d_model) and (keys, d_model) -> (queries, d_model).  Source: article, section 4.
    """
    attended = multi_head_attention(y, z, keep=keep, **attention_weights)
    return layer_norm(y + attended, gamma, beta, eps)


def encoder_block(
    x: Float[ndarray, "length d_model"],
    attention: Callable,
    feed_forward: Callable,
    norm_1: Callable,
    norm_2: Callable,
    norm_position: str = "post",
) -> Float[ndarray, "length d_model"]:
    r"""A full encoder block: self-attention and feed-forward, each with a residual and a norm.

    post-LN: $a = \mathrm{LN}_1(x + \mathrm{MHA}(x)), \quad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))$

    pre-LN: $a = x + \mathrm{MHA}(\mathrm{LN}_1(x)), \quad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))$

    Shapes: (length, d_model) -> the same.
    Source: post-LN Vaswani et al. 2017, section 3.1; pre-LN Xiong et al. 2020, figure 1.
    """
    if norm_position == "post":
        a = norm_1(x + attention(x))
        return norm_2(a + feed_forward(a))
    a = x + attention(norm_1(x))
    return a + feed_forward(norm_2(a))


def cross_entropy(
    logits: Float[ndarray, "examples classes"],
    targets: Int[ndarray, "examples"],
    ignore: int = -100,
    label_smoothing: float = 0.0,
) -> float:
    r"""The mean surprise at the correct class.

    $$L = -\frac1N \sum_{n:\ y_n \neq \text{ignore}} \sum_c q_{nc} \log p_{nc}, \quad
    p_n = \mathrm{softmax}(\ell_n), \quad q_{nc} = (1 - \alpha)\,[c = y_n] + \frac{\alpha}{C}$$

    $N$ counts the targets that are not ignored; without any the loss is 0. $\alpha$ is the label
    smoothing; the unit is nats.

    Shapes: (examples, classes), (examples) -> a number.
    Source: article, section 3.2; smoothing Szegedy et al. 2016, section 7.
    """
    classes, counted, loss = logits.shape[1], 0, 0.0
    for row, y in zip(logits, targets, strict=True):
        if y == ignore:
            continue
        counted += 1
        top = max(row)
        log_total = top + log(sum(exp(a - top) for a in row))
        for c in range(classes):
            q = (1 - label_smoothing) * (c == y) + label_smoothing / classes
            loss -= q * (row[c] - log_total)
    return loss / counted if counted else 0.0


def adamw_step(
    theta: Float[ndarray, "..."],
    g: Float[ndarray, "..."],
    m: Float[ndarray, "..."],
    v: Float[ndarray, "..."],
    t: int,
    lr: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[ndarray, ndarray, ndarray]:
    r"""Step $t$ (counted from 1) of AdamW; returns the new $\theta, m, v$.

    $$m_t = \beta_1 m_{t-1} + (1-\beta_1) g, \quad v_t = \beta_2 v_{t-1} + (1-\beta_2) g^2$$
    $$\hat m = \frac{m_t}{1-\beta_1^t}, \quad \hat v = \frac{v_t}{1-\beta_2^t}, \quad
    \theta_t = \theta_{t-1} - \eta\lambda\,\theta_{t-1} - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}$$

    The decay $\lambda$ acts on the weight itself, not through the gradient: that is the W of AdamW.

    Shapes: all alike.  Source: Loshchilov and Hutter 2019, algorithm 2; Kingma and Ba 2015.
    """
    theta, m, v = theta.copy(), m.copy(), v.copy()
    for i in np.ndindex(theta.shape):
        m[i] = beta_1 * m[i] + (1 - beta_1) * g[i]
        v[i] = beta_2 * v[i] + (1 - beta_2) * g[i] ** 2
        m_hat = m[i] / (1 - beta_1**t)
        v_hat = v[i] / (1 - beta_2**t)
        theta[i] -= lr * weight_decay * theta[i]
        theta[i] -= lr * m_hat / (sqrt(v_hat) + eps)
    return theta, m, v


def entry_by_entry(f: Callable[[float], float], x: ndarray) -> ndarray:
    """Apply a function of one number to every entry of an array."""
    return np.array([f(float(a)) for a in x.flat]).reshape(x.shape)
