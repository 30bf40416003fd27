"""Span corruption, which T5 learns from: a text with holes, and their contents as the target."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from .batches import EncodedTexts, by_length, fill, generator_of
from .sequences import PairBatch, ended
from .stream import BlockFile


@dataclass(frozen=True)
class CorruptedSpans:
    """Texts for a `Seq2SeqLM`: spans are cut out of the source, and the decoder writes them.

    Each span is replaced by a sentinel, the next one of the list. The target repeats each sentinel
    followed by its span, then one more sentinel, which says that no span follows, and the end token.
    The spans of the k-th batch depend only on k and the seed given to `batches`, as in `MaskedTexts`.

    Args:
        texts: from `encode` or `pack`, or a `BlockFile`; an end token at the end of a text stays.
        sentinels: ids that occur in no text, one more than a text has spans.
        end_id: the end token.
        share: the share of each text's tokens that is cut out, rounded.
        mean_span: the mean length of a span.

    Raises: ValueError: no sentinels or too few, one given twice or occurring in a text, or a text of
        a single token.

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
        for number in range(len(self)):
            body, end = self.text(number)
            where = f"text {number} (counted from 0) has"
            if len(body) < 2:
                raise ValueError(f"{where} one token, so nothing would stay; remove it")
            if found := known & {*body, *end}:
                raise ValueError(f"{where} a sentinel in it: {found}")
            _, n_spans = span_numbers(len(body), self.share, self.mean_span)
            if n_spans + 1 > len(known):
                raise ValueError(
                    f"{where} {len(body + end)} tokens and makes {n_spans} spans, which takes "
                    f"{n_spans + 1} sentinels; there are {len(known)}. Give more, shorter texts (pack "
                    "with a smaller n), or a larger mean_span"
                )

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, i: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The i-th text, and its end token apart, if it has one."""
        ids = tuple(map(int, self.texts.ids[i]))
        return (ids[:-1], ids[-1:]) if ids[-1] == self.end_id else (ids, ())

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[PairBatch]:
        """Every text once, similar lengths together, with the spans of this seed."""
        chunks = by_length([len(ids) for ids in self.texts.ids], batch_size, seed)
        for k, chunk in enumerate(chunks):
            rng, sources, targets = generator_of(seed, k), [], []
            for body, end in map(self.text, chunk):
                numbers = span_numbers(len(body), self.share, self.mean_span)
                noise = random_spans(len(body), *numbers, rng)
                source, target = corrupt_spans(body, noise.tolist(), self.sentinels)
                sources.append([*source, *end])
                targets.append(ended(target, self.end_id))
            pad_id = self.texts.pad_id
            yield PairBatch(*fill(sources, pad_id), *fill(targets, pad_id), tuple(chunk))


def span_numbers(length: int, share: float, mean_span: float) -> tuple[int, int]:
    r"""How many tokens are cut out, $n = \mathrm{round}(sT)$, and in how many spans, $n / \mu$.

    $T$ is the length, $s$ the share, $\mu$ the mean span. At least one token is cut out and one stays,
    no span is empty, and no two spans touch.

    Source: Raffel et al. 2020, their code (`random_spans_noise_mask`).

    >>> span_numbers(128, 0.15, 3.0)  # and one more sentinel says that no span follows
    (19, 6)
    """
    n = min(max(round(length * share), 1), length - 1)
    return n, min(max(round(n / mean_span), 1), n, length - n)


def random_spans(
    length: int, n_noise: int, n_spans: int, rng: np.random.Generator
) -> Bool[np.ndarray, "length"]:
    """A mask that is True inside the spans. Every way to place them is equally likely.

    The noise is divided into `n_spans` parts and the rest into one more, of which the first and the
    last may be empty; taken in turns, no two spans touch. T5's code divides the rest into `n_spans`
    parts too, so that a span always ends the text. That hardly shows in its long blocks, but in a
    short text with one span only the end would ever be hidden.
    """
    kept = random_parts(length - n_noise + 2, n_spans + 1, rng)
    kept[[0, -1]] -= 1
    sizes = np.zeros(2 * n_spans + 1, dtype=int)
    sizes[::2], sizes[1::2] = kept, random_parts(n_noise, n_spans, rng)
    return np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)


def random_parts(n: int, k: int, rng: np.random.Generator) -> Int[np.ndarray, "k"]:
    """Sizes of k random parts of n things in a row: k - 1 of the n - 1 gaps between them are cut."""
    cuts = np.sort(rng.choice(n - 1, k - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [n]]))


def corrupt_spans(
    ids: Sequence[int], noise: Sequence[bool], sentinels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """The source with a sentinel in place of each span, and the target with the spans' tokens.

    Raises: IndexError: fewer sentinels than spans plus one.

    >>> corrupt_spans([11, 12, 13, 14, 15], [False, True, True, False, True], sentinels=[91, 92, 93])
    ([11, 91, 14, 92], [91, 12, 13, 92, 15, 93])
    """
    source, target = [], []
    used, inside = 0, False
    for token, cut in zip(ids, noise, strict=True):
        if cut and not inside:
            source.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        (target if cut else source).append(token)
        inside = cut
    return source, [*target, sentinels[used]]
