"""The small modules: norms, feed-forward, dropout, embeddings with positions; how weights start."""

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..formulas.ops import inverted_dropout, operations, sinusoidal_positions
from .config import TransformerConfig
from .shapes import Ids


class LayerNorm(nn.Module):
    r"""Normalise each position to mean 0 and variance 1, then apply a learned gain and shift.

    $$\mathrm{LayerNorm}(x) = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

    `weight` is $\gamma$ and `bias` is $\beta$, as in `nn.LayerNorm`.

    Shapes: (..., d_model) -> the same.  Source: Ba, Kiros and Hinton 2016.
    Reference: `nn.LayerNorm`.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, ops: str = "fused"):
        super().__init__()
        self.eps, self.ops, self.f = eps, ops, operations(ops)
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Normalise the last axis."""
        return self.f.layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    r"""LayerNorm without the mean and without the shift.

    $$\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}$$

    Shapes: (..., d_model) -> the same.  Source: Zhang and Sennrich 2019.  Reference: `nn.RMSNorm`.
    """

    def __init__(self, d_model: int, eps: float = 1e-6, ops: str = "fused"):
        super().__init__()
        self.eps, self.ops, self.f = eps, ops, operations(ops)
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Normalise the last axis."""
        return self.f.rms_norm(x, self.weight, self.eps)


def make_norm(config: TransformerConfig) -> LayerNorm | RMSNorm:
    """The norm described by the config."""
    cls = LayerNorm if config.norm == "layer" else RMSNorm
    return cls(config.d_model, config.norm_eps, config.ops)


class Dropout(nn.Module):
    """`inverted_dropout` in training, the identity in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Drop entries of x while training."""
        return inverted_dropout(x, self.p) if self.training else x


class FeedForward(nn.Module):
    r"""The same two-layer network at every position: $\mathrm{FFN}(x) = f(xW_1 + b_1)W_2 + b_2$.

    Gated, a third map scales each inner entry: $(f(xW_1) \odot xW_3)\,W_2$.

    Shapes: (..., d_model) -> the same, through (..., d_ff).
    Source: Vaswani et al. 2017, equation 2, with $f$ = ReLU (BERT: GELU); gated: Shazeer 2020,
    equation 6.
    """

    def __init__(
        self, d_model: int, d_ff: int, activation: str = "relu", bias: bool = True,
        ops: str = "fused", gated: bool = False, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.activation, self.ops = activation, ops
        self.f = getattr(operations(ops), activation)
        self.W_1 = nn.Linear(d_model, d_ff, bias)
        self.W_2 = starts(nn.Linear(d_ff, d_model, bias), "residual")
        self.W_3 = nn.Linear(d_model, d_ff, bias) if gated else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Transform every position."""
        inner = self.f(self.W_1(x))
        if self.W_3 is not None:
            inner = inner * self.W_3(x)
        return self.W_2(self.dropout(inner))


class Embeddings(nn.Module):
    r"""Ids become vectors: token, plus position, plus segment, then norm and dropout.

    $$x_t = \sqrt{d_{model}}\;E_{id_t} + PE_t + S_{seg_t}$$

    The config decides which terms are present, and whether the embedding is scaled.

    Shapes: (batch, length) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, sections 3.4 and 3.5; Devlin et al. 2019, section 3.
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = c = config
        self.tokens = nn.Embedding(c.vocab_size, c.d_model)
        if c.positions == "learned":
            self.position_table = nn.Embedding(c.max_len, c.d_model)
        elif c.positions == "sinusoidal":
            table = sinusoidal_positions(c.max_len, c.d_model)
            self.register_buffer("positions", table, persistent=False)
        self.segments = nn.Embedding(c.n_segments, c.d_model) if c.n_segments else None
        self.norm = make_norm(c) if c.embedding_norm else nn.Identity()
        self.dropout = Dropout(c.dropout)

    def forward(
        self, ids: Ids, segments: Ids | None = None, positions: Ids | None = None, first: int = 0
    ) -> Float[Tensor, "batch length d_model"]:
        """Look up and add.

        Args:
            segments: the segment of each token, all 0 by default.
            positions: the position of each token, by default `first`, `first` + 1 and so on.
            first: the position of the first token, when a cache holds earlier ones.

        Raises: ValueError for ids, positions or segments that the model does not have.
        """
        config, places = self.config, slice(first, first + ids.shape[1])
        check_inputs(ids, segments, positions, first, config)
        x = self.tokens(ids)
        if config.scale_embeddings:
            x = x * math.sqrt(config.d_model)
        if config.positions == "learned":
            table = self.position_table
            x = x + (table.weight[places] if positions is None else table(positions))
        elif config.positions == "sinusoidal":
            x = x + self.positions[places if positions is None else positions].to(x.dtype)
        if self.segments is not None:
            # Without segments every token is in segment 0, whose vector is still added.
            x = x + (self.segments.weight[0] if segments is None else self.segments(segments))
        return self.dropout(self.norm(x))


IN_EVAL_MODE: dict[nn.Module, tuple[int, bool]] = {}
"""For every module inside `eval_mode`: how many times, also in several threads, and its own mode."""
EVAL_MODE = threading.Lock()


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode back (frozen layers differ).

    Of several threads the last to leave puts it back.
    """
    modules = list(model.modules())
    with EVAL_MODE:
        for module in modules:
            inside, mode = IN_EVAL_MODE.get(module, (0, module.training))
            IN_EVAL_MODE[module] = inside + 1, mode
            module.training = False
    try:
        yield
    finally:
        with EVAL_MODE:
            for module in modules:
                inside, mode = IN_EVAL_MODE.pop(module)
                if inside > 1:
                    IN_EVAL_MODE[module] = inside - 1, mode
                else:
                    module.training = mode


