r"""A Transformer classifier that learns without autograd: forward, backward and AdamW in NumPy.

$$x_0 = \sqrt{d_{model}}\,E_{ids} + PE, \quad x_l = \mathrm{EncoderBlock}_l(x_{l-1}), \quad
\text{logits} = \mathrm{mean}(x_N)\,W + b, \quad L = \text{cross-entropy}$$

The parameters have the names and shapes of the state dict of `SequenceClassifier` (pooling "mean"),
so that both can start from the same weights and be compared name by name after every step.
"""

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from . import by_hand
from .block_gradients import encoder_block, encoder_block_backward
from .decoder_gradients import decoder_block, decoder_block_backward
from .gradients import (
    Gradients,
    Keep,
    cross_entropy_backward,
    embedding_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    mean_pool_backward,
    softmax,
)
from .ops import adamw_step

# A block's parameter in the formula -> its name in the state dict.
NAMES = {f"W_{i}": f"attention.W_{i}.weight" for i in "QKVO"}
NAMES |= {f"b_{i}": f"attention.W_{i}.bias" for i in "QKVO"}
for i in (1, 2):
    NAMES |= {f"W_{i}": f"feed_forward.W_{i}.weight", f"b_{i}": f"feed_forward.W_{i}.bias"}
    NAMES |= {f"gamma_{i}": f"norm_{i}.weight", f"beta_{i}": f"norm_{i}.bias"}

# The same for a decoder block; the names of the cross-attention end in c.
DECODER_NAMES = NAMES | {
    f"{name}c": f"cross_{place}" for name, place in NAMES.items() if place.startswith("attention.")
}
DECODER_NAMES |= {"gamma_c": "norm_cross.weight", "beta_c": "norm_cross.bias"}

TOKENS, POSITIONS = (f"encoder.embeddings.{n}.weight" for n in ("tokens", "position_table"))


def turned(name: str, a: Any) -> Any:
    r"""Between formula and state dict: a linear map is stored as $W^\top$, everything else as it is."""
    return a.T if name.startswith("W_") else a


class Stack:
    """A stack of blocks and the norm after it, with its parameters under one prefix.

    Args:
        parameters: a state dict, of which the names that begin with `prefix` are used.
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
        """The state dict's name of a parameter of block i."""
        return f"{self.prefix}blocks.{i}.{self.names[name]}"

    def block(self, i: int) -> dict[str, Any]:
        """The parameters of block i under the formulas' names."""
        return {n: turned(n, self.parameters[self.name(i, n)]) for n in self.names} | self.switches

    def norm(self) -> tuple[Any, Any] | None:
        """Gain and shift of the last norm, if there is one (pre-LN)."""
        gain, shift = (self.parameters.get(f"{self.prefix}norm.{n}") for n in ("weight", "bias"))
        return None if gain is None else (gain, shift)

    def forward(self, x: ndarray, keep: Keep, z: ndarray | None = None) -> list[ndarray]:
        """The stream before each block, after the last, and after the norm; z for decoders."""
        stream = [x]
        for i in range(self.depth):
            if z is not None:
                stream.append(decoder_block(stream[-1], z, memory_keep=keep, **self.block(i)))
            else:
                stream.append(encoder_block(stream[-1], keep=keep, **self.block(i)))
        if norm := self.norm():
            stream.append(layer_norm(stream[-1], *norm, self.switches["eps"]))
        return stream

    def backward(
        self, dx: ndarray, stream: list[ndarray], keep: Keep, z: ndarray | None = None
    ) -> tuple[ndarray, ndarray, Gradients]:
        """The gradients of the input, of z and of the parameters, given that of the output."""
        grads, dz = Gradients(), np.zeros(())
        if norm := self.norm():
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


