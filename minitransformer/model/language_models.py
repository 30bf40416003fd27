"""Heads that predict tokens: the causal, the sequence-to-sequence and the masked language model."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ..formulas import ops
from .config import TransformerConfig
from .kv_cache import KeyValueCache
from .layers import make_norm
from .transformer import Decoder, Encoder, EncoderDecoder, init_weights


class LanguageModelHead(nn.Module):
    r"""How well each word of the vocabulary fits: $\text{logits} = h E^\top$, $E$ the embeddings.

    With `tie_embeddings` $E$ is the very table that tokens are looked up in, and its gradient comes
    from both places; else it is a matrix of its own. `scale_logits` puts $d_{model}^{-1/2}$ before it.

    Args:
        bias: whether a number for each word is added (BERT).

    Shapes: hidden (batch, length, d_model), E (vocab, d_model) -> (batch, length, vocab).
    Source: Vaswani et al. 2017, section 3.4; Press and Wolf 2017.
    """

    def __init__(self, config: TransformerConfig, bias: bool = False):
        super().__init__()
        self.scale = config.d_model**-0.5 if config.scale_logits else None
        self.weight = self.bias = None
        if not config.tie_embeddings:
            own = nn.Linear(config.d_model, config.vocab_size, bias=False)
            init_weights(own, config)
            self.weight = own.weight
        if bias:
            self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "batch length d_model"], E: Float[Tensor, "vocab d_model"]
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits; `E`, the table of the embeddings, is read only when tied."""
        if self.scale is not None:
            hidden = hidden * self.scale
        return nn.functional.linear(hidden, E if self.weight is None else self.weight, self.bias)


class CausalLM(nn.Module):
    r"""A decoder that predicts the next token: $p(x_{t+1} \mid x_{\le t}) = \mathrm{softmax}(h_t E^\top)$.

    Shapes: ids (batch, length) -> logits (batch, length, vocab).
    Source: Radford et al. 2018, section 3.1.
    """

    def __init__(self, decoder: Decoder):
        super().__init__()
        if decoder.cross:
            raise ValueError("CausalLM needs a decoder without cross-attention: Decoder(config)")
        self.config = decoder.config
        self.decoder = decoder
        self.head = LanguageModelHead(decoder.config)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None = None,
        cache: KeyValueCache | None = None,
        positions: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token after each; the arguments are `Decoder`'s."""
        return self.logits(self.decoder(ids, keep, cache=cache, positions=positions))

    def logits(
        self, hidden: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length vocab"]:
        """The head alone: generation needs it at the last position only."""
        return self.head(hidden, self.decoder.embeddings.tokens.weight)


class Seq2SeqLM(nn.Module):
    r"""An encoder-decoder that predicts the target's next token, given the source.

    $$p(y_{t+1} \mid y_{\le t}, x) = \mathrm{softmax}(h_t E^\top), \qquad h = \mathrm{Decoder}(y, \mathrm{Encoder}(x))$$

    Shapes: source (batch, keys), target (batch, length) -> logits (batch, length, vocab).
    Source: Vaswani et al. 2017, section 3.4; Raffel et al. 2020.
    """

    def __init__(self, encoder_decoder: EncoderDecoder):
        super().__init__()
        self.config = encoder_decoder.config
        self.encoder_decoder = encoder_decoder
        self.head = LanguageModelHead(encoder_decoder.config)

    def forward(
        self,
        source: Int[Tensor, "batch keys"],
        target: Int[Tensor, "batch length"],
        source_keep: Shaped[Tensor, "..."] | None = None,
        target_keep: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token after each of the target's; the arguments are `EncoderDecoder`'s."""
        return self.logits(self.encoder_decoder(source, target, source_keep, target_keep))

    def logits(
        self, hidden: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length vocab"]:
        """The head alone, for hidden states of `encoder_decoder.decode`."""
        return self.head(hidden, self.encoder_decoder.encoder.embeddings.tokens.weight)


class MaskedLM(nn.Module):
    r"""An encoder that predicts tokens it cannot see: one more layer, then the vocabulary.

    $$\text{logits} = \mathrm{LN}(f(hW + b))\,E^\top + b_E$$

    Shapes: ids (batch, length) -> logits (batch, length, vocab).
    Source: Devlin et al. 2019, section 3.1 and code; $f$ is the encoder's activation.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        config = encoder.config
        self.config = config
        self.encoder = encoder
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.norm = make_norm(config)
        self.head = LanguageModelHead(config, bias=True)
        init_weights(self.dense, config)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None = None,
        segments: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length vocab"]:
        """Logits of the token at each position; the arguments are `Encoder`'s."""
        return self.logits(self.encoder(ids, keep, segments))

    def logits(
        self, hidden: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch length vocab"]:
        """What stands above the encoder: training needs it at the chosen positions only."""
        f = getattr(ops.OPS[self.config.ops], self.config.activation)
        h = self.norm(f(self.dense(hidden)))
        return self.head(h, self.encoder.embeddings.tokens.weight)
