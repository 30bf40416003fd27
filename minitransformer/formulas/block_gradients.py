r"""Backward through composites: multi-head attention, feed-forward, residuals, the blocks.

Nothing new is derived here: the functions of `gradients` are called in reverse order, and gradients
are added where a value was used twice: at every residual, and for $x$ in self-attention, which is
query, key and value. Notation and shapes as in `gradients`; $f'(dy)$ is short for "$f$ backward,
given $dy$". The results are dictionaries by the name of the input.
"""

from collections.abc import Callable, Iterator
from functools import partial
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


def project(x: ndarray, z: ndarray, n_heads: int, w: dict[str, Any]) -> Iterator[ndarray]:
    """Queries, keys and values of every head."""
    inputs = ((x, "Q"), (z, "K"), (z, "V"))
    return (split(linear(a, w[f"W_{i}"], w[f"b_{i}"]), n_heads) for a, i in inputs)


def multi_head_attention(
    x: ndarray, z: ndarray, n_heads: int, keep: Keep = None, **w: ndarray
) -> ndarray:
    r"""$\mathrm{Concat}(\mathrm{head}_1, \dots, \mathrm{head}_h)\,W^O$; `w` has W_Q b_Q ... W_O b_O."""
    Q, K, V = project(x, z, n_heads, w)
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

    The gradient of a concatenation is cut where it was joined. Each head then goes back on its own,
    and $x$ and $z$ sum over all heads: one product with $W^{Q\top}$, all heads side by side, does
    that. $db^K$ is always 0: a constant added to every key shifts all scores of a query alike.
    """
    Q, K, V = project(x, z, n_heads, w)
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


def self_attention(x: ndarray, n_heads: int, keep: Keep = None, **w: ndarray) -> ndarray:
    r"""$\mathrm{MultiHeadAttention}(x, x)$."""
    return multi_head_attention(x, x, n_heads, keep, **w)


def self_attention_backward(
    dy: ndarray, x: ndarray, n_heads: int, keep: Keep = None, **w: ndarray
) -> Gradients:
    r"""$\mathrm{MultiHeadAttention}(x, x)$ backward: $dx = \mathrm{MHA}'_x + \mathrm{MHA}'_z$."""
    grads = multi_head_attention_backward(dy, x, x, n_heads, keep, **w)
    return grads | {"x": grads["x"] + grads.pop("z")}


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
    """
    f, f_backward = ACTIVATIONS[activation]
    u = linear(x, W_1, b_1)
    df, dW_2, db_2 = linear_backward(dy, f(u), W_2)
    dx, dW_1, db_1 = linear_backward(f_backward(df, u), x, W_1)
    return {"x": dx, "W_1": dW_1, "b_1": db_1, "W_2": dW_2, "b_2": db_2}


# --- Residuals and blocks ---------------------------------------------------------------------

Norm = tuple[ndarray, ndarray]  # gain and shift
Sublayers = list[tuple[str, Callable, Callable]]  # the name of the norm, f, and f backward


def sublayer(x: ndarray, f: Callable, norm: Norm, eps: float, norm_position: str) -> ndarray:
    r"""Residual and norm around $f$: post-LN $\mathrm{LN}(x + f(x))$, pre-LN $x + f(\mathrm{LN}(x))$."""
    if norm_position == "post":
        return layer_norm(x + f(x), *norm, eps)
    return x + f(layer_norm(x, *norm, eps))


