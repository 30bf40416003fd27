r"""Backward through the parts that are made of parts: multi-head attention, feed-forward, the blocks.

Nothing new is derived here. A sublayer's backward calls those of `gradients` in reverse order, and
adds where a value was used twice: at every residual, and for $x$ in self-attention, which is query,
key and value. Notation and shapes as in `gradients`; $f'(dy)$ is short for "$f$ backward, given
$dy$". The results are dictionaries by the name of the input.
"""

from typing import Any

from jaxtyping import Float
from numpy import ndarray

from .gradients import (
    ACTIVATIONS,
    Gradients,
    Keep,
    attention,
    attention_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)


def split(y: ndarray, n_heads: int) -> ndarray:
    """Cut the last axis into heads: (..., T, h d_k) -> (..., h, T, d_k)."""
    return y.reshape(*y.shape[:-1], n_heads, -1).swapaxes(-2, -3)


def concat(heads: ndarray) -> ndarray:
    """Put the heads side by side, the inverse of `split`: (..., h, T, d_k) -> (..., T, h d_k)."""
    y = heads.swapaxes(-2, -3)
    return y.reshape(*y.shape[:-2], -1)


def multi_head_attention(
    x: ndarray, z: ndarray, n_heads: int, keep: Keep = None, **w: ndarray
) -> ndarray:
    r"""$\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O$; `w` has W_Q b_Q ... W_O b_O."""
    Q, K, V = (
        split(linear(a, w[f"W_{i}"], w[f"b_{i}"]), n_heads)
        for a, i in ((x, "Q"), (z, "K"), (z, "V"))
    )
    return linear(concat(attention(Q, K, V, keep)), w["W_O"], w["b_O"])


def multi_head_attention_backward(
    dy: Float[ndarray, "... queries d_model"],
    x: Float[ndarray, "... queries d_model"],
    z: Float[ndarray, "... keys d_model"],
    n_heads: int,
    keep: Keep = None,
    **w: ndarray,
) -> Gradients:
    r"""$\mathrm{MultiHeadAttention}(x, z)$ backward.

    $$dC = dy\,W^{O\top}, \qquad dW^O = C^\top dy, \qquad C = \mathrm{Concat}(\mathrm{head}_1, \dots)$$

    The gradient of a concatenation is cut where it was joined; each head then goes back on its own,
    and $x$ and $z$ add up what comes from all of them: one product with the wide $W^{Q\top}$ does
    that. $db^K$ is always 0, since a constant added to every key moves all scores of a query alike.

    Shapes: the gradients are shaped like the inputs; $W^Q, W^K, W^V$ hold the heads side by side.
    """
    Q = split(linear(x, w["W_Q"], w["b_Q"]), n_heads)
    K = split(linear(z, w["W_K"], w["b_K"]), n_heads)
    V = split(linear(z, w["W_V"], w["b_V"]), n_heads)
    C = concat(attention(Q, K, V, keep))
    dC, dW_O, db_O = linear_backward(dy, C, w["W_O"])
    dQ, dK, dV = attention_backward(split(dC, n_heads), Q, K, V, keep)
    dx, dW_Q, db_Q = linear_backward(concat(dQ), x, w["W_Q"])
    dz_K, dW_K, db_K = linear_backward(concat(dK), z, w["W_K"])
    dz_V, dW_V, db_V = linear_backward(concat(dV), z, w["W_V"])
    return {
        "x": dx, "z": dz_K + dz_V, "W_Q": dW_Q, "W_K": dW_K, "W_V": dW_V, "W_O": dW_O,
        "b_Q": db_Q, "b_K": db_K, "b_V": db_V, "b_O": db_O,
    }  # fmt: skip


def feed_forward(
    x: ndarray, W_1: ndarray, b_1: ndarray, W_2: ndarray, b_2: ndarray, activation: str
) -> ndarray:
    r"""$\mathrm{FFN}(x) = f(xW_1 + b_1)W_2 + b_2$."""
    return linear(ACTIVATIONS[activation][0](linear(x, W_1, b_1)), W_2, b_2)


