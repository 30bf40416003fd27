"""Embeddings and a stack of blocks: the encoder, the decoder, and both together."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .attention import RelativePositionBias, check_keep, padding_mask
from .block import DecoderBlock, EncoderBlock
from .config import TransformerConfig
from .kv_cache import KeyValueCache
from .layers import Dropout, Embeddings, init_weights, make_norm
from .shapes import Hidden, Ids, Mask, Memory, Source


class Pooler(nn.Module):
    r"""One vector for a sequence: $\tanh(h_{\text{[CLS]}} W + b)$, from its first position.

    Shapes: (batch, length, d_model) -> (batch, d_model).
    Source: Devlin et al. 2019's code (pre-trained with next-sentence prediction).
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)

    def forward(self, hidden: Hidden) -> Float[Tensor, "batch d_model"]:
        """Pool the first position."""
        return torch.tanh(self.dense(hidden[:, 0]))


class Stack(nn.Module):
    """What encoder and decoder share: embeddings, blocks, and what follows the last block."""

    def __init__(
        self, config: TransformerConfig, depth: int, block: Callable[[], nn.Module], causal: bool
    ):
        super().__init__()
        self.config = c = config
        self.embeddings = Embeddings(c)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.norm = make_norm(c) if c.norm_position == "pre" else nn.Identity()
        self.dropout = Dropout(c.final_dropout)
        self.relative_positions: RelativePositionBias | None = None
        if c.positions == "relative":
            sizes = c.n_heads, c.n_buckets, c.max_distance
            self.relative_positions = RelativePositionBias(*sizes, bidirectional=not causal)

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """The bias that every block adds to its scores, if positions are relative."""
        return None if self.relative_positions is None else self.relative_positions(queries, keys)

    def finish(self, x: Hidden) -> Hidden:
        """The norm after the last block of a pre-LN stack, and dropout if there is any."""
        return self.dropout(self.norm(x))