def sublayer_backward(
    dout: ndarray, x: ndarray, f: Callable, f_backward: Callable, norm: Norm, eps: float,
    norm_position: str
) -> tuple[ndarray, ndarray, ndarray, Gradients]:  # fmt: skip
    r"""`sublayer` backward: $dx$, $d\gamma$, $d\beta$, and the other gradients of `f_backward(df, input)`.

    post-LN: $dr = \mathrm{LN}'(dout), \ dx = dr + f'(dr)$.
    pre-LN: $dx = dout + \mathrm{LN}'(f'(dout))$.
    """
    if norm_position == "post":
        dr, dgamma, dbeta = layer_norm_backward(dout, x + f(x), *norm, eps)
        grads = f_backward(dr, x)
        return dr + grads.pop("x"), dgamma, dbeta, grads
    grads = f_backward(dout, layer_norm(x, *norm, eps))
    dn, dgamma, dbeta = layer_norm_backward(grads.pop("x"), x, *norm, eps)
    return dout + dn, dgamma, dbeta, grads


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
    """
    options: dict[str, Any] = dict(z=z, n_heads=n_heads, keep=keep, **w)
    mha = partial(multi_head_attention, **options)
    mha_backward = partial(multi_head_attention_backward, **options)
    norm = (gamma, beta)
    dy, dgamma, dbeta, grads = sublayer_backward(dout, y, mha, mha_backward, norm, eps, "post")
    return {"y": dy, "gamma": dgamma, "beta": dbeta} | grads


def encoder_sublayer_backward(
    dy: Float[ndarray, "... length d_model"], x: Float[ndarray, "... length d_model"], **inputs
) -> Gradients:
    r"""The article's $\mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$ backward: $y = z = x$.

    $$dx = dr + \mathrm{MHA}'_x(dr) + \mathrm{MHA}'_z(dr)$$
    """
    grads = decoder_sublayer_backward(dy, x, x, **inputs)
    return {"x": grads.pop("y") + grads.pop("z")} | grads


def block(x: ndarray, sublayers: Sublayers, w: Gradients, **how: Any) -> list[ndarray]:
    """The stream before each sublayer, and after the last; `how`: eps and norm_position."""
    stream = [x]
    for name, f, _ in sublayers:
        stream.append(sublayer(stream[-1], f, norm_of(w, name), **how))
    return stream


def block_backward(
    dout: ndarray, x: ndarray, sublayers: Sublayers, w: Gradients, **how: Any
) -> Gradients:
    """Sublayer by sublayer, the last one first; the gradient of the block's input is called "x"."""
    stream, all_grads = block(x, sublayers, w, **how), Gradients()
    for (name, f, f_backward), x in reversed(list(zip(sublayers, stream[:-1], strict=True))):
        norm = norm_of(w, name)
        dout, dgamma, dbeta, grads = sublayer_backward(dout, x, f, f_backward, norm, **how)
        all_grads |= grads | {f"gamma_{name}": dgamma, f"beta_{name}": dbeta}
    return {"x": dout} | all_grads


def norm_of(w: dict[str, Any], name: str) -> Norm:
    """Gain and shift of one of a block's norms."""
    return w[f"gamma_{name}"], w[f"beta_{name}"]


def parts(w: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], Norm, Norm]:
    """A block's weights: those of the attention, of the feed-forward, and of the two norms."""
    attention = {f"{a}_{i}": w[f"{a}_{i}"] for a in "Wb" for i in "QKVO"}
    ffn = {name: w[name] for name in ("W_1", "b_1", "W_2", "b_2")}
    return attention, ffn, norm_of(w, "1"), norm_of(w, "2")


def encoder_sublayers(n_heads: int, keep: Keep, activation: str, w: dict[str, Any]) -> Sublayers:
    """Self-attention and feed-forward."""
    attention, ffn, *_ = parts(w)
    attention |= {"n_heads": n_heads, "keep": keep}
    ffn |= {"activation": activation}
    return [
        ("1", partial(self_attention, **attention), partial(self_attention_backward, **attention)),
        ("2", partial(feed_forward, **ffn), partial(feed_forward_backward, **ffn)),
    ]


def encoder_block(
    x: ndarray, n_heads: int, eps: float, norm_position: str, activation: str,
    keep: Keep = None, **w: ndarray
) -> ndarray:  # fmt: skip
    """A block forward, as `by_hand.encoder_block`; `w` has the weights of attention, FFN and norms."""
    sublayers = encoder_sublayers(n_heads, keep, activation, w)
    return block(x, sublayers, w, eps=eps, norm_position=norm_position)[-1]


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
    """
    sublayers = encoder_sublayers(n_heads, keep, activation, w)
    return block_backward(dy, x, sublayers, w, eps=eps, norm_position=norm_position)