def starts(module: Any, role: str) -> Any:
    """Mark a linear map or a table whose initial weights are special; see `init_weights`."""
    module.role = role
    return module


def init_weights(module: nn.Module, config: TransformerConfig) -> None:
    r"""Start small: matrices and embeddings $\sim N(0, \text{std}^2)$, biases 0, norms unchanged.

    `config.init` decides how small:

    - "normal": std is `init_std` (Devlin et al. 2019's code);
    - "depth": the last map of each of the $2N$ sublayers gets $1/\sqrt{2N}$ of that, so that the
      stream does not grow with depth (Radford et al. 2019, section 2.3);
    - "fan_in": $1/\sqrt{d_{in}}$, and $W^Q$ also takes the $1/\sqrt{d_k}$ that the scores lack; token
      embeddings have std 1 (Raffel et al. 2020's code).
    """
    for m in module.modules():
        if not isinstance(m, nn.Linear | nn.Embedding):
            continue
        role, std = getattr(m, "role", None), config.init_std
        if config.init == "depth" and role == "residual":
            std /= math.sqrt(2 * config.n_layers)
        if config.init == "fan_in":
            std = 1.0 if isinstance(m, nn.Embedding) else m.in_features**-0.5
            if role == "query" and not config.scale_attention:
                std /= math.sqrt(config.d_head)
            if role == "buckets":
                std = config.d_model**-0.5
        nn.init.normal_(m.weight, std=std)
        if isinstance(m, nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)


def check_inputs(
    ids: Tensor, segments: Tensor | None, positions: Tensor | None, first: int, c: TransformerConfig
) -> None:
    """Reject ids, segments and positions that no table has, and shapes that would broadcast."""
    low, high = smallest_and_largest(ids)
    if low < 0 or high >= c.vocab_size:
        bad = low if low < 0 else high
        b, t = (ids == bad).nonzero()[0].tolist()
        raise ValueError(
            f"id {bad} at example {b}, position {t} is outside the vocabulary of {c.vocab_size}; "
            "do the tokenizer and the model belong together?"
        )
    absolute = c.positions in ("learned", "sinusoidal")
    for name, a in (("segment", segments), ("position", positions if absolute else None)):
        if a is not None and a.shape != ids.shape:
            raise ValueError(
                f"{name}s of shape {tuple(a.shape)} must have the shape of the ids, "
                f"{tuple(ids.shape)}: one {name} for each token"
            )
    if segments is not None and segments.numel():
        low, high = smallest_and_largest(segments)
        if low < 0 or high >= c.n_segments:
            raise ValueError(
                f"segment {low if low < 0 else high} is not one of the model's {c.n_segments} "
                "(counted from 0); TransformerConfig(n_segments=...) says how many there are"
            )
    if absolute:
        low, high = first, first + ids.shape[1] - 1
        if positions is not None:
            low, high = smallest_and_largest(positions)
        if low < 0:
            raise ValueError(f"position {low} is negative; the first token's is 0")
        if high >= c.max_len:
            raise ValueError(
                f"the input has {high + 1} positions, the model {c.max_len}; truncate it "
                f"(max_length={c.max_len} when encoding)"
                + (f"; {first} of them are in the cache" if first else "")
            )


def smallest_and_largest(a: Tensor) -> tuple[int, int]:
    """Both as numbers; zeros for an empty tensor."""
    low, high = torch.aminmax(a) if a.numel() else (0, 0)
    return int(low), int(high)
