r"""Whole models in NumPy, forward and backward: a decoder alone, and encoder and decoder together.

The parameters have the names and the shapes of the modules' state dicts. What several places use is
added up: the memory $z$ by every decoder block, the table $E$ by source, target and logits.
"""

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from .block_gradients import encoder_block, encoder_block_backward
from .by_hand import sinusoidal_positions
from .decoder_gradients import (
    decoder_block,
    decoder_block_backward,
    hide_future,
    tied_logits_backward,
)
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
from .numpy_transformer import NAMES, turned

# A decoder block's parameter in the formula -> its name in the state dict; encoder blocks lack the
# cross-attention, whose names end in c.
DECODER_NAMES = NAMES | {
    f"{name}c": place.replace("attention.", "cross_attention.")
    for name, place in NAMES.items()
    if place.startswith("attention.")
}
DECODER_NAMES |= {"gamma_c": "norm_cross.weight", "beta_c": "norm_cross.bias"}


class Stack:
    """A stack of blocks and the norm behind it, with the parameters under one prefix.

    Args:
        parameters: a state dict; those whose names begin with `prefix` are meant.
        cross: whether the blocks are decoder blocks with cross-attention.
        switches: n_heads, eps, norm_position, activation.
    """

    def __init__(
        self, parameters: dict[str, Any], prefix: str, cross: bool = False, **switches: Any
    ) -> None:
        self.parameters, self.prefix, self.switches = parameters, prefix, switches
        self.names = DECODER_NAMES if cross else NAMES
        self.depth = 0
        while self.name(self.depth, "W_Q") in parameters:
            self.depth += 1

    def name(self, i: int, name: str) -> str:
        """The name in the state dict of a parameter of block i."""
        return f"{self.prefix}blocks.{i}.{self.names[name]}"

    def block(self, i: int) -> dict[str, Any]:
        """The parameters of block i under the formulas' names."""
        return {n: turned(n, self.parameters[self.name(i, n)]) for n in self.names} | self.switches

    def norm(self) -> tuple[Any, Any] | None:
        """Gain and shift of the last norm, which a pre-LN stack has."""
        names = [f"{self.prefix}norm.{kind}" for kind in ("weight", "bias")]
        if names[0] not in self.parameters:
            return None
        return self.parameters[names[0]], self.parameters[names[1]]

    def forward(self, x: ndarray, keep: Keep, z: ndarray | None = None) -> list[ndarray]:
        """The stream before each block, behind the last, and behind the norm; z for decoders."""
        stream = [x]
        for i in range(self.depth):
            if z is not None:
                stream.append(decoder_block(stream[-1], z, memory_keep=keep, **self.block(i)))
            else:
                stream.append(encoder_block(stream[-1], keep=keep, **self.block(i)))
        norm = self.norm()
        if norm is not None:
            stream.append(layer_norm(stream[-1], *norm, self.switches["eps"]))
        return stream

    def backward(
        self, dx: ndarray, stream: list[ndarray], keep: Keep, z: ndarray | None = None
    ) -> tuple[ndarray, ndarray, Gradients]:
        """From the gradient of the output: that of the input, that of z, those of the parameters."""
        grads, dz = Gradients(), np.zeros(())
        norm = self.norm()
        if norm is not None:
            dx, dgamma, dbeta = layer_norm_backward(dx, stream[-2], *norm, self.switches["eps"])
            grads |= {f"{self.prefix}norm.weight": dgamma, f"{self.prefix}norm.bias": dbeta}
        for i in reversed(range(self.depth)):
            if z is not None:
                block = decoder_block_backward(dx, stream[i], z, memory_keep=keep, **self.block(i))
                dx, dz = block.pop("y"), dz + block.pop("z")
            else:
                block = encoder_block_backward(dx, stream[i], keep=keep, **self.block(i))
                dx = block.pop("x")
            grads |= {self.name(i, n): turned(n, a) for n, a in block.items()}
        return dx, dz, grads


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

    Shapes: the gradients are shaped like the parameters.
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

    Shapes: the gradients are shaped like the parameters.
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

    Shapes: the gradients are shaped like the parameters.
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
