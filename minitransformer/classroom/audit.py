r"""How well the mistakes are known: `python -m minitransformer mistakes`.

The audit makes every known mistake, asks three questions, and measures how long the answers take.

- named: is it rejected and called by its name, whatever the random inputs?
- pairs: are two mistakes at once both named? A pair counts only if both show: "without the mask" leaves
  nothing for "mask inverted" to do, and no check can tell that it was made as well.
- caught: planted in the package itself, would the ledger notice? A mistake that no row notices is a
  hole in the ledger. A right answer without a row must equal what the package computes, and a mistake
  in it must differ.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from operator import attrgetter
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

from ..proofs import measure as ledger
from ..proofs.formula import Formula
from ..proofs.ledger import LEDGER
from .engine import lines
from .engine.diagnosis import Exercise, Result
from .engine.numbers import EXACT, SEED, distance, gradients
from .engine.patches import Mistake, planted
from .engine.running import copies
from .registry import every, exercises

SEEDS = (SEED, SEED + 1, SEED + 2)


@dataclass
class Measured:
    """What was found out about one exercise."""

    name: str
    known: int
    witness: str  # what mistakes are held against: rows of the ledger, or the package's function
    wrong: list[str] = field(default_factory=list)  # a right answer rejected, an unfit patch ...
    misnamed: list[str] = field(default_factory=list)  # accepted, or misnamed, with some seed
    survived: list[str] = field(default_factory=list)  # planted mistakes that went unnoticed
    pairs: int = 0  # pairs of which both mistakes show
    both_named: int = 0
    right: float = 0.0  # milliseconds for the answer to a right function
    slowest: float = 0.0  # for the slowest answer; mostly the first one to an unknown mistake


def measure(name: str, exercise: Exercise, seeds: Iterable[int] = SEEDS) -> Measured:
    """Make every known mistake, and every two at once, and see what the check says."""
    exercise = replace(exercise)  # a copy that remembers no wrong outputs yet
    witness = " ".join(exercise.rows) or "the package's function"
    found = Measured(name, len(exercise.mistakes), witness)

    def answer(student: Callable | None, seed: int = SEED) -> Result:
        start = time.perf_counter()
        result = exercise(student, seed)
        found.slowest = max(found.slowest, 1000 * (time.perf_counter() - start))
        return result

    for seed in seeds:
        if not answer(exercise.patched(), seed).passed:
            found.wrong.append(f"the right answer is rejected with seed {seed}")
        found.right = found.right or found.slowest
    answer(lambda *inputs: 3 * exercise.correct(*inputs) + 1)  # compared with every pair
    fitting = [m for m in exercise.mistakes if exercise.patched(m)]
    orphans = (m.name for m in exercise.mistakes if m not in fitting)
    found.wrong += [f"the patch {name!r} no longer fits the right answer" for name in orphans]
    for mistake in fitting:
        results = [answer(exercise.patched(mistake), seed) for seed in seeds]
        if any(r.passed or r.mistakes != (mistake.name,) for r in results):
            found.misnamed.append(mistake.name)
    for a, b in exercise.pairs():
        result = answer(exercise.patched(a, b))
        if result.passed:
            found.wrong.append(f"{a.name!r} and {b.name!r} together are accepted")
        found.pairs += result.mistakes not in ((a.name,), (b.name,))
        found.both_named += {*result.mistakes} == {a.name, b.name}
    notices = by_ledger if exercise.rows else by_package
    if notices(exercise):
        found.wrong.append(f"{witness} differs from the right answer")
    found.survived = [m.name for m in fitting if not notices(exercise, m)]
    return found


def by_ledger(exercise: Exercise, *mistakes: Mistake) -> bool:
    """Whether one of the exercise's rows is off with these mistakes planted in the package."""
    cases = [one for id in exercise.rows for one in one_by_one(LEDGER[id])]
    with planted((*exercise.parts, exercise.right), *mistakes):
        return any(map(off, cases))


def off(row: Formula) -> bool:
    """Whether the ledger rejects a row; a crash counts as well."""
    try:
        return bool(ledger.measure(row).wrong())
    except Exception:
        return True


@cache
def one_by_one(row: Formula) -> tuple[Formula, ...]:
    """The row case by case, with inputs and results by hand from before anything is planted."""

    def only(case: str) -> Formula:
        inputs = row.draw(np.random.default_rng(ledger.SEED), case)
        by_hand = row.by_hand(**inputs)
        return replace(row, cases=(case,), draw=lambda *_: inputs, by_hand=lambda **_: by_hand)

    return tuple(map(only, row.cases))


