"""Examples of different lengths become padded batches that waste little."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

AnyBatch = TypeVar("AnyBatch")


def cut(batch: AnyBatch, k: int) -> list[AnyBatch]:
    """Split a batch by rows into k nearly equal parts; some are empty if k exceeds the rows.

    Any dataclass will do: tensors and tuples with one entry per example are split, all other fields
    are shared by the parts.

    >>> [part.indices for part in cut(pad([[5], [6, 7], [8]], 0, indices=(2, 0, 1)), 2)]
    [(2,), (0, 1)]
    """
    if k == 1:
        return [batch]
    rows = len(batch)  # type: ignore[arg-type]
    per_example = {
        f.name: value
        for f in fields(batch)  # type: ignore[arg-type]
        if isinstance(value := getattr(batch, f.name), Tensor | tuple) and len(value) == rows
    }
    ends = [i * rows // k for i in range(k + 1)]
    return [
        replace(batch, **{name: value[start:end] for name, value in per_example.items()})  # type: ignore[type-var]
        for start, end in pairwise(ends)
    ]


@dataclass(frozen=True)
class Batch:
    """A padded batch: ids, the mask that hides the padding, and labels if the texts have any."""

    ids: Int[Tensor, "batch length"]
    keep: Bool[Tensor, "batch 1 1 length"]
    labels: Int[Tensor, "batch"] | None = None
    indices: tuple[int, ...] = ()
    """The place of each example in its dataset."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def predicted(self) -> Bool[Tensor, "batch next"]:
        """Where a language model has a loss: at t if the tokens at t and t + 1 are both real."""
        real = self.keep[:, 0, 0]
        return real[:, :-1] & real[:, 1:]

    @property
    def n_targets(self) -> int:
        """How many tokens a language model predicts."""
        return int(self.predicted.sum())


def pad(
    sequences: Sequence[Sequence[int]],
    pad_id: int,
    labels: Sequence[int] | None = None,
    indices: Sequence[int] = (),
) -> Batch:
    """Pad on the right to the longest sequence of this batch, not to a fixed length."""
    labelled = None if labels is None else torch.tensor(labels)
    return Batch(*fill(sequences, pad_id), labelled, tuple(indices))


def fill(
    sequences: Sequence[Sequence[int]], pad_id: int
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch 1 1 length"]]:
    """The padded ids, and the mask of the real ones.

    The mask follows from the lengths, not from the ids: GPT-2 pads with a token that also ends a text.
    """
    lengths = torch.tensor([len(s) for s in sequences])
    longest = int(lengths.max())
    ids = torch.tensor([[*s, *[pad_id] * (longest - len(s))] for s in sequences])
    return ids, torch.arange(longest) < lengths[:, None, None, None]


def by_length(lengths: Sequence[int], batch_size: int, seed: int | None = None) -> list[list[int]]:
    """The places of the examples of each batch, similar lengths together.

    With a seed the order is random: shuffle, sort by length within pools of 50 batches, shuffle the
    batches. Without one the examples are sorted by length, for evaluation.
    """
    order, rng = list(range(len(lengths))), random.Random(seed)
    pool = len(order) if seed is None else 50 * batch_size
    if seed is not None:
        rng.shuffle(order)
    chunks = []
    for start in range(0, len(order), pool):
        near = sorted(order[start : start + pool], key=lambda i: lengths[i])
        chunks += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    if seed is not None:
        rng.shuffle(chunks)
    return chunks


def generator_of(seed: int | None, k: int) -> np.random.Generator:
    """The random numbers of the k-th batch, independent of every other batch."""
    return np.random.default_rng((int(seed is None), abs(seed or 0), k))


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of many texts, ready to be batched."""

    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] | None
    pad_id: int
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Batch]:
        """Every example once, grouped and ordered by `by_length`.

        On the movie reviews this leaves a few per cent of padding, where padding to 128 makes 79 %.
        """
        for chunk in by_length([len(ids) for ids in self.ids], batch_size, seed):
            labels = None if self.labels is None else [self.labels[i] for i in chunk]
            yield pad([self.ids[i] for i in chunk], self.pad_id, labels, chunk)
