r"""A Transformer classifier that learns without autograd: forward, backward and AdamW in NumPy.

$$x_0 = \sqrt{d_{model}}\,E_{ids} + PE, \quad x_l = \mathrm{EncoderBlock}_l(x_{l-1}), \quad
\text{logits} = \mathrm{mean}(x_N)\,W + b, \quad L = \text{cross-entropy}$$

The parameters have the names and the shapes of the state dict of `SequenceClassifier` (pooling
"mean"), so the two can start from the same weights and be compared name by name after every step.
"""

from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from . import by_hand
from .block_gradients import encoder_block, encoder_block_backward
from .gradients import (
    Gradients,
    cross_entropy_backward,
    embedding_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    mean_pool_backward,
    softmax,
)

# A block's parameter in the formula -> its name in the state dict.
NAMES = {f"W_{i}": f"attention.W_{i}.weight" for i in "QKVO"}
NAMES |= {f"b_{i}": f"attention.W_{i}.bias" for i in "QKVO"}
for i in (1, 2):
    NAMES |= {f"W_{i}": f"feed_forward.W_{i}.weight", f"b_{i}": f"feed_forward.W_{i}.bias"}
    NAMES |= {f"gamma_{i}": f"norm_{i}.weight", f"beta_{i}": f"norm_{i}.bias"}


def turned(name: str, a: Any) -> Any:
    r"""Between formula and state dict: a linear map is stored as $W^\top$, all else as it is."""
    return a.T if name.startswith("W_") else a