def feed_forward_backward(
    dy: Float[ndarray, "... d_model"],
    x: Float[ndarray, "... d_model"],
    W_1: Float[ndarray, "d_model d_ff"],
    b_1: Float[ndarray, "d_ff"],
    W_2: Float[ndarray, "d_ff d_model"],
    b_2: Float[ndarray, "d_model"],
    activation: str = "relu",
) -> Gradients:
    r"""$\mathrm{FFN}(x) = f(u)W_2 + b_2$ with $u = xW_1 + b_1$, backward:

    $$df = dy\,W_2^\top, \qquad du = df \odot f'(u), \qquad dx = du\,W_1^\top$$

    Shapes: the gradients are shaped like the inputs.
    """
    f, f_backward = ACTIVATIONS[activation]
    u = linear(x, W_1, b_1)
    df, dW_2, db_2 = linear_backward(dy, f(u), W_2)
    dx, dW_1, db_1 = linear_backward(f_backward(df, u), x, W_1)
    return {"x": dx, "W_1": dW_1, "b_1": db_1, "W_2": dW_2, "b_2": db_2}


# --- Residuals and blocks ---------------------------------------------------------------------


def decoder_sublayer_backward(
    dout: Float[ndarray, "... queries d_model"],
    y: Float[ndarray, "... queries d_model"],
    z: Float[ndarray, "... keys d_model"],
    n_heads: int,
    gamma: Float[ndarray, "d_model"],
    beta: Float[ndarray, "d_model"],
    eps: float,
    keep: Keep = None,
    **w: ndarray,
) -> Gradients:
    r"""The article's $\mathrm{LayerNorm}(r)$, $r = y + \mathrm{MultiHeadAttention}(y, z)$, backward:

    $$dr = \mathrm{LN}'(dout), \qquad dy = dr + \mathrm{MHA}'_x(dr), \qquad dz = \mathrm{MHA}'_z(dr)$$

    The summand $dr$ alone is the residual's: it reaches $y$ without passing any weight.

    Shapes: the gradients are shaped like the inputs.
    """
    r = y + multi_head_attention(y, z, n_heads, keep, **w)
    dr, dgamma, dbeta = layer_norm_backward(dout, r, gamma, beta, eps)
    grads = multi_head_attention_backward(dr, y, z, n_heads, keep, **w)
    dy = dr + grads.pop("x")
    return {"y": dy, "gamma": dgamma, "beta": dbeta} | grads


def encoder_sublayer_backward(
    dy: Float[ndarray, "... length d_model"], x: Float[ndarray, "... length d_model"], **inputs
) -> Gradients:
    r"""The article's $\mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$ backward: $y = z = x$.

    $$dx = dr + \mathrm{MHA}'_x(dr) + \mathrm{MHA}'_z(dr)$$
    """
    grads = decoder_sublayer_backward(dy, x, x, **inputs)
    dx = grads.pop("y") + grads.pop("z")
    return {"x": dx} | grads


def encoder_block(
    x: ndarray, n_heads: int, eps: float, norm_position: str, activation: str,
    keep: Keep = None, **w: ndarray,
) -> ndarray:  # fmt: skip
    """A block forward, as `by_hand.encoder_block`; `w` has the weights of attention, FFN and norms."""
    w_attention, w_ffn, norm_1, norm_2 = parts(w)
    if norm_position == "post":
        a = x + multi_head_attention(x, x, n_heads, keep, **w_attention)
        a = layer_norm(a, *norm_1, eps)
        return layer_norm(a + feed_forward(a, **w_ffn, activation=activation), *norm_2, eps)
    n = layer_norm(x, *norm_1, eps)
    a = x + multi_head_attention(n, n, n_heads, keep, **w_attention)
    return a + feed_forward(layer_norm(a, *norm_2, eps), **w_ffn, activation=activation)


