"""What a masked language model learns from: texts with some tokens hidden, different ones each epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .batches import Batch, EncodedTexts, generator_of
from .stream import BlockFile
from .tokenizers import Tokenizer

MASKED, RANDOM = 0.8, 0.1
"""The shares of the chosen tokens that become [MASK] and another token; the rest stays."""


@dataclass(frozen=True)
class MaskedBatch:
    """A padded batch of texts in which some tokens are to be predicted."""

    ids: Int[Tensor, "batch length"]
    """What the model sees."""
    keep: Bool[Tensor, "batch 1 1 length"]
    chosen: Bool[Tensor, "batch length"]
    """The places that are predicted, and have a loss."""
    targets: Int[Tensor, "batch length"]
    """The original texts, with the answers at the chosen places."""
    indices: tuple[int, ...] = ()
    """The place of each text in its dataset."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many tokens are to be predicted."""
        return int(self.chosen.sum())


@dataclass(frozen=True)
class MaskedTexts:
    r"""Texts for a `MaskedLM`: each ordinary token is chosen with probability `share`.

    Of the chosen tokens 80 % become `[MASK]`, 10 % an ordinary token drawn uniformly from the
    vocabulary, and 10 % stay, so that places without `[MASK]` are predicted too. Special tokens
    (`[CLS]`, `[SEP]`, `[PAD]`, `[MASK]`, and `[UNK]`, which teaches nothing) are never chosen and
    never drawn.

    The masks of the k-th batch depend only on k and the seed given to `batches`: they differ from
    epoch to epoch, a run can resume at any step, and without a seed, for validation, they never
    change. A batch in which nothing was chosen by chance gets one chosen token (or word); a single
    short text may have none.

    Args:
        texts: from `encode` or `pack`, or a `BlockFile`.
        tokenizer: the one they were encoded with.
        share: the share of ordinary tokens that is chosen on average.
        whole_words: choose all pieces of a word (`##`) or none. Each chosen piece still becomes
            `[MASK]`, another token or itself independently.

    Raises:
        ValueError: a share outside 0 to 1, a tokenizer without `[MASK]` (or without word pieces,
            for whole words), or a text without an ordinary token.

    Source: Devlin et al. 2019, section 3.1, Task 1, and appendix A.1; whole words: the README of
    their code, 2019.
    """

    texts: EncodedTexts | BlockFile
    tokenizer: Tokenizer
    share: float = 0.15
    whole_words: bool = False

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share} must be over 0 and at most 1; 0.15 is usual")
        if "[MASK]" not in self.tokenizer.special:
            raise ValueError(
                "the tokenizer has no special token [MASK]; use train_tokenizer(..., bert=True)"
            )
        if self.whole_words and not self.continues.any():
            raise ValueError(
                "the tokenizer has no word pieces (##) to make whole words of; leave whole_words out"
            )
        for number, ids in enumerate(self.texts.ids):
            if not self.ordinary[list(ids)].any():
                where = f"text {number} (counted from 0)"
                raise ValueError(f"{where} has no token but special ones; remove it")

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def ordinary(self) -> Bool[np.ndarray, "vocab"]:
        """For each id, whether it may be chosen, and drawn as a replacement."""
        table = np.ones(self.tokenizer.vocab_size, dtype=bool)
        table[list(self.tokenizer.special.values())] = False
        return table

    @cached_property
    def replacements(self) -> Int[np.ndarray, "ordinary"]:
        """The ids that a random token is drawn from."""
        return np.flatnonzero(self.ordinary)

    @cached_property
    def continues(self) -> Bool[np.ndarray, "vocab"]:
        """For each id, whether it continues a word."""
        tokens = self.tokenizer.tokens(range(self.tokenizer.vocab_size))
        return np.array([token.startswith("##") for token in tokens])

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[MaskedBatch]:
        """Every text once, in the order of `EncodedTexts.batches`, with the masks of this seed."""
        for k, batch in enumerate(self.texts.batches(batch_size, seed)):
            yield self.mask(batch, generator_of(seed, k))

    def mask(self, batch: Batch, rng: np.random.Generator) -> MaskedBatch:
        """Choose tokens of a batch and hide them."""
        ids = batch.ids.numpy().copy()
        chosen = self.choose(ids, batch.keep[:, 0, 0].numpy(), rng)
        n = int(chosen.sum())
        u, drawn = rng.random(n), self.replacements[rng.integers(len(self.replacements), size=n)]
        hidden = np.where(u < MASKED, self.tokenizer.special["[MASK]"], ids[chosen])
        ids[chosen] = np.where((u >= MASKED) & (u < MASKED + RANDOM), drawn, hidden)
        return MaskedBatch(
            torch.from_numpy(ids), batch.keep, torch.from_numpy(chosen), batch.ids, batch.indices
        )

    def choose(
        self,
        ids: Int[np.ndarray, "batch length"],
        real: Bool[np.ndarray, "batch length"],
        rng: np.random.Generator,
    ) -> Bool[np.ndarray, "batch length"]:
        """The places to predict: at least one."""
        may, u = real & self.ordinary[ids], rng.random(ids.shape)
        if self.whole_words:
            starts = ~self.continues[ids]
            starts[:, 0] = True
            word = starts.ravel().cumsum() - 1
            u = u.ravel()[word].reshape(ids.shape)  # one number for all pieces of a word
        return may & (u < max(self.share, np.nextafter(u[may].min(), 1)))