class NumpyClassifier:
    r"""An encoder, the mean over the real positions, one linear map to the classes.

    Args:
        parameters: a copy is kept in `parameters`, in float64; `classifier.weight`,
            `encoder.blocks.0.attention.W_Q.weight` and so on. With a `position_table` among them the
            positions are learned, else sinusoidal; the blocks are counted from the names.
        n_heads, norm_position, activation, eps, pad_id: as in `TransformerConfig`.

    Source: the article, sections 3.2 and 4; Vaswani et al. 2017, section 3.1.
    """

    def __init__(
        self,
        parameters: dict[str, ndarray],
        n_heads: int,
        norm_position: str = "post",
        activation: str = "relu",
        eps: float = 1e-5,
        pad_id: int = 0,
    ):
        self.parameters = {k: np.array(a, dtype=np.float64) for k, a in parameters.items()}
        self.pad_id = pad_id
        self.norm_position = norm_position
        self.switches: dict[str, Any] = dict(
            n_heads=n_heads, norm_position=norm_position, activation=activation, eps=eps
        )
        self.n_layers = 0
        while self.block_name(self.n_layers, "W_Q") in self.parameters:
            self.n_layers += 1

    def forward(
        self, ids: Int[ndarray, "batch length"]
    ) -> tuple[Float[ndarray, "batch classes"], list[Float[ndarray, "batch length d_model"]]]:
        r"""The logits, and what backward needs: the stream $x_0, \dots, x_N$ between the blocks."""
        p, keep = self.parameters, self.keep(ids)
        E = p["encoder.embeddings.tokens.weight"]
        stream = [sqrt(E.shape[1]) * E[ids] + self.positions(ids.shape[1])]
        for i in range(self.n_layers):
            stream.append(encoder_block(stream[-1], keep=keep, **self.block(i), **self.switches))
        pooled = self.mean_pool(self.final_norm(stream[-1]), ids)
        return linear(pooled, p["classifier.weight"].T, p["classifier.bias"]), stream

    def loss_and_gradients(
        self, ids: Int[ndarray, "batch length"], labels: Int[ndarray, "batch"]
    ) -> tuple[float, Gradients]:
        r"""Cross-entropy and its gradient with respect to every parameter, the chain rule by hand.

        Shapes: ids (batch, length), labels (batch); the gradients are shaped like the parameters.
        """
        p, keep, grads = self.parameters, self.keep(ids), Gradients()
        logits, stream = self.forward(ids)
        loss = -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()

        dlogits = cross_entropy_backward(1.0, logits, labels)
        hidden = self.final_norm(stream[-1])
        pooled = self.mean_pool(hidden, ids)
        dpooled, dW, grads["classifier.bias"] = linear_backward(
            dlogits, pooled, p["classifier.weight"].T
        )
        grads["classifier.weight"] = dW.T
        dx = mean_pool_backward(dpooled, hidden, ids != self.pad_id)
        if self.norm_position == "pre":
            dx, grads["encoder.norm.weight"], grads["encoder.norm.bias"] = layer_norm_backward(
                dx, stream[-1], *self.norm(), self.switches["eps"]
            )
        for i in reversed(range(self.n_layers)):
            block = encoder_block_backward(
                dx, stream[i], keep=keep, **self.block(i), **self.switches
            )
            dx = block.pop("x")
            grads |= {self.block_name(i, name): turned(name, a) for name, a in block.items()}
        E = p["encoder.embeddings.tokens.weight"]
        grads["encoder.embeddings.tokens.weight"] = sqrt(E.shape[1]) * embedding_backward(
            dx, ids, E
        )
        table = p.get("encoder.embeddings.position_table.weight")
        if table is not None:  # every example looks up the positions 0, 1, 2 ...
            places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
            grads["encoder.embeddings.position_table.weight"] = embedding_backward(
                dx, places, table
            )
        return float(loss), grads

    def keep(self, ids: ndarray) -> Bool[ndarray, "batch 1 1 length"]:
        """No one may attend to padding."""
        return (ids != self.pad_id)[:, None, None, :]

    def mean_pool(self, hidden: ndarray, ids: ndarray) -> Float[ndarray, "batch d_model"]:
        """The mean over the real positions."""
        real = (ids != self.pad_id)[..., None]
        return (hidden * real).sum(1) / np.maximum(real.sum(1), 1)

    def positions(self, length: int) -> Float[ndarray, "length d_model"]:
        """The learned table, or sines and cosines."""
        table = self.parameters.get("encoder.embeddings.position_table.weight")
        if table is not None:
            return table[:length]
        d_model = self.parameters["encoder.embeddings.tokens.weight"].shape[1]
        # The torch module keeps this table in float32; the same rounding here, to compare.
        return by_hand.sinusoidal_positions(length, d_model).astype(np.float32).astype(np.float64)

    def norm(self) -> tuple[ndarray, ndarray]:
        """Gain and shift of the last norm of a pre-LN stack."""
        return self.parameters["encoder.norm.weight"], self.parameters["encoder.norm.bias"]

    def final_norm(self, x: ndarray) -> ndarray:
        """A pre-LN stack ends with one more norm."""
        if self.norm_position == "post":
            return x
        return layer_norm(x, *self.norm(), self.switches["eps"])

    def block_name(self, i: int, name: str) -> str:
        """The name in the state dict of a parameter of block i."""
        return f"encoder.blocks.{i}.{NAMES[name]}"

    def block(self, i: int) -> dict[str, Any]:
        """The parameters of block i under the names and in the orientation of the formulas."""
        return {name: turned(name, self.parameters[self.block_name(i, name)]) for name in NAMES}


class AdamW:
    r"""AdamW on a dictionary of parameters, changed in place.

    $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
    \theta \leftarrow \theta - \eta\lambda\theta - \eta\,\frac{m / (1-\beta_1^t)}{\sqrt{v / (1-\beta_2^t)} + \epsilon}$$

    Source: Loshchilov and Hutter 2019, algorithm 2.  Reference: `torch.optim.AdamW`.
    """

    def __init__(
        self,
        parameters: dict[str, ndarray],
        lr: float,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        self.parameters, self.lr, self.eps, self.weight_decay = parameters, lr, eps, weight_decay
        self.beta_1, self.beta_2, self.t = beta_1, beta_2, 0
        self.m = {name: np.zeros_like(theta) for name, theta in parameters.items()}
        self.v = {name: np.zeros_like(theta) for name, theta in parameters.items()}

    def step(self, gradients: Gradients) -> None:
        """Change every parameter by one step."""
        self.t += 1
        for name, theta in self.parameters.items():
            g, m, v = gradients[name], self.m[name], self.v[name]
            m += (1 - self.beta_1) * (g - m)
            v += (1 - self.beta_2) * (g**2 - v)
            m_hat, v_hat = m / (1 - self.beta_1**self.t), v / (1 - self.beta_2**self.t)
            theta -= self.lr * self.weight_decay * theta
            theta -= self.lr * m_hat / (np.sqrt(v_hat) + self.eps)