class Encoder(Stack):
    r"""A stack of $N$ encoder blocks on top of embeddings.

    $$x_0 = \mathrm{Embed}(ids), \qquad x_l = \mathrm{EncoderBlock}_l(x_{l-1})$$

    A pre-LN stack ends with one more norm. A `pooler`, if the config wants one, takes no part in
    `forward`; a classifier uses it.

    Shapes: ids (batch, length) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, section 3.1; Devlin et al. 2019.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config, config.n_layers, lambda: EncoderBlock(config), causal=False)
        self.pooler = Pooler(config.d_model) if config.pooler else None
        init_weights(self, config)

    def forward(
        self, ids: Ids, keep: Mask = None, segments: Ids | None = None, first: int | None = None
    ) -> Float[Tensor, "batch first d_model"]:
        """Encode token ids.

        Args:
            keep: which keys may be attended to; by default all but `config.pad_id`.
            segments: segment of each token (BERT's sentences A and B), all 0 by default.
            first: return only the first `first` positions; the last block then computes no others.

        Raises: ValueError, TypeError as `Embeddings` and `check_keep`.
        """
        if keep is None and self.config.pad_id is not None:
            keep = padding_mask(ids, self.config.pad_id)
        return self.finish(self.run(self.embeddings(ids, segments), keep, first=first))

    def run(
        self, x: Hidden, keep: Mask = None, start: int = 0, stop: int | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "batch first d_model"]:  # fmt: skip
        """Pass the stream through the blocks from `start` up to `stop`; `first` as in `forward`."""
        bias = self.bias(x.shape[1], x.shape[1])
        for block in self.blocks[start:stop]:
            x = block(x, keep, bias, first if block is self.blocks[-1] else None)
        return x


class Decoder(Stack):
    r"""A stack of $N$ decoder blocks on top of embeddings: the output at $t$ depends only on tokens up to $t$.

    $$y_0 = \mathrm{Embed}(ids), \qquad y_l = \mathrm{DecoderBlock}_l(y_{l-1}, z)$$

    Args:
        cross: whether it attends to an encoder's output $z$.

    Shapes: ids (batch, length), memory (batch, keys, d_model) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, section 3.1; without encoder Radford et al. 2019.
    """

    def __init__(self, config: TransformerConfig, cross: bool = False):
        depth = config.n_layers if config.n_decoder_layers is None else config.n_decoder_layers
        super().__init__(config, depth, lambda: DecoderBlock(config, cross), causal=True)
        self.cross = cross
        init_weights(self, config)

    def forward(
        self, ids: Ids, keep: Mask = None, memory: Memory | None = None, memory_keep: Mask = None,
        cache: KeyValueCache | None = None, positions: Ids | None = None, last: int | None = None,
    ) -> Float[Tensor, "batch last d_model"]:  # fmt: skip
        """Decode token ids.

        Args:
            keep: which tokens may be attended to, (batch, 1, 1, keys), including those in the cache;
                causality comes on top. By default all but `config.pad_id`; with `cross` all, since a
                text may start with the padding id and causality hides padding at its end. Once a
                mask was given with a cache, later tokens count as real whatever their ids.
            memory: the encoder's output; `memory_keep` masks its positions.
            cache: what earlier calls read; `ids` are the tokens that follow.
            positions: of each token, by default 0, 1, 2 and so on. With padding on the left give
                `token_positions(keep)`; later calls with the same cache count on from there.
            last: return only the last `last` positions; the last block then computes no others.

        Raises: ValueError, TypeError as `Embeddings`, `DecoderBlock` and `check_keep`.
        """
        past = 0 if cache is None else cache.length
        if keep is None:
            keep = self.padding(ids, cache)
        else:
            check_keep(keep, (len(ids), 1, 1, past + ids.shape[1]))
            if cache is not None:
                cache.masked, keep = True, None if keep.all() else keep  # no mask is cheaper
        if cache is not None:
            cache.keep, positions = keep, cache.count(positions, ids.shape[1])
        y = self.embeddings(ids, None, positions, past)
        bias = self.bias(ids.shape[1], past + ids.shape[1])
        for i, block in enumerate(self.blocks):
            layer = None if cache is None else (cache.own[i], cache.memory[i])
            wanted = last if i == len(self.blocks) - 1 else None
            y = block(y, keep, memory, memory_keep, bias, layer, wanted)
        return self.finish(y)

    def padding(self, ids: Tensor, cache: KeyValueCache | None) -> Tensor | None:
        """The mask that hides padding; None if there is none, which makes attention cheaper."""
        before = None if cache is None else cache.keep
        pad_id = None if self.cross or (cache and cache.masked) else self.config.pad_id
        if pad_id is None and before is None:
            return None
        now = padding_mask(ids, pad_id)
        if before is None:
            if now.all():
                return None
            before = now.new_ones(len(ids), 1, 1, 0 if cache is None else cache.length)
        return torch.cat([before, now], -1)


class EncoderDecoder(nn.Module):
    r"""The whole Transformer: an encoder reads the source, a decoder writes the target.

    $$z = \mathrm{Encoder}(source), \qquad h = \mathrm{Decoder}(target, z)$$

    Both look up tokens in one table; it is the encoder's parameter, so the state dict has it once.

    Shapes: source (batch, keys), target (batch, length) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, figure 1 and section 3.4; Raffel et al. 2020.
    Reference: `nn.Transformer`.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, cross=True)
        # An attribute of the decoder, not a submodule: a parameter has one name.
        del self.decoder.embeddings.tokens
        self.decoder.embeddings.__dict__["tokens"] = self.encoder.embeddings.tokens

    def forward(
        self, source: Source, target: Ids, source_keep: Mask = None, target_keep: Mask = None
    ) -> Hidden:
        """The decoder's output at each position of the target, from the tokens up to there.

        Args:
            source_keep: which source tokens may be attended to, by default all but `pad_id`.
            target_keep: the same for the target, by default all; causality comes on top.

        Raises: ValueError, TypeError as `Encoder` and `Decoder`.
        """
        source_keep = self.source_keep(source, source_keep)
        memory = self.encode(source, source_keep)
        return self.decode(target, memory, source_keep, target_keep)

    def encode(self, source: Source, keep: Mask = None) -> Memory:
        """The first half: the memory $z$ of the source."""
        return self.encoder(source, keep)

    def decode(
        self, target: Ids, memory: Memory, memory_keep: Mask = None, keep: Mask = None,
        cache: KeyValueCache | None = None, positions: Ids | None = None,
    ) -> Hidden:  # fmt: skip
        """The second half; `memory_keep` is `source_keep(source)`, the rest as in `Decoder`."""
        return self.decoder(target, keep, memory, memory_keep, cache, positions)

    def source_keep(self, source: Source, keep: Mask = None) -> Mask:
        """The mask of the source that both halves need: `keep`, or all but `config.pad_id`."""
        if keep is None and self.config.pad_id is not None:
            return padding_mask(source, self.config.pad_id)
        return keep
