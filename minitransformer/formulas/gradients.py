r"""The derivative of every formula, derived on paper, in NumPy.

The notation: $L$ is the loss, a number, and $dY$ is short for $\partial L / \partial Y$, an array
shaped like $Y$. A function `f_backward(dY, ...)` takes $dY$ and the inputs of $Y = f(...)$,
recomputes what it needs of the forward pass, and returns the gradient of each input, shaped like
it: a tuple in the order of the inputs, or a dictionary by name for formulas with several parts.

Two rules suffice. A matrix product $Y = AB$ has $dA = dY\,B^\top$ and $dB = A^\top dY$, the only
products whose shapes fit. And where a value is used twice, its two gradients are added.

Shapes: `...` stands for any leading axes (batch, heads). A mask `keep` is True = may attend.
"""

from math import erf, pi, sqrt

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

Keep = Bool[ndarray, "..."] | None
Gradients = dict[str, ndarray]


def linear(x: ndarray, W: ndarray, b: ndarray | None = None) -> ndarray:
    r"""$y = xW + b$."""
    return x @ W if b is None else x @ W + b


def linear_backward(
    dy: Float[ndarray, "... d_out"],
    x: Float[ndarray, "... d_in"],
    W: Float[ndarray, "d_in d_out"],
    b: Float[ndarray, "d_out"] | None = None,
) -> tuple[Float[ndarray, "... d_in"], Float[ndarray, "d_in d_out"], Float[ndarray, "d_out"]]:
    r"""$y = xW + b$ backward, with all positions stacked into one matrix for $dW$ and $db$:

    $$dx = dy\,W^\top, \qquad dW = x^\top dy, \qquad db = \sum_t dy_t$$

    The gradients of $W$ and $b$ sum over all positions, which share them.
    """
    dx = dy @ W.T
    dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
    return dx, x.T @ dy, dy.sum(0)


# --- Attention --------------------------------------------------------------------------------


def softmax(scores: Float[ndarray, "... keys"], keep: Keep = None) -> Float[ndarray, "... keys"]:
    r"""$P_{ij} = e^{s_{ij}} / \sum_{m \in \text{keep}} e^{s_{im}}$; zeros where nothing is kept."""
    if keep is not None:
        scores = np.where(keep, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    e = np.exp(scores - np.where(top == -np.inf, 0.0, top))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total == 0, 1.0, total)


def softmax_backward(
    dP: Float[ndarray, "... keys"], scores: Float[ndarray, "... keys"], keep: Keep = None
) -> Float[ndarray, "... keys"]:
    r"""$P = \mathrm{softmax}(S)$ backward. From $\partial P_j / \partial s_m = P_j([j = m] - P_m)$:

    $$dS_m = \sum_j dP_j\,P_j([j = m] - P_m) = P_m \Big(dP_m - \sum_j dP_j P_j\Big)$$

    Where `keep` is False $P = 0$, hence $dS = 0$; likewise in a row with nothing kept.
    """
    P = softmax(scores, keep)
    return P * (dP - (dP * P).sum(-1, keepdims=True))


def attention(Q: ndarray, K: ndarray, V: ndarray, keep: Keep = None) -> ndarray:
    r"""$O = \mathrm{softmax}(QK^\top / \sqrt{d_k})\,V$."""
    return softmax(Q @ K.swapaxes(-1, -2) / sqrt(Q.shape[-1]), keep) @ V


def attention_backward(
    dO: Float[ndarray, "... queries d_v"],
    Q: Float[ndarray, "... queries d_k"],
    K: Float[ndarray, "... keys d_k"],
    V: Float[ndarray, "... keys d_v"],
    keep: Keep = None,
) -> tuple[ndarray, ndarray, ndarray]:
    r"""$S = QK^\top / \sqrt{d_k}$, $P = \mathrm{softmax}(S)$, $O = PV$, backward, the last step first:

    $$dV = P^\top dO, \quad dP = dO\,V^\top, \quad dS = P \odot (dP - \mathrm{rowsum}(dP \odot P))$$
    $$dQ = dS\,K / \sqrt{d_k}, \qquad dK = dS^\top Q / \sqrt{d_k}$$

    A query without keys has $P = 0$: it receives the gradient 0 and passes none on.
    """
    d_k = Q.shape[-1]
    scores = Q @ K.swapaxes(-1, -2) / sqrt(d_k)
    dV = softmax(scores, keep).swapaxes(-1, -2) @ dO
    dS = softmax_backward(dO @ V.swapaxes(-1, -2), scores, keep)
    return dS @ K / sqrt(d_k), dS.swapaxes(-1, -2) @ Q / sqrt(d_k), dV