def encoder_block_backward(
    dy: Float[ndarray, "... length d_model"],
    x: Float[ndarray, "... length d_model"],
    n_heads: int,
    eps: float,
    norm_position: str,
    activation: str,
    keep: Keep = None,
    **w: ndarray,
) -> Gradients:
    r"""A block backward: the last sublayer first, and at each residual the two ways are added.

    post-LN, $a = \mathrm{LN}_1(r_1)$, $r_1 = x + \mathrm{MHA}(x)$, $y = \mathrm{LN}_2(r_2)$, $r_2 = a + \mathrm{FFN}(a)$: every
    gradient passes both norms,

    $$dr_2 = \mathrm{LN}_2'(dy), \quad da = dr_2 + \mathrm{FFN}'(dr_2), \quad dr_1 = \mathrm{LN}_1'(da), \quad
    dx = dr_1 + \mathrm{MHA}'(dr_1)$$

    pre-LN, $a = x + \mathrm{MHA}(\mathrm{LN}_1(x))$, $y = a + \mathrm{FFN}(\mathrm{LN}_2(a))$: $dy$ reaches $x$ untouched,

    $$da = dy + \mathrm{LN}_2'(\mathrm{FFN}'(dy)), \qquad dx = da + \mathrm{LN}_1'(\mathrm{MHA}'(da))$$

    Shapes: the gradients are shaped like the inputs.
    """
    w_attention, w_ffn, norm_1, norm_2 = parts(w)
    if norm_position == "post":
        r_1 = x + multi_head_attention(x, x, n_heads, keep, **w_attention)
        a = layer_norm(r_1, *norm_1, eps)
        r_2 = a + feed_forward(a, **w_ffn, activation=activation)
        dr_2, dgamma_2, dbeta_2 = layer_norm_backward(dy, r_2, *norm_2, eps)
        ffn = feed_forward_backward(dr_2, a, **w_ffn, activation=activation)
        da = dr_2 + ffn.pop("x")
        dr_1, dgamma_1, dbeta_1 = layer_norm_backward(da, r_1, *norm_1, eps)
        mha = multi_head_attention_backward(dr_1, x, x, n_heads, keep, **w_attention)
        dx = dr_1 + mha.pop("x") + mha.pop("z")
    else:
        n_1 = layer_norm(x, *norm_1, eps)
        a = x + multi_head_attention(n_1, n_1, n_heads, keep, **w_attention)
        n_2 = layer_norm(a, *norm_2, eps)
        ffn = feed_forward_backward(dy, n_2, **w_ffn, activation=activation)
        dn_2, dgamma_2, dbeta_2 = layer_norm_backward(ffn.pop("x"), a, *norm_2, eps)
        da = dy + dn_2
        mha = multi_head_attention_backward(da, n_1, n_1, n_heads, keep, **w_attention)
        dn_1 = mha.pop("x") + mha.pop("z")
        dn_1, dgamma_1, dbeta_1 = layer_norm_backward(dn_1, x, *norm_1, eps)
        dx = da + dn_1
    norms = {"gamma_1": dgamma_1, "beta_1": dbeta_1, "gamma_2": dgamma_2, "beta_2": dbeta_2}
    return {"x": dx} | mha | ffn | norms


Norm = tuple[ndarray, ndarray]  # gain and shift


def parts(w: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Norm, Norm]:
    """A block's weights: those of the attention, of the feed-forward, and of the two norms."""
    ffn = {name: w[name] for name in ("W_1", "b_1", "W_2", "b_2")}
    attention = {f"{a}_{i}": w[f"{a}_{i}"] for a in "Wb" for i in "QKVO"}
    norm_1, norm_2 = ((w[f"gamma_{i}"], w[f"beta_{i}"]) for i in (1, 2))
    return attention, ffn, norm_1, norm_2
