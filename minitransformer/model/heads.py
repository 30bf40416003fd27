"""What stands on top: a classifier of sequences; the causal, the masked and the seq2seq language model."""

import copy
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..formulas.ops import operations
from ..options import Pooling
from .attention import padding_mask
from .config import TransformerConfig
from .kv_cache import KeyValueCache
from .layers import Dropout, init_weights, make_norm
from .shapes import Hidden, Ids, Logits, Mask, Source
from .transformer import Decoder, Encoder, EncoderDecoder


def mean_pool(hidden: Hidden, real: Bool[Tensor, "batch length"]) -> Float[Tensor, "batch d_model"]:
    r"""The mean over the real positions: $\frac{1}{|\text{real}|} \sum_{t \in \text{real}} h_t$.

    Padding must not count: otherwise the vector of a text would depend on its batch.

    Shapes: (batch, length, d_model), (batch, length) -> (batch, d_model).
    Source: Reimers and Gurevych 2019, section 3.
    """
    weight = real.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


class SequenceClassifier(nn.Module):
    r"""An encoder, one vector for the sequence, one linear map to the classes.

    $$\text{logits} = \mathrm{pool}(\mathrm{Encoder}(ids))\,W + b$$

    The encoder is copied: several classifiers may start from one, and none changes it.

    Args:
        pooling: "cls" (tanh of the first position, needs `config.pooler`) or "mean" (over the real
            positions).
        dropout: on the pooled vector, by default the encoder's.
        seed: of the head's weights, whatever torch's random state.

    Shapes: ids (batch, length) -> logits (batch, n_classes).
    Raises: TypeError for another model than an encoder; ValueError for an unknown pooling, or "cls"
        with an encoder that has no pooler.
    Source: article, section 3.2; Devlin et al. 2019, section 4.1.
    """

    def __init__(
        self, encoder: Encoder, n_classes: int, pooling: Pooling = "cls",
        dropout: float | None = None, seed: int = 0,
    ):  # fmt: skip
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise TypeError(
                f"a SequenceClassifier needs an Encoder, not a {type(encoder).__name__}; a masked "
                "language model has one: model.encoder"
            )
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={pooling!r} is not known; choose 'cls' or 'mean'")
        if pooling == "cls" and encoder.pooler is None:
            raise ValueError(
                "pooling='cls' needs an encoder with a pooler: TransformerConfig(pooler=True); "
                "or use pooling='mean'"
            )
        if n_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {n_classes}")
        self.encoder, self.pooling, self.n_classes = copy.deepcopy(encoder), pooling, n_classes
        self.first = 1 if pooling == "cls" else None
        """Positions to read; the last block computes no others, which saves a seventh of 6 layers."""
        self.labels: tuple[str, ...] = tuple(map(str, range(n_classes)))
        """The names of the classes, in the order of the logits."""
        self.dropout = Dropout(encoder.config.dropout if dropout is None else dropout)
        with torch.random.fork_rng(devices=[]):  # the caller's random state is the caller's
            torch.manual_seed(seed)
            self.classifier = nn.Linear(encoder.config.d_model, n_classes)
            init_weights(self.classifier, encoder.config)

    def forward(
        self, ids: Ids, keep: Mask = None, segments: Ids | None = None
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits for each sequence; `keep` as from `padding_mask`, by default of `config.pad_id`."""
        return self.classify(self.encoder(ids, keep, segments, self.first), ids, keep)

    def classify(
        self, hidden: Float[Tensor, "batch positions d_model"], ids: Ids, keep: Mask = None
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits from the encoder's output."""
        return self.classifier(self.dropout(self.pool(hidden, ids, keep)))

    def pool(self, hidden: Tensor, ids: Ids, keep: Mask) -> Float[Tensor, "batch d_model"]:
        """One vector for each sequence."""
        if self.pooling == "cls":
            return self.encoder.pooler(hidden)
        if keep is None:
            keep = padding_mask(ids, self.encoder.config.pad_id)
        if keep.shape != (len(ids), 1, 1, ids.shape[1]):
            raise ValueError(
                f"pooling='mean' reads from keep which tokens are real and needs (batch, 1, 1, length)"
                f" = {(len(ids), 1, 1, ids.shape[1])}, as padding_mask(ids, pad_id) gives; got "
                f"{tuple(keep.shape)}"
            )
        return mean_pool(hidden, keep[:, 0, 0, :])


class LanguageModelHead(nn.Module):
    r"""How well each word of the vocabulary fits: $\text{logits} = h E^\top$, $E$ the embeddings.

    With `tie_embeddings` $E$ is the table that tokens are looked up in, and its gradient comes from
    both places; otherwise it is a matrix of its own. `scale_logits` multiplies by $d_{model}^{-1/2}$.

    Args:
        bias: whether a number per word is added (BERT).

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

    def forward(self, hidden: Hidden, E: Float[Tensor, "vocab d_model"]) -> Logits:
        """Logits; `E`, the embedding table, is used only when tied."""
        if self.scale is not None:
            hidden = hidden * self.scale
        return nn.functional.linear(hidden, E if self.weight is None else self.weight, self.bias)


class CausalLM(nn.Module):
    r"""A decoder that predicts the next token: $p(x_{t+1} \mid x_{\le t}) = \mathrm{softmax}(h_t E^\top)$.

    Shapes: ids (batch, length) -> logits (batch, length, vocab).
    Source: Radford et al. 2018, section 3.1.
    """

    generation_config: ClassVar[dict[str, Any]] = {}
    """Requests of its folder's generation_config.json that `generate` does not follow."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        if decoder.cross:
            raise ValueError("CausalLM needs a decoder without cross-attention: Decoder(config)")
        self.config, self.decoder = decoder.config, decoder
        self.head = LanguageModelHead(decoder.config)

    def forward(
        self, ids: Ids, keep: Mask = None, cache: KeyValueCache | None = None,
        positions: Ids | None = None,
    ) -> Logits:  # fmt: skip
        """Logits of each next token; arguments as in `Decoder`."""
        return self.logits(self.decoder(ids, keep, cache=cache, positions=positions))

    def logits(self, hidden: Hidden) -> Logits:
        """The head alone; generation needs it only at the last position."""
        return self.head(hidden, self.decoder.embeddings.tokens.weight)


class Seq2SeqLM(nn.Module):
    r"""An encoder-decoder that predicts the target's next token, given the source.

    $$p(y_{t+1} \mid y_{\le t}, x) = \mathrm{softmax}(h_t E^\top), \qquad h = \mathrm{Decoder}(y, \mathrm{Encoder}(x))$$

    Shapes: source (batch, keys), target (batch, length) -> logits (batch, length, vocab).
    Source: Vaswani et al. 2017, section 3.4; Raffel et al. 2020.
    """

    generation_config: ClassVar[dict[str, Any]] = {}  # as for `CausalLM`

    def __init__(self, encoder_decoder: EncoderDecoder):
        super().__init__()
        self.config, self.encoder_decoder = encoder_decoder.config, encoder_decoder
        self.head = LanguageModelHead(encoder_decoder.config)

    def forward(
        self, source: Source, target: Ids, source_keep: Mask = None, target_keep: Mask = None
    ) -> Logits:
        """Logits of each next token of the target; arguments as in `EncoderDecoder`."""
        return self.logits(self.encoder_decoder(source, target, source_keep, target_keep))

    def logits(self, hidden: Hidden) -> Logits:
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
        self.config = config = encoder.config
        self.encoder = encoder
        self.dense = nn.Linear(config.d_model, config.d_model)
        self.f = getattr(operations(config.ops), config.activation)
        self.norm = make_norm(config)
        self.head = LanguageModelHead(config, bias=True)
        init_weights(self.dense, config)

    def forward(self, ids: Ids, keep: Mask = None, segments: Ids | None = None) -> Logits:
        """Logits of the token at each position; arguments as in `Encoder`."""
        return self.logits(self.encoder(ids, keep, segments))

    def logits(self, hidden: Hidden) -> Logits:
        """Everything above the encoder; training needs it only at the chosen positions."""
        h = self.norm(self.f(self.dense(hidden)))
        return self.head(h, self.encoder.embeddings.tokens.weight)
