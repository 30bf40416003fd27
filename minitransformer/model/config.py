"""The switches of a Transformer, in one frozen record."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class TransformerConfig:
    r"""Everything that distinguishes one Transformer from another.

    The symbols are the paper's: $d_{model}$, $d_{ff}$, $h$ = `n_heads`, $N$ = `n_layers`,
    $d_k$ = `d_head`. The defaults are the Transformer of Vaswani et al. 2017; `bert()`, `gpt2()`,
    `t5()` and `t5_v1_1()` give others.

    Raises:
        ValueError: a value outside its set or range, or `n_heads` that does not divide `d_model`
            when no `d_head` is given.

    >>> TransformerConfig(vocab_size=100, d_model=30, n_heads=5).d_head
    6
    >>> TransformerConfig(vocab_size=100, d_model=30, n_heads=4, d_head=9).d_head
    9
    """

    vocab_size: int = 30522
    d_model: int = 512
    n_heads: int = 8
    d_head: int = 0
    r"""Width $d_k$ of one head, by default $d_{model} / h$ (T5 chooses it freely)."""
    n_layers: int = 6
    n_decoder_layers: int | None = None
    """Blocks of a decoder, if its depth is not the encoder's."""
    d_ff: int = 2048
    max_len: int = 512
    n_segments: int = 0
    """Kinds of segment with an embedding of their own (BERT's sentences A and B): 2, or 0 for none."""

    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    embedding_norm: bool = False
    """A norm after the embeddings (BERT)."""
    positions: Literal["sinusoidal", "learned", "relative", "none"] = "sinusoidal"
    """Added to the embeddings, or "relative": a bias on the scores of attention (T5)."""
    n_buckets: int = 32
    """Relative positions: the number of distances that are told apart ..."""
    max_distance: int = 128
    """... and the distance from which on all count as one."""
    scale_embeddings: bool = True
    r"""Multiply token embeddings by $\sqrt{d_{model}}$ (Vaswani et al. 2017, section 3.4)."""
    scale_attention: bool = True
    r"""Divide the scores by $\sqrt{d_k}$; T5 does not, its initial $W^Q$ is smaller instead."""
    activation: Literal["relu", "gelu", "gelu_tanh"] = "relu"
    gated: bool = False
    """A second linear map multiplies the activation's output (T5 v1.1)."""
    bias: bool = True
    """Biases in the linear maps of attention and feed-forward."""
    pooler: bool = False
    """A tanh layer on the first position for classification (BERT)."""
    tie_embeddings: bool = True
    """The embeddings are also the language model's last map (Vaswani et al. 2017, section 3.4)."""
    scale_logits: bool = False
    r"""Multiply by $d_{model}^{-1/2}$ before that last map (T5 v1.0)."""

    dropout: float = 0.1
    """On the embeddings and on every sublayer's output."""
    attention_dropout: float = 0.0
    """On the attention weights."""
    feed_forward_dropout: float = 0.0
    """Inside the feed-forward, after its activation (T5)."""
    final_dropout: float = 0.0
    """On the output of the stack (T5)."""
    init: Literal["normal", "depth", "fan_in"] = "normal"
    """The initial weights, see `init_weights`."""
    init_std: float = 0.02
    pad_id: int | None = 0
    start_id: int | None = None
    """The token that a decoder reads first."""
    eos_id: int | tuple[int, ...] | None = None
    """The token or tokens that end a text."""
    ops: Literal["formula", "fused"] = "fused"
    """The set of operations: formulas written out, or torch's kernels."""

    def __post_init__(self):
        for field in fields(self):
            value, allowed = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in allowed:
                raise ValueError(f"{field.name}={value!r} is not known; choose one of {allowed}")
        for name in ("vocab_size", "d_model", "n_heads", "n_layers", "d_ff", "max_len"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, least in (("d_head", 0), ("n_decoder_layers", 1)):  # no d_head given: 0
            if (n := getattr(self, name)) is not None and n < least:
                raise ValueError(
                    f"{name} must be at least 1, got {n}; leave it out for the default"
                )
        for name in ("dropout", "attention_dropout", "feed_forward_dropout", "final_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 4 <= self.n_buckets < 2 * self.max_distance or self.n_buckets % 4:
            raise ValueError(
                f"n_buckets={self.n_buckets} must be a multiple of 4 and less than twice "
                f"max_distance={self.max_distance}, such as 32 and 128"
            )
        if self.d_head == 0 and self.d_model % self.n_heads:
            divisors = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            nearest = min(divisors, key=lambda n: abs(n - self.n_heads))
            raise ValueError(
                f"d_model={self.d_model} cannot be split into n_heads={self.n_heads} equal heads; "
                f"use a divisor such as n_heads={nearest}, or choose d_head"
            )
        if self.d_head == 0:
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)

    def with_(self, **changes: Any) -> "TransformerConfig":
        """A copy with some switches changed; a derived `d_head` is derived again."""
        if self.d_head * self.n_heads == self.d_model:
            changes = {"d_head": 0} | changes
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

    @classmethod
    def gpt2(cls, **changes: Any) -> "TransformerConfig":
        """GPT-2's switches, the smallest one's sizes (Radford et al. 2019, section 2.3)."""
        switches: dict[str, Any] = dict(
            vocab_size=50257, d_model=768, n_heads=12, n_layers=12, d_ff=3072, max_len=1024,
            norm_position="pre", positions="learned", scale_embeddings=False,
            activation="gelu_tanh", attention_dropout=0.1, init="depth",
            pad_id=None, start_id=50256, eos_id=50256,
        )  # fmt: skip
        return cls(**(switches | changes))

    @classmethod
    def t5(cls, **changes: Any) -> "TransformerConfig":
        """T5's switches, t5-small's sizes (Raffel et al. 2020, section 2.1)."""
        switches: dict[str, Any] = dict(
            vocab_size=32128, norm="rms", norm_position="pre", norm_eps=1e-6, positions="relative",
            scale_embeddings=False, scale_attention=False, bias=False, scale_logits=True,
            attention_dropout=0.1, feed_forward_dropout=0.1, final_dropout=0.1, init="fan_in",
            start_id=0, eos_id=1,
        )  # fmt: skip
        return cls(**(switches | changes))

    @classmethod
    def t5_v1_1(cls, **changes: Any) -> "TransformerConfig":
        """T5 v1.1 small: a gated feed-forward and an output map of its own (Shazeer 2020)."""
        switches: dict[str, Any] = dict(
            n_heads=6, d_head=64, n_layers=8, d_ff=1024, activation="gelu_tanh", gated=True,
            tie_embeddings=False, scale_logits=False,
        )  # fmt: skip
        return cls.t5(**(switches | changes))
