"""The switches of a Transformer, in one frozen record."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class TransformerConfig:
    r"""Everything that distinguishes one Transformer from another.

    The symbols are the paper's: $d_{model}$, $d_{ff}$, $h$ = `n_heads`, $N$ = `n_layers`,
    $d_k$ = `d_head`. The defaults are the encoder of Vaswani et al. 2017; `bert()` and
    `pre_norm()` give others.

    Raises:
        ValueError: a value out of its set or range, or `d_model` that `n_heads` does not divide.

    >>> TransformerConfig(vocab_size=100, d_model=30, n_heads=5).d_head
    6
    """

    vocab_size: int = 30522
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 6
    d_ff: int = 2048
    max_len: int = 512
    n_segments: int = 0
    """Kinds of segment with an embedding of their own (BERT's sentences A and B): 2, or 0 for none."""

    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    embedding_norm: bool = False
    """A norm after the embeddings (BERT)."""
    positions: Literal["sinusoidal", "learned", "none"] = "sinusoidal"
    scale_embeddings: bool = True
    r"""Multiply token embeddings by $\sqrt{d_{model}}$ (Vaswani et al. 2017, section 3.4)."""
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    bias: bool = True
    """Biases in the linear maps of attention and feed-forward."""
    pooler: bool = False
    """A tanh layer on the first position for classification (BERT)."""

    dropout: float = 0.1
    """On the embeddings and on every sublayer's output."""
    attention_dropout: float = 0.0
    """On the attention weights."""
    init_std: float = 0.02
    pad_id: int | None = 0
    ops: Literal["formula", "fused"] = "fused"
    """Which set of operations computes: written out, or torch's kernels."""

    def __post_init__(self):
        for field in fields(self):
            value, allowed = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in allowed:
                raise ValueError(f"{field.name}={value!r} is not known; choose one of {allowed}")
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.d_model % self.n_heads:
            divisors = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.n_heads))
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads; "
                f"use a divisor such as n_heads={nearest}"
            )

    @property
    def d_head(self) -> int:
        """The width $d_k = d_{model} / h$ of one head."""
        return self.d_model // self.n_heads

    def with_(self, **changes: Any) -> "TransformerConfig":
        """The same with some switches changed."""
        return replace(self, **changes)

    @classmethod
    def bert(cls, **changes: Any) -> "TransformerConfig":
        """BERT's switches, bert-base's sizes (Devlin et al. 2019, section 3)."""
        switches: dict[str, Any] = dict(
            d_model=768, n_heads=12, n_layers=12, d_ff=3072, n_segments=2, norm_eps=1e-12,
            embedding_norm=True, positions="learned", scale_embeddings=False, activation="gelu",
            pooler=True, attention_dropout=0.1,
        )  # fmt: skip
        return cls(**(switches | changes))