class NumpyClassifier:
    r"""An encoder, the mean over the real positions, one linear map to the classes; 0 is padding.

    Args:
        parameters: a state dict, of which a copy is kept in float64. With a `position_table` in it
            positions are learned, otherwise sinusoidal; the blocks are counted by their names.
        n_heads, norm_position, activation: as in `TransformerConfig`.

    Source: the article, sections 3.2 and 4; Vaswani et al. 2017, section 3.1.
    """

    def __init__(
        self,
        parameters: dict[str, ndarray],
        n_heads: int,
        norm_position: str = "post",
        activation: str = "relu",
    ):
        self.parameters = {k: np.array(a, dtype=np.float64) for k, a in parameters.items()}
        self.encoder = Stack(
            self.parameters, "encoder.", n_heads=n_heads, norm_position=norm_position,
            activation=activation, eps=1e-5,
        )  # fmt: skip

    def forward(
        self, ids: Int[ndarray, "batch length"]
    ) -> tuple[Float[ndarray, "batch classes"], list[Float[ndarray, "batch length d_model"]]]:
        r"""The logits, and what backward needs: the stream $x_0, \dots, x_N$ between the blocks."""
        p, real = self.parameters, ids != 0
        E = p[TOKENS]
        x = sqrt(E.shape[1]) * E[ids] + self.positions(ids.shape[1])
        stream = self.encoder.forward(x, real[:, None, None, :])  # no one may attend to padding
        pooled = mean_pool(stream[-1], real)
        return linear(pooled, p["classifier.weight"].T, p["classifier.bias"]), stream

    def loss_and_gradients(
        self, ids: Int[ndarray, "batch length"], labels: Int[ndarray, "batch"]
    ) -> tuple[float, Gradients]:
        r"""Cross-entropy and its gradient with respect to every parameter, the chain rule by hand.

        Shapes: the gradients are shaped like the parameters.
        """
        p, real = self.parameters, ids != 0
        logits, stream = self.forward(ids)
        loss = -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()

        dlogits = cross_entropy_backward(1.0, logits, labels)
        pooled = mean_pool(stream[-1], real)
        dpooled, dW, db = linear_backward(dlogits, pooled, p["classifier.weight"].T)
        dhidden = mean_pool_backward(dpooled, stream[-1], real)
        dx, _, grads = self.encoder.backward(dhidden, stream, real[:, None, None, :])
        E = p[TOKENS]
        dE = sqrt(E.shape[1]) * embedding_backward(dx, ids, E)
        grads |= {"classifier.weight": dW.T, "classifier.bias": db, TOKENS: dE}
        if POSITIONS in p:  # every example looks up the positions 0, 1, 2 ...
            places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            grads[POSITIONS] = embedding_backward(dx, places, p[POSITIONS])
        return float(loss), grads

    def positions(self, length: int) -> Float[ndarray, "length d_model"]:
        """The learned table, or sines and cosines."""
        if POSITIONS in self.parameters:
            return self.parameters[POSITIONS][:length]
        table = by_hand.sinusoidal_positions(length, self.parameters[TOKENS].shape[1])
        return table.astype(np.float32).astype(np.float64)  # rounded like the torch module's table


def mean_pool(hidden: ndarray, real: ndarray) -> Float[ndarray, "batch d_model"]:
    """The mean over the real positions."""
    return (hidden * real[..., None]).sum(1) / np.maximum(real.sum(1), 1)[:, None]


class AdamW:
    r"""`ops.adamw_step` for a dictionary of parameters, which are changed in place.

    Args:
        options: lr, beta_1, beta_2, eps and weight_decay, as there.

    Source: Loshchilov and Hutter 2019, algorithm 2.  Reference: `torch.optim.AdamW`.
    """

    def __init__(self, parameters: dict[str, ndarray], *options: float, **named: float):
        self.parameters, self.t, self.options, self.named = parameters, 0, options, named
        self.m, self.v = ({n: np.zeros_like(a) for n, a in parameters.items()} for _ in "mv")

    def step(self, gradients: Gradients) -> None:
        """Change every parameter by one step."""
        self.t += 1
        for n, theta in self.parameters.items():
            theta[...], self.m[n], self.v[n] = adamw_step(
                theta, gradients[n], self.m[n], self.v[n], self.t, *self.options, **self.named
            )
