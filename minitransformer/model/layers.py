"""The small modules: norms, feed-forward, dropout, embeddings with positions."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..formulas import ops
from .config import TransformerConfig


class LayerNorm(nn.Module):
    r"""Every position on its own gets mean 0 and variance 1, then a learned gain and shift.

    $$\mathrm{LayerNorm}(x) = \gamma \odot \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta$$

    `weight` is $\gamma$ and `bias` is $\beta$, as in `nn.LayerNorm`.

    Shapes: (..., d_model) -> the same.  Source: Ba, Kiros and Hinton 2016.
    Reference: `nn.LayerNorm`.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, ops: str = "fused"):
        super().__init__()
        self.eps, self.ops = eps, ops
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Normalise the last axis."""
        return ops.OPS[self.ops].layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    r"""LayerNorm without the mean and without the shift.

    $$\mathrm{RMSNorm}(x) = \gamma \odot \frac{x}{\sqrt{\mathrm{mean}(x^2) + \epsilon}}$$

    Shapes: (..., d_model) -> the same.  Source: Zhang and Sennrich 2019.  Reference: `nn.RMSNorm`.
    """

    def __init__(self, d_model: int, eps: float = 1e-6, ops: str = "fused"):
        super().__init__()
        self.eps, self.ops = eps, ops
        self.weight = nn.Parameter(torch.ones(d_model))

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Normalise the last axis."""
        return ops.OPS[self.ops].rms_norm(x, self.weight, self.eps)


def make_norm(config: TransformerConfig) -> LayerNorm | RMSNorm:
    """The norm that the config asks for."""
    cls = LayerNorm if config.norm == "layer" else RMSNorm
    return cls(config.d_model, config.norm_eps, config.ops)


class Dropout(nn.Module):
    """`ops.inverted_dropout` in training, nothing in evaluation."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Drop entries of x while training."""
        return ops.inverted_dropout(x, self.p) if self.training else x


class FeedForward(nn.Module):
    r"""The same two-layer network at every position: $\mathrm{FFN}(x) = f(xW_1 + b_1)W_2 + b_2$.

    Gated, a third map decides entry by entry how much passes: $(f(xW_1) \odot xW_3)\,W_2$.

    Shapes: (..., d_model) -> the same, through (..., d_ff).
    Source: Vaswani et al. 2017, equation 2, with $f$ = ReLU; BERT has GELU; gated Shazeer 2020,
    equation 6.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        bias: bool = True,
        ops: str = "fused",
        gated: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation, self.ops = activation, ops
        self.W_1 = nn.Linear(d_model, d_ff, bias)
        self.W_2 = nn.Linear(d_ff, d_model, bias)
        self.W_3 = nn.Linear(d_model, d_ff, bias) if gated else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """Transform every position."""
        f = getattr(ops.OPS[self.ops], self.activation)
        inner = f(self.W_1(x))
        if self.W_3 is not None:
            inner = inner * self.W_3(x)
        return self.W_2(self.dropout(inner))


class Embeddings(nn.Module):
    r"""Ids become vectors: token, plus position, plus segment, then norm and dropout.

    $$x_t = \sqrt{d_{model}}\;E_{id_t} + PE_t + S_{seg_t}$$

    Which terms there are, and whether the root is, says the config.

    Shapes: (batch, length) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, sections 3.4 and 3.5; Devlin et al. 2019, section 3.
    """

    positions: Tensor

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position_table = nn.Embedding(config.max_len, config.d_model)
        elif config.positions == "sinusoidal":
            table = ops.sinusoidal_positions(config.max_len, config.d_model)
            self.register_buffer("positions", table, persistent=False)
        self.segments = (
            nn.Embedding(config.n_segments, config.d_model) if config.n_segments else None
        )
        self.norm = make_norm(config) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        segments: Int[Tensor, "batch length"] | None = None,
        positions: Int[Tensor, "batch length"] | None = None,
        first: int = 0,
    ) -> Float[Tensor, "batch length d_model"]:
        """Look up and add.

        Args:
            segments: which segment each token belongs to; all 0 when not given.
            positions: the position of each token; `first`, `first` + 1 and so on when not given.
            first: the position of the first token, where a cache holds those before.

        Raises:
            ValueError: ids outside the vocabulary, more positions than there are, or segments that
                do not fit.
        """
        config, places = self.config, slice(first, first + ids.shape[1])
        self.check(ids)
        self.check_segments(ids, segments)
        if config.positions in ("learned", "sinusoidal"):
            self.check_positions(ids, positions, places)
        x = self.tokens(ids)
        if config.scale_embeddings:
            x = x * math.sqrt(config.d_model)
        if config.positions == "learned":
            table = self.position_table
            x = x + (table.weight[places] if positions is None else table(positions))
        elif config.positions == "sinusoidal":
            x = x + self.positions[places if positions is None else positions].to(x.dtype)
        if self.segments is not None:
            # Without segments every token is of segment 0, whose vector is still added.
            s = self.segments.weight[0] if segments is None else self.segments(segments)
            x = x + s
        return self.dropout(self.norm(x))

    def check_positions(self, ids: Tensor, positions: Tensor | None, places: slice) -> None:
        """Refuse more positions than there are, and positions of another shape."""
        if positions is not None and positions.shape != ids.shape:
            raise ValueError(
                f"positions of shape {tuple(positions.shape)} must have the shape of the ids, "
                f"{tuple(ids.shape)}: one position for each token"
            )
        low, high = (
            (places.start, places.stop - 1)
            if positions is None
            else tuple(int(a) for a in torch.aminmax(positions))
        )
        if low < 0:
            raise ValueError(f"position {low} is negative; the first token's is 0")
        if high >= self.config.max_len:
            raise ValueError(
                f"the input has {high + 1} positions, the model {self.config.max_len}; truncate it "
                f"(max_length={self.config.max_len} when encoding)"
                + (f"; {places.start} of them are in the cache" if places.start else "")
            )

    def check(self, ids: Tensor) -> None:
        """Refuse what the table of tokens cannot look up."""
        config = self.config
        low, high = (int(a) for a in torch.aminmax(ids)) if ids.numel() else (0, 0)
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            b, t = (ids == bad).nonzero()[0].tolist()
            raise ValueError(
                f"id {bad} at example {b}, position {t} is outside the vocabulary of "
                f"{config.vocab_size}; do the tokenizer and the model belong together?"
            )

    def check_segments(self, ids: Tensor, segments: Tensor | None) -> None:
        """Refuse segments of another shape, which would broadcast, and unknown ones."""
        if segments is None or not segments.numel():
            return
        kinds = self.config.n_segments
        if segments.shape != ids.shape:
            raise ValueError(
                f"segments of shape {tuple(segments.shape)} must have the shape of the ids, "
                f"{tuple(ids.shape)}: one segment for each token"
            )
        low, high = (int(a) for a in torch.aminmax(segments))
        if low < 0 or high >= kinds:
            raise ValueError(
                f"segment {low if low < 0 else high} is not one of the model's {kinds} (counted from "
                "0); TransformerConfig(n_segments=...) says how many there are"
            )