def head_backward(
    dO: Float[ndarray, "... queries d_v"],
    x: Float[ndarray, "... queries d_model"],
    z: Float[ndarray, "... keys d_model"],
    W_Q: Float[ndarray, "d_model d_k"],
    W_K: Float[ndarray, "d_model d_k"],
    W_V: Float[ndarray, "d_model d_v"],
    keep: Keep = None,
) -> Gradients:
    r"""$\mathrm{Attention}(x W^Q, z W^K, z W^V)$ backward; $z$ is used twice, so

    $$dx = dQ\,W^{Q\top}, \qquad dz = dK\,W^{K\top} + dV\,W^{V\top}$$
    """
    dQ, dK, dV = attention_backward(dO, x @ W_Q, z @ W_K, z @ W_V, keep)
    dx, dW_Q, _ = linear_backward(dQ, x, W_Q)
    dz_K, dW_K, _ = linear_backward(dK, z, W_K)
    dz_V, dW_V, _ = linear_backward(dV, z, W_V)
    return {"x": dx, "z": dz_K + dz_V, "W_Q": dW_Q, "W_K": dW_K, "W_V": dW_V}


# --- Norms and activations -----------------------------------------------------------------


def layer_norm(x: ndarray, gamma: ndarray, beta: ndarray, eps: float) -> ndarray:
    r"""$y = \gamma \odot \hat x + \beta$ with $\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}$."""
    return gamma * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) + beta


def layer_norm_backward(
    dy: Float[ndarray, "... d_model"],
    x: Float[ndarray, "... d_model"],
    gamma: Float[ndarray, "d_model"],
    beta: Float[ndarray, "d_model"],
    eps: float,
) -> tuple[Float[ndarray, "... d_model"], Float[ndarray, "d_model"], Float[ndarray, "d_model"]]:
    r"""LayerNorm backward.

    With $\hat x = (x - \mu)/s$, $s = \sqrt{\sigma^2 + \epsilon}$ and $d\hat x = dy \odot \gamma$:

    $$dx = \frac1s \Big( d\hat x - \mathrm{mean}(d\hat x) - \hat x\,\mathrm{mean}(d\hat x \odot \hat x) \Big)$$
    $$d\gamma = \sum_t dy_t \odot \hat x_t, \qquad d\beta = \sum_t dy_t$$

    The first mean comes from $\mu$ (shifting all of $x$ changes nothing), the second from $s$ (with
    $\epsilon = 0$ stretching $x$ changes nothing).
    """
    s = np.sqrt(x.var(-1, keepdims=True) + eps)
    x_hat = (x - x.mean(-1, keepdims=True)) / s
    dx_hat = dy * gamma
    along_mean = dx_hat.mean(-1, keepdims=True)
    along_x = x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)
    positions = tuple(range(dy.ndim - 1))
    return (dx_hat - along_mean - along_x) / s, (dy * x_hat).sum(positions), dy.sum(positions)


def rms_norm_backward(
    dy: Float[ndarray, "... d_model"],
    x: Float[ndarray, "... d_model"],
    gamma: Float[ndarray, "d_model"],
    eps: float,
) -> tuple[Float[ndarray, "... d_model"], Float[ndarray, "d_model"]]:
    r"""RMSNorm backward: LayerNorm's without the mean.

    With $\hat x = x/s$, $s = \sqrt{\mathrm{mean}(x^2) + \epsilon}$ and $d\hat x = dy \odot \gamma$:

    $$dx = \frac1s \Big( d\hat x - \hat x\,\mathrm{mean}(d\hat x \odot \hat x) \Big), \qquad
    d\gamma = \sum_t dy_t \odot \hat x_t$$
    """
    s = np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    x_hat = x / s
    dx_hat = dy * gamma
    along_x = x_hat * (dx_hat * x_hat).mean(-1, keepdims=True)
    return (dx_hat - along_x) / s, (dy * x_hat).sum(tuple(range(dy.ndim - 1)))


