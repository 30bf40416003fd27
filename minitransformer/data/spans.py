"""Span corruption: what T5 learns from. Holes in a text, and what fills them as the target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from .batches import EncodedTexts, by_length, generator_of
from .sequences import PairBatch, ended, pad_pairs
from .stream import BlockFile


@dataclass(frozen=True)
class CorruptedSpans:
    """Texts for a `Seq2SeqLM`: spans are cut out, and the decoder is to write them.

    Each span leaves a sentinel, the next of the list, in the source. The target has the same
    sentinel and then the span, for each span, one more sentinel that says that no span follows, and
    the end token. The spans are drawn anew for every seed given to `batches`, and those of the k-th
    batch depend on the seed and k alone, as in `MaskedTexts`.

    Args:
        texts: as `encode` or `pack` makes them, or a `BlockFile`; an end token at the end of a text
            stays in place.
        sentinels: ids that stand in no text, one more than a text has spans.
        end_id: the end token.
        share: how many of the tokens are cut out: rounded, for each text.
        mean_span: how many tokens a span has on average.

    Raises:
        ValueError: no sentinels or too few, one twice or in a text, or a text of a single token.

    Source: Raffel et al. 2020, sections 3.1.4 and 3.3.4, and their code (`random_spans_noise_mask`).
    """

    texts: EncodedTexts | BlockFile
    sentinels: Sequence[int]
    end_id: int
    share: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self):
        if not self.sentinels:
            raise ValueError(
                "there are no sentinels to put in the holes; learn a tokenizer that has some: "
                "train_tokenizer(..., extra=('<extra_id_0>', '<extra_id_1>', ...))"
            )
        if not 0 < self.share < 1 or self.mean_span < 1:
            raise ValueError(
                f"share={self.share} must be between 0 and 1, mean_span={self.mean_span} at least 1"
            )
        known = {*self.sentinels}
        if len(known) < len(self.sentinels):
            raise ValueError(f"a sentinel is given twice: {tuple(self.sentinels)}")
        for number, ids in enumerate(map(self.text, range(len(self)))):
            if len(self.body(ids)) < 2:
                raise ValueError(
                    f"text {number} (counted from 0) has one token, so nothing would stay; remove it"
                )
            if not known.isdisjoint(ids):
                raise ValueError(
                    f"text {number} (counted from 0) has a sentinel in it: {known & {*ids}}"
                )
            _, n_spans = span_numbers(len(self.body(ids)), self.share, self.mean_span)
            if n_spans + 1 > len(known):
                raise ValueError(
                    f"text {number} (counted from 0) has {len(ids)} tokens and makes {n_spans} spans, "
                    f"which takes {n_spans + 1} sentinels; there are {len(known)}. Give more, shorter "
                    "texts (pack with a smaller n), or a larger mean_span"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, i: int) -> tuple[int, ...]:
        """The i-th, also where it is on disk."""
        return tuple(map(int, self.texts.ids[i]))

    def body(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """The text without its end token."""
        return ids[:-1] if ids[-1] == self.end_id else ids

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[PairBatch]:
        """All texts once, texts of like length together, with the spans of this seed."""
        chunks = by_length([len(ids) for ids in self.texts.ids], batch_size, seed)
        for k, chunk in enumerate(chunks):
            rng, sources, targets = generator_of(seed, k), [], []
            for ids in map(self.text, chunk):
                body = self.body(ids)
                n_noise, n_spans = span_numbers(len(body), self.share, self.mean_span)
                noise = random_spans(len(body), n_noise, n_spans, rng)
                source, target = corrupt_spans(body, noise.tolist(), self.sentinels)
                sources.append([*source, *ids[len(body) :]])
                targets.append(ended(target, self.end_id))
            yield pad_pairs(sources, targets, self.texts.pad_id, chunk)


def span_numbers(length: int, share: float, mean_span: float) -> tuple[int, int]:
    r"""How many tokens of a text are cut out, $n = \mathrm{round}(sT)$, and in how many spans, $n / \mu$.

    $T$ is the length, $s$ the share, $\mu$ the mean span. At least one token is cut out and one stays,
    no span is empty, and something stays between two.

    Source: Raffel et al. 2020, their code (`random_spans_noise_mask`).

    >>> span_numbers(128, 0.15, 3.0)  # and one more sentinel says that no span follows
    (19, 6)
    """
    n = min(max(round(length * share), 1), length - 1)
    return n, min(max(round(n / mean_span), 1), n, length - n)


def random_spans(
    length: int, n_noise: int, n_spans: int, rng: np.random.Generator
) -> Bool[np.ndarray, "length"]:
    """Where the spans are: True in each. Every way to place them is equally likely.

    What goes is cut into `n_spans` parts and what stays into one more, of which the first and the
    last may be empty; put together in turns, no two spans touch. T5's code cuts what stays into
    `n_spans` parts too, so that a span always ends the text. On its long blocks that hardly
    shows; of a short text with one span it would never hide anything but the end.
    """
    kept = random_parts(length - n_noise + 2, n_spans + 1, rng)
    kept[[0, -1]] -= 1
    sizes = np.zeros(2 * n_spans + 1, dtype=int)
    sizes[::2], sizes[1::2] = kept, random_parts(n_noise, n_spans, rng)
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)


def random_parts(n: int, k: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """The sizes of k parts of n things in a row: k - 1 of the n - 1 gaps between them are cut."""
    cuts = np.sort(rng.choice(n - 1, k - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))


def corrupt_spans(
    ids: Sequence[int], noise: Sequence[bool], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The source with a sentinel for each span of noise, and the target with what stood there.

    Raises:
        IndexError: fewer sentinels than spans and one more.

    >>> corrupt_spans([11, 12, 13, 14, 15], [False, True, True, False, True], sentinels=[91, 92, 93])
    ([11, 91, 14, 92], [91, 12, 13, 92, 15, 93])
    """
    source: list[int] = []
    target: list[int] = []
    used, inside = 0, False
    for token, cut in zip(ids, noise, strict=True):
        if cut and not inside:
            source.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        (target if cut else source).append(token)
        inside = cut
    return source, [*target, sentinels[used]]
