r"""The blocks: sublayers, each with a residual and a norm; and the article's two formulas as printed."""

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import TransformerConfig
from .kv_cache import KeyValues
from .layers import Dropout, FeedForward, LayerNorm, make_norm
from .shapes import Bias, Hidden, Mask, Memory, Queries

Function = Callable[[Tensor], Tensor]
ALL = slice(None)


def residual(
    x: Float[Tensor, "... length d_model"],
    f: Function,
    norm: Function,
    norm_position: str,
    dropout: Function = lambda a: a,
    only: slice = ALL,
) -> Float[Tensor, "... wanted d_model"]:
    r"""One sublayer: post-LN $\mathrm{LN}(x + f(x))$, pre-LN $x + f(\mathrm{LN}(x))$.

    post-LN (Vaswani et al. 2017, BERT) normalises the stream itself; pre-LN (GPT-2, T5) only what
    the sublayer reads, and the stream is never normalised.

    Args:
        f: attention or feed-forward; it reads all positions and returns those in `only`.
        norm_position: "post" or "pre".
        dropout: applied to the output of `f`.
        only: the positions to compute; the others serve `f` as keys and values.

    Shapes: (..., length, d_model) -> (..., wanted, d_model).
    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.
    """
    stream = x if only == ALL else x[..., only, :]
    if norm_position == "post":
        return norm(stream + dropout(f(x)))
    return stream + dropout(f(norm(x)))


def encoder_sublayer(
    x: Hidden, attention: MultiHeadAttention, norm: LayerNorm, keep: Mask = None
) -> Hidden:
    r"""$\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$.

    The attention half of a post-LN encoder block; `EncoderBlock` adds the feed-forward half.

    Shapes: (batch, length, d_model) -> the same.  Source: article, section 4.
    """
    return norm(x + attention(x, keep=keep))


def decoder_sublayer(
    y: Queries, z: Memory, attention: MultiHeadAttention, norm: LayerNorm, keep: Mask = None
) -> Queries:
    r"""$\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z))$.

    Queries from the decoder's $y$, keys and values from the encoder's output $z$.

    Shapes: (batch, queries, d_model), (batch, keys, d_model) -> (batch, queries, d_model).
    Source: article, section 4.
    """
    return norm(y + attention(y, z, keep=keep))


class Block(nn.Module):
    """What the two blocks share: their parts, and self-attention as a sublayer."""

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        c = config
        args = c.d_model, c.n_heads, c.bias, c.attention_dropout, c.ops, c.d_head, c.scale_attention
        self.norm_position, self.cross = c.norm_position, cross
        self.attention, self.norm_1 = MultiHeadAttention(*args), make_norm(c)
        if cross:
            self.cross_attention, self.norm_cross = MultiHeadAttention(*args), make_norm(c)
        self.feed_forward = FeedForward(
            c.d_model, c.d_ff, c.activation, c.bias, c.ops, c.gated, c.feed_forward_dropout
        )
        self.norm_2 = make_norm(c)
        self.dropout = Dropout(c.dropout)

    def sublayer(self, x: Tensor, f: Function, norm: Function, only: slice = ALL) -> Tensor:
        """`residual` with this block's norm position and dropout."""
        return residual(x, f, norm, self.norm_position, self.dropout, only)

    def attend(
        self, x: Tensor, only: slice, keep: Tensor | None, bias: Tensor | None, causal: bool = False,
        cache: KeyValues | None = None
    ) -> Tensor:  # fmt: skip
        """The sublayer of self-attention, for the queries in `only`."""

        def f(n: Tensor) -> Tensor:
            if only == ALL:
                return self.attention(n, None, keep, bias, causal=causal, cache=cache)
            some = (rows(a, only, n.shape[1]) for a in (keep, bias))
            return self.attention(n[:, only], n, *some, causal=causal, cache=cache)

        return self.sublayer(x, f, self.norm_1, only)


def rows(a: Tensor | None, only: slice, queries: int) -> Tensor | None:
    """The rows of a mask or bias that belong to the queries in `only`; a shared row stays."""
    return a if a is None or a.shape[-2:-1] != (queries,) else a[..., only, :]


class EncoderBlock(Block):
    r"""Self-attention, then feed-forward, each with a residual and a norm.

    post-LN (Vaswani et al. 2017, BERT):

    $$a = \mathrm{LN}_1(x + \mathrm{MHA}(x)), \qquad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))$$

    pre-LN (GPT-2):

    $$a = x + \mathrm{MHA}(\mathrm{LN}_1(x)), \qquad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))$$

    Shapes: (batch, length, d_model) -> the same.
    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.
    Reference: `nn.TransformerEncoderLayer`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config)

    def forward(
        self, x: Hidden, keep: Mask = None, bias: Bias = None, first: int | None = None
    ) -> Float[Tensor, "batch first d_model"]:
        """Transform the stream.

        Args:
            keep: which keys each position may attend to.
            bias: added to the scores of attention (relative positions).
            first: compute only the first `first` positions; the others still serve as keys and values.
        """
        x = self.attend(x, ALL if first is None else slice(first), keep, bias)
        return self.sublayer(x, self.feed_forward, self.norm_2)


class DecoderBlock(Block):
    r"""Causal self-attention, then attention to the encoder's output, then feed-forward.

    post-LN (Vaswani et al. 2017), with the encoder's output $z$:

    $$a = \mathrm{LN}_1(y + \mathrm{MHA}(y)), \quad c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)), \quad
    y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))$$

    pre-LN (T5), $z$ as it is:

    $$a = y + \mathrm{MHA}(\mathrm{LN}_1(y)), \quad c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z), \quad
    y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))$$

    Without `cross` the middle step is missing (GPT-2): an encoder block that cannot see the future.

    Args:
        cross: whether the block attends to an encoder's output.

    Shapes: (batch, length, d_model), memory (batch, keys, d_model) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.
    Reference: `nn.TransformerDecoderLayer`.
    """

    def forward(
        self, y: Hidden, keep: Mask = None, memory: Memory | None = None, memory_keep: Mask = None,
        bias: Bias = None, cache: tuple[KeyValues, KeyValues] | None = None, last: int | None = None,
    ) -> Float[Tensor, "batch last d_model"]:  # fmt: skip
        """Transform the stream.

        Args:
            keep: which decoder tokens may be attended to, in addition to the causal mask.
            memory: the encoder's output $z$; `memory_keep` masks its positions.
            bias: added to the scores of self-attention (relative positions).
            cache: keys and values of earlier tokens, and those of the memory.
            last: compute only the last `last` positions; the others still serve as keys and values.

        Raises: ValueError: a memory without `cross`, or `cross` without a memory.
        """
        if (memory is not None) != self.cross:
            raise ValueError(
                "this decoder attends to an encoder's output: give it as memory"
                if self.cross
                else "this decoder has no cross-attention for the memory; build it with cross=True"
            )
        own, others = (None, None) if cache is None else cache
        only = ALL if last is None or last >= y.shape[1] else slice(-last, None)
        y = self.attend(y, only, keep, bias, causal=True, cache=own)
        if self.cross:
            read = partial(self.cross_attention, memory=memory, keep=memory_keep, cache=others)
            y = self.sublayer(y, read, self.norm_cross)
        return self.sublayer(y, self.feed_forward, self.norm_2)