def relu_backward(dy: Float[ndarray, "..."], x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    r"""$\max(0, x)$ backward: $dx = dy \odot [x > 0]$; at 0 itself the usual choice is 0."""
    return dy * (x > 0)


def normal_cdf(x: ndarray) -> ndarray:
    r"""$\Phi(x) = \frac12 (1 + \mathrm{erf}(x / \sqrt2))$; NumPy has no erf of its own."""
    return (1 + np.vectorize(erf, otypes=[float])(x / sqrt(2))) / 2


def gelu_backward(dy: Float[ndarray, "..."], x: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
    r"""$x\,\Phi(x)$ backward: $dx = dy \odot (\Phi(x) + x\,\varphi(x))$, $\varphi(x) = e^{-x^2/2} / \sqrt{2\pi}$."""
    return dy * (normal_cdf(x) + x * np.exp(-(x**2) / 2) / sqrt(2 * pi))


def gelu_tanh_backward(
    dy: Float[ndarray, "..."], x: Float[ndarray, "..."]
) -> Float[ndarray, "..."]:
    r"""$\frac x2 (1 + \tanh u)$ with $u = \sqrt{2/\pi}\,(x + 0.044715\,x^3)$ backward:

    $$dx = dy \odot \tfrac12 \Big( 1 + \tanh u + x\,(1 - \tanh^2 u)\,\sqrt{2/\pi}\,(1 + 3 \cdot 0.044715\,x^2) \Big)$$
    """
    tanh = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))
    slope = sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2)
    return dy * (1 + tanh + x * (1 - tanh**2) * slope) / 2


ACTIVATIONS = {
    "relu": (lambda x: x * (x > 0), relu_backward),
    "gelu": (lambda x: x * normal_cdf(x), gelu_backward),
    "gelu_tanh": (
        lambda x: x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
        gelu_tanh_backward,
    ),
}


# --- Embedding, pooling, loss -----------------------------------------------------------------


def embedding_backward(
    dx: Float[ndarray, "... d_model"], ids: Int[ndarray, "..."], E: Float[ndarray, "vocab d_model"]
) -> Float[ndarray, "vocab d_model"]:
    r"""$x_t = E_{id_t}$ backward: a row sums over all places where it was looked up.

    $$dE_v = \sum_{t:\ id_t = v} dx_t$$

    A token that does not occur has the gradient 0.
    """
    dE = np.zeros_like(E)
    np.add.at(dE, ids, dx)  # not dE[ids] += dx, which counts a repeated id once
    return dE


def mean_pool_backward(
    dpooled: Float[ndarray, "batch d_model"],
    hidden: Float[ndarray, "batch length d_model"],
    real: Bool[ndarray, "batch length"],
) -> Float[ndarray, "batch length d_model"]:
    r"""The mean over the real positions backward: each gets the same share, padding nothing.

    $$dh_t = [t \in \text{real}]\;dp / |\text{real}|$$
    """
    count = np.maximum(real.sum(1), 1)
    return real[..., None] * (dpooled / count[:, None])[:, None, :]


def cls_pool_backward(
    dpooled: Float[ndarray, "batch d_model"],
    hidden: Float[ndarray, "batch length d_model"],
    W: Float[ndarray, "d_model d_model"],
    b: Float[ndarray, "d_model"],
) -> tuple[ndarray, ndarray, ndarray]:
    r"""$p = \tanh(u)$, $u = h_{\text{[CLS]}} W + b$ backward: $du = dp \odot (1 - p^2)$, then linear.

    Every position but the first gets 0.
    """
    p = np.tanh(linear(hidden[:, 0], W, b))
    dhidden = np.zeros_like(hidden)
    dhidden[:, 0], dW, db = linear_backward(dpooled * (1 - p**2), hidden[:, 0], W)
    return dhidden, dW, db


def cross_entropy_backward(
    dL: Float[ndarray, ""] | float,
    logits: Float[ndarray, "examples classes"],
    targets: Int[ndarray, "examples"],
    ignore: int = -100,
    label_smoothing: float = 0.0,
) -> Float[ndarray, "examples classes"]:
    r"""$L = -\frac1N \sum_n \sum_c q_{nc} \log p_{nc}$, $p_n = \mathrm{softmax}(\ell_n)$, backward. Since $\sum_c q_{nc} = 1$:

    $$d\ell_{n} = \frac{dL}{N}\,(p_n - q_n) \text{ where } y_n \neq \text{ignore, else } 0$$

    $N$ counts the positions that are not ignored.
    """
    counts = targets != ignore
    q = np.full(logits.shape, label_smoothing / logits.shape[1])
    q[counts, targets[counts]] += 1 - label_smoothing
    return dL / max(counts.sum(), 1) * counts[:, None] * (softmax(logits) - q)