def by_package(exercise: Exercise, *mistakes: Mistake) -> bool:
    """Whether the answer with these mistakes differs from what the package computes."""
    yours, package = (
        lambda *inputs, f=f: exercise.tensor(f(*inputs))
        for f in (exercise.patched(*mistakes), exercise.package)
    )
    cases = exercise.inputs().values()
    for inputs in cases:
        try:
            a, b = yours(*copies(inputs)), package(*copies(inputs))
        except Exception:
            return True
        if a.shape != b.shape or distance(a, b) > EXACT:
            return True
    if not mistakes:  # the package may leave torch, where gradients end
        return False
    slopes = ((gradients(yours, inputs), gradients(package, inputs)) for inputs in cases)
    return any(distance(a[name], b[name]) > EXACT for a, b in slopes for name in b)


@dataclass(frozen=True)
class Catalogue:
    """What was found out about all exercises; prints as a table."""

    rows: tuple[Measured, ...]

    @property
    def ok(self) -> bool:
        """Whether every mistake is named, and every planted one caught."""
        return not any(row.wrong or row.misnamed or row.survived for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([HEAD, "-" * len(HEAD), *map(line, self.rows), "", *self.summary()])

    def summary(self) -> Iterator[str]:
        """The sums, and what is not as it should be."""
        counts = map(attrgetter("known", "both_named", "pairs"), self.rows)
        known, both, pairs = map(sum, zip(*counts, strict=True))
        named, caught = (known - len(self.all(kind)) for kind in ("misnamed", "survived"))
        yield f"{named} of {known} mistakes are rejected and named, each on {len(SEEDS)} seeds"
        yield f"{both} of {pairs} pairs ({share(both, pairs)}) are both named"
        yield f"mutation score: {caught} of {known} ({share(caught, known)}) planted mistakes are caught"
        right, slow = (max(self.rows, key=attrgetter(name)) for name in ("right", "slowest"))
        quick = f"a right answer is recognised within {right.right:.0f} ms ({right.name})"
        yield f"{quick}; the slowest answer of all took {slow.slowest:.0f} ms ({slow.name})"
        kinds = {"not named": "misnamed", "not caught": "survived", "wrong": "wrong"}
        yield from (f"{what}: {'; '.join(self.all(k))}" for what, k in kinds.items() if self.all(k))

    def all(self, kind: str) -> list[str]:
        """The entries of one kind, each with the name of its exercise."""
        return [f"{row.name}, {entry}" for row in self.rows for entry in getattr(row, kind)]


HEAD = f"{'exercise':22} {'known':>5} {'named':>6} {'pairs named':>14} {'caught':>7} {'ms':>4} {'at most':>7}  by"


def line(row: Measured) -> str:
    """One exercise as a line of the table."""
    named, caught = row.known - len(row.misnamed), row.known - len(row.survived)
    both = f"{row.both_named}/{row.pairs} {share(row.both_named, row.pairs):>6}"
    numbers = f"{row.known:5} {named:6} {both if row.pairs else '-':>14} {caught:7}"
    return f"{row.name:22} {numbers} {row.right:4.0f} {row.slowest:7.0f}  {row.witness}"


def share(part: int, whole: int) -> str:
    """A share in per cent, rounded down: only all is 100 %."""
    return f"{int(1000 * part / whole) / 10:g} %" if whole else "-"


def listed(names: list[str] | None = None) -> str:
    """Every known mistake with the term of the formula that it breaks. Raises: as `catalogue`."""
    lines = []
    for name, exercise in chosen(names).items():
        lines.append(f"{name}: {exercise.formula}")
        lines += [f"  {mistake.name}   [{mistake.term}]" for mistake in exercise.mistakes]
    return "\n".join(lines)


def catalogue(names: list[str] | None = None) -> Catalogue:
    """Measure the exercises of these names, or all.

    Raises: KeyError: there is no such exercise; the message lists the known ones.
    """
    bar = tqdm(chosen(names).items(), unit="exercise")
    with patch.object(lines, "SECONDS", 0.0):  # names are asked for, not lines
        return Catalogue(tuple(measure(name, exercise) for name, exercise in bar))


def chosen(names: list[str] | None) -> dict[str, Exercise]:
    """The exercises of these names, or all."""
    known = exercises()
    for name in {*(names or ())} - {*known}:
        if name in every():
            raise KeyError(f"{name} asks for names, not for a formula: it has no list of mistakes")
        raise KeyError(f"no exercise {name!r}; the known ones are: {', '.join(known)}")
    return {name: known[name] for name in names or known}
