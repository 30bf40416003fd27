r"""Backward through the decoder's additions: bias on the scores, gate, causal and cross-attention, tied logits.

Notation, shapes and the short $f'(dy)$ as in `gradients` and `block_gradients`.
"""

from math import sqrt

from jaxtyping import Float, Int
from numpy import ndarray

from .block_gradients import (
    Sublayers,
    block,
    block_backward,
    encoder_sublayers,
    multi_head_attention,
    multi_head_attention_backward,
    self_attention_backward,
)
from .by_hand_decoder import causal_mask, relative_buckets
from .gradients import (
    ACTIVATIONS,
    Gradients,
    Keep,
    embedding_backward,
    linear_backward,
    softmax,
    softmax_backward,
)

# --- Attention --------------------------------------------------------------------------------


def biased_attention_backward(
    dO: Float[ndarray, "... queries d_v"],
    Q: Float[ndarray, "... queries d_k"],
    K: Float[ndarray, "... keys d_k"],
    V: Float[ndarray, "... keys d_v"],
    bias: Float[ndarray, "..."],
    scale: float,
    keep: Keep = None,
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    r"""$O = \mathrm{softmax}(cQK^\top + B)\,V$ backward: as without $B$, whose gradient is that of the scores.

    $$dQ = c\,dS\,K, \qquad dK = c\,dS^\top Q, \qquad dB = \sum_{\text{shared axes}} dS$$

    $dB$ sums over the axes, such as the batch, that share $B$.
    """
    scores = scale * Q @ K.swapaxes(-1, -2) + bias
    dV = softmax(scores, keep).swapaxes(-1, -2) @ dO
    dS = softmax_backward(dO @ V.swapaxes(-1, -2), scores, keep)
    shared = tuple(a for a in range(bias.ndim) if bias.shape[a] == 1)
    return scale * dS @ K, scale * dS.swapaxes(-1, -2) @ Q, dV, dS.sum(shared, keepdims=True)


def attention_and_weights_backward(
    dO: Float[ndarray, "... queries d_v"],
    dP: Float[ndarray, "... queries keys"],
    Q: Float[ndarray, "... queries d_k"],
    K: Float[ndarray, "... keys d_k"],
    V: Float[ndarray, "... keys d_v"],
    keep: Keep = None,
) -> tuple[ndarray, ndarray, ndarray]:
    r"""Attention that also returns its weights $P$: these are used twice, so their gradients are added.

    $$dS = \mathrm{softmax}'(dP + dO\,V^\top), \qquad dV = P^\top dO$$
    """
    c = 1 / sqrt(Q.shape[-1])
    scores = c * Q @ K.swapaxes(-1, -2)
    dV = softmax(scores, keep).swapaxes(-1, -2) @ dO
    dS = softmax_backward(dP + dO @ V.swapaxes(-1, -2), scores, keep)
    return c * dS @ K, c * dS.swapaxes(-1, -2) @ Q, dV


def relative_position_bias_backward(
    dB: Float[ndarray, "1 heads queries keys"],
    E: Float[ndarray, "n_buckets heads"],
    queries: int,
    keys: int,
    max_distance: int,
    bidirectional: bool,
) -> Float[ndarray, "n_buckets heads"]:
    r"""$B_{hij} = E_{b(j-i),\,h}$ backward: a bucket sums over all pairs at its distances.

    $$dE_{b,h} = \sum_{ij:\ b(j-i) = b} dB_{hij}$$
    """
    b = relative_buckets(queries, keys, len(E), max_distance, bidirectional)
    return embedding_backward(dB[0].transpose(1, 2, 0), b, E)


def hide_future(keep: Keep, length: int) -> ndarray:
    """`keep`, and no key later than the query."""
    past = causal_mask(length, length)
    return past if keep is None else keep & past


def causal_self_attention_backward(
    dy: Float[ndarray, "... length d_model"],
    x: Float[ndarray, "... length d_model"],
    n_heads: int,
    keep: Keep = None,
    **w: ndarray,
) -> Gradients:
    r"""Causal $\mathrm{MultiHeadAttention}(x, x)$ backward: $dx = \mathrm{MHA}'_x + \mathrm{MHA}'_z$.

    Where a weight is hidden, $P = 0$ and so $dS = 0$: the future gets no gradient from the past.
    """
    return self_attention_backward(dy, x, n_heads, hide_future(keep, x.shape[-2]), **w)


# --- Feed-forward and head --------------------------------------------------------------------


def gated_feed_forward_backward(
    dy: Float[ndarray, "... d_model"],
    x: Float[ndarray, "... d_model"],
    W_1: Float[ndarray, "d_model d_ff"],
    W_2: Float[ndarray, "d_ff d_model"],
    W_3: Float[ndarray, "d_model d_ff"],
    activation: str = "gelu_tanh",
) -> Gradients:
    r"""$\mathrm{FFN}(x) = (f(u) \odot g)\,W_2$ with $u = xW_1$, $g = xW_3$, backward: each factor gets the other.

    $$dm = dy\,W_2^\top, \quad du = (dm \odot g) \odot f'(u), \quad dg = dm \odot f(u), \quad
    dx = du\,W_1^\top + dg\,W_3^\top$$
    """
    f, f_backward = ACTIVATIONS[activation]
    u, g = x @ W_1, x @ W_3
    dm, dW_2, _ = linear_backward(dy, f(u) * g, W_2)
    dx_1, dW_1, _ = linear_backward(f_backward(dm * g, u), x, W_1)
    dx_3, dW_3, _ = linear_backward(dm * f(u), x, W_3)
    return {"x": dx_1 + dx_3, "W_1": dW_1, "W_2": dW_2, "W_3": dW_3}


def tied_logits_backward(
    dlogits: Float[ndarray, "... length vocab"],
    h: Float[ndarray, "... length d_model"],
    E: Float[ndarray, "vocab d_model"],
    scaled: bool = False,
) -> tuple[Float[ndarray, "... length d_model"], Float[ndarray, "vocab d_model"]]:
    r"""$\ell = c\,hE^\top$ backward: $dh = c\,d\ell\,E$ and $dE = c\,d\ell^\top h$.

    $E$ is also the embedding table; the gradient of the lookup, $\sum_{t: id_t = v} dx_t$, is added.
    """
    c = 1 / sqrt(h.shape[-1]) if scaled else 1.0
    dh, dE_transposed, _ = linear_backward(c * dlogits, h, E.T)
    return dh, dE_transposed.T


def lookup_and_tied_logits_backward(
    dlogits: Float[ndarray, "batch length vocab"],
    ids: Int[ndarray, "batch length"],
    E: Float[ndarray, "vocab d_model"],
    W: Float[ndarray, "d_model d_model"],
    scaled: bool = False,
) -> tuple[Float[ndarray, "vocab d_model"], Float[ndarray, "d_model d_model"]]:
    r"""$\ell = c\,(E_{ids} W) E^\top$ backward, the smallest model with tied embeddings:

    $$dE_v = c\,\sum_t d\ell_{tv} h_t + \sum_{t:\ id_t = v} (dh\,W^\top)_t, \qquad h = E_{ids} W$$
    """
    x = E[ids]
    dh, dE_head = tied_logits_backward(dlogits, x @ W, E, scaled)
    dx, dW, _ = linear_backward(dh, x, W)
    return dE_head + embedding_backward(dx, ids, E), dW


# --- The block --------------------------------------------------------------------------------


def decoder_sublayers(
    z: ndarray, n_heads: int, keep: Keep, memory_keep: Keep, activation: str, w: Gradients
) -> Sublayers:
    """Self-attention, cross-attention and feed-forward; `keep` already hides the future."""
    own, ffn = encoder_sublayers(n_heads, keep, activation, w)
    cross = {f"{a}_{i}": w[f"{a}_{i}c"] for a in "Wb" for i in "QKVO"}

    def read(a: ndarray) -> ndarray:
        return multi_head_attention(a, z, n_heads, memory_keep, **cross)

    def read_backward(da: ndarray, a: ndarray) -> Gradients:
        grads = multi_head_attention_backward(da, a, z, n_heads, memory_keep, **cross)
        return {name if name in "xz" else f"{name}c": g for name, g in grads.items()}

    return [own, ("c", read, read_backward), ffn]


def decoder_block(
    y: ndarray, z: ndarray, n_heads: int, eps: float, norm_position: str, activation: str,
    keep: Keep = None, memory_keep: Keep = None, **w: ndarray
) -> ndarray:  # fmt: skip
    """A block forward, as `by_hand_decoder.decoder_block`; the cross-attention's weights end in c."""
    keep = hide_future(keep, y.shape[-2])
    sublayers = decoder_sublayers(z, n_heads, keep, memory_keep, activation, w)
    return block(y, sublayers, w, eps=eps, norm_position=norm_position)[-1]


def decoder_block_backward(
    dout: Float[ndarray, "... length d_model"],
    y: Float[ndarray, "... length d_model"],
    z: Float[ndarray, "... keys d_model"],
    n_heads: int,
    eps: float,
    norm_position: str,
    activation: str,
    keep: Keep = None,
    memory_keep: Keep = None,
    **w: ndarray,
) -> Gradients:
    r"""A decoder block backward: feed-forward, cross-attention, self-attention, each as `sublayer_backward`.

    $$dc = \mathrm{FFN}\text{-sublayer}'(dout), \quad (da, dz) = \mathrm{cross}\text{-sublayer}'(dc), \quad
    dy = \mathrm{self}\text{-sublayer}'(da)$$

    $dz$ goes to the encoder; every decoder block adds to it.
    """
    keep = hide_future(keep, y.shape[-2])
    sublayers = decoder_sublayers(z, n_heads, keep, memory_keep, activation, w)
    grads = block_backward(dout, y, sublayers, w, eps=eps, norm_position=norm_position)
    return {"y": grads.pop("x")} | grads
