"""Labelled texts, and splits that do not leak."""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace


def same(text: str) -> str:
    """The key that equal texts share: letters and digits, ignoring case, spaces and punctuation.

    Full-width forms count as ordinary ones (`Ａ１` is `a1`).

    >>> same("No, THANKS!") == same("no thanks") == "nothanks"
    True
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in plain if c.isalnum())


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    return ", ".join([*names[:most], *[f"and {len(names) - most} more"] * (len(names) > most)])


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with the index of each one's label; `label_names[labels[i]]` is its name.

    Raises: ValueError: a label that has no name, or not one label per text.
    """

    texts: tuple[str, ...]
    labels: tuple[int, ...]
    label_names: tuple[str, ...]
    source: str = "memory"
    """Where they come from, for messages."""

    def __post_init__(self):
        if len(self.texts) != len(self.labels):
            raise ValueError(
                f"{len(self.texts)} texts have {len(self.labels)} labels; give one each"
            )
        known = range(len(self.label_names))
        if odd := [y for y in self.labels if isinstance(y, bool | float) or y not in known]:
            raise ValueError(
                f"the label {odd[0]!r} is no index of the {len(known)} label names; labels are whole "
                "numbers, counted from 0"
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        counts = Counter(self.labels)
        shares = listed([f"{n:.40} {counts[i]}" for i, n in enumerate(self.label_names)])
        return f"{len(self)} texts from {self.source} ({shares})"

    @property
    def majority(self) -> float:
        """The share of the most frequent label: the accuracy of answering nothing else."""
        return max(Counter(self.labels).values(), default=0) / max(len(self), 1)

    def take(self, indices: Sequence[int]) -> "LabelledTexts":
        """The examples at these places, in this order."""
        texts = tuple(self.texts[i] for i in indices)
        return replace(self, texts=texts, labels=tuple(self.labels[i] for i in indices))

    def numbered_as(self, names: Sequence[str]) -> "LabelledTexts":
        """The same labels, numbered as in `names`; ValueError for a label that has another name."""
        used = {y: self.label_names[y] for y in sorted(set(self.labels))}
        if other := [name for name in used.values() if name not in names]:
            known = listed([repr(name) for name in names])
            raise ValueError(f"{self.source} has the label {other[0]!r}; known labels: {known}")
        number = {y: list(names).index(name) for y, name in used.items()}
        labels = tuple(number[y] for y in self.labels)
        return replace(self, labels=labels, label_names=tuple(names))

    def sample(self, n: int, seed: int = 0) -> "LabelledTexts":
        """`n` examples at random, the same for the same seed; ValueError if there are fewer."""
        if not 0 < n <= len(self):
            raise ValueError(f"cannot take {n} of {self!r}; take from 1 to {len(self)}")
        return self.take(random.Random(seed).sample(range(len(self)), n))

    def split(
        self, fractions: tuple[float, ...] = (0.8, 0.1, 0.1), seed: int = 0
    ) -> tuple["LabelledTexts", ...]:
        """Disjoint random parts, each with the same share of every label.

        Texts that are equal up to case, spaces and punctuation (`same`) stay together, so that no
        test text was trained on.

        Raises: ValueError: fractions that do not sum to 1, or a label with fewer distinct texts than
            there are parts.
        """
        if abs(sum(fractions) - 1) > 1e-9 or min(fractions) <= 0:
            raise ValueError(f"fractions must be positive and sum to 1, got {fractions}")
        # Near-duplicates are joined after the shuffle, so that they change few other places.
        equal: dict[str, list[int]] = {}
        for i, text in enumerate(self.texts):
            equal.setdefault(" ".join(text.casefold().split()), []).append(i)
        rng, n_parts = random.Random(seed), len(fractions)
        parts: list[list[int]] = [[] for _ in fractions]
        home: dict[str, list[int]] = {}  # the part that has the texts of a key
        for label, name in enumerate(self.label_names):
            mine = [group for group in equal.values() if self.labels[group[0]] == label]
            rng.shuffle(mine)
            alike: dict[str, list[int]] = {}
            for group in mine:
                text = self.texts[group[0]]
                alike.setdefault(same(text) or text.strip(), []).extend(group)
            for key in [key for key in alike if key in home]:
                home[key] += alike.pop(key)
            if (n := len(alike)) < n_parts:
                raise ValueError(
                    f"{self.source}: label {name!r} has {n} different text{'s' * (n != 1)}, too few "
                    f"for {n_parts} parts; add examples of it, merge it with another label, or "
                    "remove it"
                )
            keys, start = list(alike), 0
            for k, part in enumerate(parts, 1):
                # Every part gets at least one text of every label.
                end = min(max(round(n * sum(fractions[:k])), k), n - (n_parts - k))
                home |= dict.fromkeys(keys[start:end], part)
                part += [i for key in keys[start:end] for i in alike[key]]
                start = end
        for part in parts:
            rng.shuffle(part)
        return tuple(self.take(part) for part in parts)
