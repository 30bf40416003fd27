r"""Residual, norm, sublayer: the blocks, and the article's two formulas as it prints them."""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import TransformerConfig
from .kv_cache import KeyValues
from .layers import Dropout, FeedForward, LayerNorm, make_norm


def encoder_sublayer(
    x: Float[Tensor, "batch length d_model"],
    attention: MultiHeadAttention,
    norm: LayerNorm,
    keep: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch length d_model"]:
    r"""$\mathrm{Encoder}(x) = \mathrm{LayerNorm}(x + \mathrm{MultiHeadAttention}(x))$.

    The attention half of a post-LN encoder block; `EncoderBlock` adds the feed-forward half.

    Shapes: (batch, length, d_model) -> the same.  Source: article, section 4.
    """
    return norm(x + attention(x, keep=keep))


def decoder_sublayer(
    y: Float[Tensor, "batch queries d_model"],
    z: Float[Tensor, "batch keys d_model"],
    attention: MultiHeadAttention,
    norm: LayerNorm,
    keep: Shaped[Tensor, "..."] | None = None,
) -> Float[Tensor, "batch queries d_model"]:
    r"""$\mathrm{Decoder}(y, z) = \mathrm{LayerNorm}(y + \mathrm{MultiHeadAttention}(y, z))$.

    Queries from the decoder's $y$, keys and values from the encoder's output $z$.

    Shapes: (batch, queries, d_model), (batch, keys, d_model) -> (batch, queries, d_model).
    Source: article, section 4.
    """
    return norm(y + attention(y, z, keep=keep))


def make_attention(config: TransformerConfig) -> MultiHeadAttention:
    """The attention that the config asks for."""
    c = config
    return MultiHeadAttention(
        c.d_model, c.n_heads, c.bias, c.attention_dropout, c.ops, c.d_head, c.scale_attention
    )


def make_feed_forward(config: TransformerConfig) -> FeedForward:
    """The feed-forward that the config asks for."""
    c = config
    return FeedForward(
        c.d_model, c.d_ff, c.activation, c.bias, c.ops, c.gated, c.feed_forward_dropout
    )


class EncoderBlock(nn.Module):
    r"""Self-attention, then feed-forward, each with a residual and a norm.

    post-LN (Vaswani et al. 2017, BERT): the norm stands on the residual stream.

    $$a = \mathrm{LN}_1(x + \mathrm{MHA}(x)), \qquad y = \mathrm{LN}_2(a + \mathrm{FFN}(a))$$

    pre-LN (GPT-2): the norm stands inside the branch, the stream itself is never normed.

    $$a = x + \mathrm{MHA}(\mathrm{LN}_1(x)), \qquad y = a + \mathrm{FFN}(\mathrm{LN}_2(a))$$

    Shapes: (batch, length, d_model) -> the same.
    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.
    Reference: `nn.TransformerEncoderLayer`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        c = config
        self.norm_position = c.norm_position
        self.attention = make_attention(c)
        self.norm_1 = make_norm(c)
        self.feed_forward = make_feed_forward(c)
        self.norm_2 = make_norm(c)
        self.dropout = Dropout(c.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        keep: Shaped[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "batch first d_model"]:
        """Transform the stream.

        Args:
            keep: which keys each position may attend to.
            bias: added to the scores of attention (relative positions).
            first: how many positions, from the left, to transform: the others are still attended
                to, but what would become of them is not computed. All of them by default.
        """
        if first is not None:
            bias = None if bias is None else bias[..., :first, :]
            if keep is not None and keep.shape[-2:-1] == x.shape[1:2]:
                keep = keep[..., :first, :]
        if self.norm_position == "post":
            q = x[:, :first]
            q = self.norm_1(q + self.dropout(self.attention(q, x, keep, bias)))
            return self.norm_2(q + self.dropout(self.feed_forward(q)))
        z = self.norm_1(x)
        q = x[:, :first] + self.dropout(self.attention(z[:, :first], z, keep, bias))
        return q + self.dropout(self.feed_forward(self.norm_2(q)))


class DecoderBlock(nn.Module):
    r"""Causal self-attention, then attention to the encoder's output, then feed-forward.

    post-LN (Vaswani et al. 2017), with the encoder's output $z$:

    $$a = \mathrm{LN}_1(y + \mathrm{MHA}(y)), \quad c = \mathrm{LN}_c(a + \mathrm{MHA}_c(a, z)), \quad
    y' = \mathrm{LN}_2(c + \mathrm{FFN}(c))$$

    pre-LN (T5), $z$ as it is:

    $$a = y + \mathrm{MHA}(\mathrm{LN}_1(y)), \quad c = a + \mathrm{MHA}_c(\mathrm{LN}_c(a), z), \quad
    y' = c + \mathrm{FFN}(\mathrm{LN}_2(c))$$

    Without `cross` the middle is missing (GPT-2): an encoder block that cannot see the future.

    Args:
        cross: whether there is an encoder to attend to.

    Shapes: (batch, length, d_model), memory (batch, keys, d_model) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, section 3.1; Xiong et al. 2020.
    Reference: `nn.TransformerDecoderLayer`.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False):
        super().__init__()
        c = config
        self.norm_position, self.cross = c.norm_position, cross
        self.attention = make_attention(c)
        self.norm_1 = make_norm(c)
        if cross:
            self.cross_attention = make_attention(c)
            self.norm_cross = make_norm(c)
        self.feed_forward = make_feed_forward(c)
        self.norm_2 = make_norm(c)
        self.dropout = Dropout(c.dropout)

    def forward(
        self,
        y: Float[Tensor, "batch length d_model"],
        keep: Shaped[Tensor, "..."] | None = None,
        memory: Float[Tensor, "batch keys d_model"] | None = None,
        memory_keep: Shaped[Tensor, "..."] | None = None,
        bias: Float[Tensor, "..."] | None = None,
        cache: tuple[KeyValues, KeyValues] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "batch last d_model"]:
        """Transform the stream.

        Args:
            keep: which tokens of the decoder may be attended to, beside that none sees the future.
            memory: the encoder's output $z$; `memory_keep` says which of it may be attended to.
            bias: added to the scores of self-attention (relative positions).
            cache: keys and values of earlier tokens, and those of the memory.
            last: how many positions, from the right, to transform: the others are still attended
                to, but what would become of them is not computed. All of them by default.

        Raises:
            ValueError: a memory without `cross`, or none with it.
        """
        if (memory is not None) != self.cross:
            raise ValueError(
                "this decoder attends to an encoder's output: give it as memory"
                if self.cross
                else "this decoder has no cross-attention for the memory; build it with cross=True"
            )
        own, others = (None, None) if cache is None else cache
        post = self.norm_position == "post"

        q = n = y if post else self.norm_1(y)
        if last is not None and last < y.shape[1]:
            bias = None if bias is None else bias[..., -last:, :]
            y, q = y[:, -last:], n[:, -last:]
        y = y + self.dropout(self.attention(q, n, keep, bias, causal=True, cache=own))
        y = self.norm_1(y) if post else y
        if self.cross:
            n = y if post else self.norm_cross(y)
            y = y + self.dropout(self.cross_attention(n, memory, memory_keep, cache=others))
            y = self.norm_cross(y) if post else y
        n = y if post else self.norm_2(y)
        y = y + self.dropout(self.feed_forward(n))
        return self.norm_2(y) if post else y
