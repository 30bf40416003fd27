"""What language models learn from: blocks of running text, and pairs of source and target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from .batches import EncodedTexts, by_length, fill
from .tokenizers import Tokenizer


def pack(texts: EncodedTexts, n: int, end_id: int) -> EncodedTexts:
    """Join texts into full blocks of `n` tokens, with the end token after each text.

    No block has padding, and only the last few tokens, which fill no block, are lost. A block may
    cut a text in two, or hold parts of several texts, which then attend to each other; the end token
    tells them apart. For masking, `end_id` is that of [SEP], which BERT's tokenizers have already
    added.

    Raises: ValueError: all texts together do not fill one block.
    Source: Brown et al. 2020, section 2.2 and appendix B.

    >>> pack(EncodedTexts(((5, 6), (7,), (8, 9, 4)), None, pad_id=0), n=4, end_id=1).ids
    ((5, 6, 1, 7), (1, 8, 9, 4))
    """
    stream = [token for ids in texts.ids for token in ended(ids, end_id)]
    blocks = tuple(tuple(stream[i : i + n]) for i in range(0, len(stream) - n + 1, n))
    if not blocks:
        has = f"{len(texts)} texts with {len(stream)} tokens"
        raise ValueError(f"{has} do not fill one block of {n}; give more text, or a smaller n")
    return EncodedTexts(blocks, None, texts.pad_id)


@dataclass(frozen=True)
class PairBatch:
    """Padded pairs of texts; the masks are True where a token is real."""

    source: Int[Tensor, "batch keys"]
    source_keep: Bool[Tensor, "batch 1 1 keys"]
    target: Int[Tensor, "batch length"]
    """The text to write, with the end token and without the start token."""
    target_keep: Bool[Tensor, "batch 1 1 length"]
    indices: tuple[int, ...] = ()
    """The place of each pair in its dataset."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def n_targets(self) -> int:
        """How many tokens are to be written."""
        return int(self.target_keep.sum())


@dataclass(frozen=True)
class EncodedPairs:
    """Token ids of many pairs, ready to be batched; each target ends with the end token.

    Raises: ValueError: no pair, or different numbers of sources and targets.
    """

    sources: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    pad_id: int

    def __post_init__(self):
        if len(self.sources) != len(self.targets) or not self.sources:
            numbers = f"{len(self.sources)} sources and {len(self.targets)} targets"
            raise ValueError(f"{numbers}; give as many of each, and at least one")

    def __len__(self) -> int:
        return len(self.sources)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[PairBatch]:
        """Every pair once, grouped and ordered by `by_length`."""
        lengths = [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]
        for chunk in by_length(lengths, batch_size, seed):
            sources, targets = ([side[i] for i in chunk] for side in (self.sources, self.targets))
            padded = (*fill(sources, self.pad_id), *fill(targets, self.pad_id))
            yield PairBatch(*padded, tuple(chunk))


def encode_pairs(
    sources: Sequence[str], targets: Sequence[str], tokenizer: Tokenizer, end_id: int
) -> EncodedPairs:
    """Tokenise pairs of texts; every target gets the end token, which the model must learn to write.

    Raises: as `EncodedPairs`.
    """
    source, target = tokenizer.encode_all(sources), tokenizer.encode_all(targets)
    return EncodedPairs(
        tuple(map(tuple, source)), tuple(ended(ids, end_id) for ids in target), tokenizer.pad_id
    )


def ended(ids: Sequence[int], end_id: int) -> tuple[int, ...]:
    """The ids with one end token at the end; some tokenizers add it themselves."""
    return (*ids,) if ids and ids[-1] == end_id else (*ids, end_id)
