r"""Residual, norm, sublayer: the blocks, and the article's two formulas as it prints them."""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .attention import MultiHeadAttention
from .config import TransformerConfig
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
        self.attention = MultiHeadAttention(
            c.d_model, c.n_heads, c.bias, c.attention_dropout, c.ops
        )
        self.norm_1 = make_norm(c)
        self.feed_forward = FeedForward(c.d_model, c.d_ff, c.activation, c.bias, c.ops)
        self.norm_2 = make_norm(c)
        self.dropout = Dropout(c.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length d_model"],
        keep: Shaped[Tensor, "..."] | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "batch first d_model"]:
        """Transform the stream.

        Args:
            keep: which keys each position may attend to.
            first: how many positions, from the left, to transform: the others are still attended
                to, but what would become of them is not computed. All of them by default.
        """
        if first is not None and keep is not None and keep.shape[-2:-1] == x.shape[1:2]:
            keep = keep[..., :first, :]
        if self.norm_position == "post":
            q = x[:, :first]
            q = self.norm_1(q + self.dropout(self.attention(q, x, keep)))
            return self.norm_2(q + self.dropout(self.feed_forward(q)))
        z = self.norm_1(x)
        q = x[:, :first] + self.dropout(self.attention(z[:, :first], z, keep))
        return q + self.dropout(self.feed_forward(self.norm_2(q)))
