"""What language models learn from: blocks of running text, and pairs of source and target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from .batches import EncodedTexts, by_length, fill
from .tokenizers import Tokenizer


def pack(texts: EncodedTexts, n: int, end_id: int) -> EncodedTexts:
    """Many short texts as full blocks of `n` tokens: one after the other, the end token after each.

    No block has padding, and no token is lost but the last few that fill no block. A text may be
    cut by the end of a block and go on in the next; a block may hold the end of one text and all
    of another, which the model may then attend to. The end token tells it that they are two. For
    masking, `end_id` is that of [SEP], which BERT's tokenizers have put there already.

    Raises:
        ValueError: all texts together do not fill one block.

    Source: Brown et al. 2020, section 2.2 and appendix B.

    >>> pack(EncodedTexts(((5, 6), (7,), (8, 9, 4)), None, pad_id=0), n=4, end_id=1).ids
    ((5, 6, 1, 7), (1, 8, 9, 4))
    """
    stream = [token for ids in texts.ids for token in ended(ids, end_id)]
    blocks = tuple(tuple(stream[i : i + n]) for i in range(0, len(stream) - n + 1, n))
    if not blocks:
        raise ValueError(
            f"{len(texts)} texts with {len(stream)} tokens do not fill one block of {n}; give more "
            "text, or a smaller n"
        )
    return EncodedTexts(blocks, None, texts.pad_id)


@dataclass(frozen=True)
class PairBatch:
    """Pairs of texts, padded: the masks are True where a token is real."""

    source: Int[Tensor, "batch keys"]
    source_keep: Bool[Tensor, "batch 1 1 keys"]
    target: Int[Tensor, "batch length"]
    """What is to be written, the end token included, the start token not."""
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

    Raises:
        ValueError: not as many targets as sources, or none.
    """

    sources: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...]
    pad_id: int

    def __post_init__(self):
        if len(self.sources) != len(self.targets) or not self.sources:
            raise ValueError(
                f"{len(self.sources)} sources and {len(self.targets)} targets; give as many of each, "
                "and at least one"
            )

    def __len__(self) -> int:
        return len(self.sources)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[PairBatch]:
        """All pairs once, like lengths together: in random order with a seed, as `by_length`."""
        lengths = [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]
        for chunk in by_length(lengths, batch_size, seed):
            yield pad_pairs(
                [self.sources[i] for i in chunk],
                [self.targets[i] for i in chunk],
                self.pad_id,
                chunk,
            )


def pad_pairs(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    pad_id: int,
    indices: Sequence[int] = (),
) -> PairBatch:
    """Fill sources and targets on the right, each to their longest."""
    source, source_real = fill(sources, pad_id)
    target, target_real = fill(targets, pad_id)
    return PairBatch(
        source, source_real[:, None, None], target, target_real[:, None, None], tuple(indices)
    )


def encode_pairs(
    sources: Sequence[str], targets: Sequence[str], tokenizer: Tokenizer, end_id: int
) -> EncodedPairs:
    """Tokenise pairs of texts; every target gets the end token, which the model must learn to write.

    Raises:
        ValueError: as `EncodedPairs`.
    """
    read, written = tokenizer.encode_all(sources), tokenizer.encode_all(targets)
    return EncodedPairs(
        tuple(map(tuple, read)), tuple(ended(ids, end_id) for ids in written), tokenizer.pad_id
    )


def ended(ids: Sequence[int], end_id: int) -> tuple[int, ...]:
    """The ids with the end token last, once: some tokenizers put it there themselves."""
    return (*ids,) if ids and ids[-1] == end_id else (*ids, end_id)
