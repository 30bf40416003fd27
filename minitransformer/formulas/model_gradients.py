r"""Whole models in NumPy, forward and backward: a decoder alone, and encoder and decoder together.

The parameters have the names and shapes of the modules' state dicts. The gradients of a value that
is used in several places are added: $z$ by every decoder block, $E$ by source, target and logits.
"""

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .by_hand import sinusoidal_positions
from .decoder_gradients import hide_future, tied_logits_backward
from .gradients import (
    ACTIVATIONS,
    Gradients,
    Keep,
    embedding_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
)
from .numpy_transformer import Stack


def embed(ids: ndarray, E: ndarray) -> ndarray:
    r"""$x_t = \sqrt{d_{model}}\,E_{id_t} + PE_t$."""
    return sqrt(E.shape[1]) * E[ids] + sinusoidal_positions(ids.shape[1], E.shape[1])


def transformer_backward(
    dlogits: Float[ndarray, "batch length vocab"],
    source: Int[ndarray, "batch keys"],
    target: Int[ndarray, "batch length"],
    source_keep: Keep = None,
    switches: dict[str, Any] | None = None,
    **p: ndarray,
) -> Gradients:
    r"""The whole Transformer with tied embeddings, $\ell = \mathrm{Decoder}(target, \mathrm{Encoder}(source))\,E^\top$, backward.

    $$dh = d\ell\,E, \quad (dy_0, dz) = \mathrm{Decoder}'(dh), \quad dx_0 = \mathrm{Encoder}'(dz)$$
    $$dE_v = (d\ell^\top h)_v + \sqrt{d_{model}} \Big( \sum_{t:\,target_t = v} dy_{0,t} +
    \sum_{t:\,source_t = v} dx_{0,t} \Big)$$
    """
    table = "encoder_decoder.encoder.embeddings.tokens.weight"
    E, switches = p[table], switches or {}
    encoder = Stack(p, "encoder_decoder.encoder.", **switches)
    decoder = Stack(p, "encoder_decoder.decoder.", cross=True, **switches)
    x = encoder.forward(embed(source, E), source_keep)
    z = x[-1]
    y = decoder.forward(embed(target, E), source_keep, z)

    dh, dE = tied_logits_backward(dlogits, y[-1], E)
    dy, dz, decoder_grads = decoder.backward(dh, y, source_keep, z)
    dx, _, encoder_grads = encoder.backward(dz, x, source_keep)
    looked_up = embedding_backward(dy, target, E) + embedding_backward(dx, source, E)
    return encoder_grads | decoder_grads | {table: dE + sqrt(E.shape[1]) * looked_up}


def causal_lm_backward(
    dlogits: Float[ndarray, "batch length vocab"],
    ids: Int[ndarray, "batch length"],
    keep: Keep = None,
    switches: dict[str, Any] | None = None,
    **p: ndarray,
) -> Gradients:
    r"""A decoder alone with learned positions $P$, $\ell = hE^\top$, $x_{0,t} = E_{id_t} + P_t$, backward:

    $$dE_v = (d\ell^\top h)_v + \sum_{t:\ id_t = v} dx_{0,t}, \qquad dP_t = dx_{0,t}$$

    Without cross-attention a decoder block is an encoder block whose mask hides the future.
    """
    table, positions = (f"decoder.embeddings.{n}.weight" for n in ("tokens", "position_table"))
    E, P = p[table], p[positions]
    length = ids.shape[1]
    past = hide_future(keep, length)
    decoder = Stack(p, "decoder.", **(switches or {}))
    x = decoder.forward(E[ids] + P[:length], past)
    dh, dE = tied_logits_backward(dlogits, x[-1], E)
    dx, _, grads = decoder.backward(dh, x, past)
    dP = embedding_backward(dx, np.broadcast_to(np.arange(length), ids.shape), P)
    return grads | {table: dE + embedding_backward(dx, ids, E), positions: dP}


def masked_lm_backward(
    dlogits: Float[ndarray, "batch length vocab"],
    ids: Int[ndarray, "batch length"],
    keep: Keep = None,
    switches: dict[str, Any] | None = None,
    **p: ndarray,
) -> Gradients:
    r"""BERT's pretraining, $\ell = \mathrm{LN}(f(u))\,E^\top + b_E$, $u = \mathrm{Encoder}(ids)\,W + b$, backward:

    $$dn = d\ell\,E, \qquad du = \mathrm{LN}'(dn) \odot f'(u), \qquad db_E = \sum_t d\ell_t$$
    """
    table, switches = "encoder.embeddings.tokens.weight", switches or {}
    E, f, eps = p[table], ACTIVATIONS[switches["activation"]], switches["eps"]
    encoder = Stack(p, "encoder.", **switches)
    x = encoder.forward(embed(ids, E), keep)
    u = linear(x[-1], p["dense.weight"].T, p["dense.bias"])
    norm = p["norm.weight"], p["norm.bias"]
    dn, dE = tied_logits_backward(dlogits, layer_norm(f[0](u), *norm, eps), E)
    df, dgamma, dbeta = layer_norm_backward(dn, f[0](u), *norm, eps)
    dh, dW, db = linear_backward(f[1](df, u), x[-1], p["dense.weight"].T)
    dx, _, grads = encoder.backward(dh, x, keep)
    return grads | {
        table: dE + sqrt(E.shape[1]) * embedding_backward(dx, ids, E),
        "dense.weight": dW.T, "dense.bias": db, "norm.weight": dgamma, "norm.bias": dbeta,
        "head.bias": dlogits.sum((0, 1)),
    }  # fmt: skip
