r"""How well the mistakes are known: `python -m minitransformer mistakes`.

For every exercise, three questions.

- named: is each known mistake refused and called by its name, whatever the random inputs?
- pairs: are two mistakes at once both named? A pair counts only where both show. Where the output is
  that of a single mistake ("without the mask" leaves nothing for "mask inverted" to do), that one is
  named, and no check can do more.
- caught: planted in the package, would the package's own tests see it? A mistake that no row of the
  ledger notices is a hole in the ledger.

And how long a student waits for the answer: to the right function, and at worst.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

from .counterparts import FUNCTIONS
from .engine.diagnosis import EXACT, SEED, Exercise, Mistake, Result, distance, pairs
from .exercises.checks import every, exercises
from .mutants import ROWS, caught

SEEDS = (SEED, SEED + 1, SEED + 2)


@dataclass
class Measured:
    """What was found out about one exercise."""

    name: str
    known: int
    misnamed: list[str] = field(default_factory=list)
    """Mistakes that were not refused, or not called by their name, with some seed."""
    pairs: int = 0
    """Pairs of which both show."""
    both_named: int = 0
    witness: str = "no ledger row"
    """Against what the mistakes were held: rows of the ledger, or the package's function."""
    survived: list[str] = field(default_factory=list)
    """Mistakes that this did not see."""
    right: float = 0.0
    """Milliseconds until a right answer is told so."""
    slowest: float = 0.0
    """Milliseconds that the slowest of all answers took; mostly the first to a mistake unknown."""

    @property
    def held(self) -> int:
        """The number of mistakes that were planted."""
        return 0 if self.witness == "no ledger row" else self.known


def measure(name: str, exercise: Exercise, seeds: Iterable[int] = SEEDS) -> Measured:
    """Make every known mistake, and every two at once, and see what the check says."""
    found = Measured(name, len(exercise.mistakes))
    exercise = replace(exercise)  # which remembers no wrong outputs yet

    def timed(student: Callable, seed: int = SEED) -> Result:
        start = time.perf_counter()
        result = exercise(student, seed)
        found.slowest = max(found.slowest, 1000 * (time.perf_counter() - start))
        return result

    def answered(*mistakes: Mistake, seed: int = SEED) -> Result:
        """What the check says to a student who makes these mistakes."""
        change = {k: v for m in mistakes for k, v in m.change.items()}
        return timed(lambda *inputs: exercise.variant(*inputs, **change), seed)

    if not answered().passed:
        raise AssertionError(f"{name}: right, and refused by its own check")
    found.right = found.slowest
    timed(lambda *inputs: 3 * exercise.variant(*inputs) + 1)  # held against every pair
    for mistake in exercise.mistakes:
        results = [answered(mistake, seed=seed) for seed in seeds]
        if any(r.passed or r.mistakes != (mistake.name,) for r in results):
            found.misnamed.append(mistake.name)
    for a, b in pairs(exercise):
        said = answered(a, b).mistakes
        hidden = len(said) == 1 and said[0] in (a.name, b.name)
        found.pairs += not hidden
        found.both_named += set(said) == {a.name, b.name}
    plant(found, exercise)
    return found


def plant(found: Measured, exercise: Exercise) -> None:
    """Put each mistake in the place of the package's own code."""
    if found.name in ROWS:
        rows = ROWS[found.name](exercise.variant)
        found.witness = " ".join(row.id for row in rows)
        off = [row.id for row in rows if caught(row)]
        if off:
            raise AssertionError(f"{found.name}: right, and refused by {', '.join(off)}")
        found.survived = [
            mistake.name
            for mistake in exercise.mistakes
            if not any(map(caught, ROWS[found.name](partial(exercise.variant, **mistake.change))))
        ]
    elif found.name in FUNCTIONS:
        found.witness = "the package's function"
        inputs = exercise.inputs()
        right = {case: FUNCTIONS[found.name](*given.values()) for case, given in inputs.items()}

        def differs(*mistakes: Mistake) -> bool:
            outputs = {c: exercise.wrong(SEED, c, given, *mistakes) for c, given in inputs.items()}
            return any(a is None or distance(a, right[c]) > EXACT for c, a in outputs.items())

        if differs():
            raise AssertionError(f"{found.name}: the package's function gives something else")
        found.survived = [m.name for m in exercise.mistakes if not differs(m)]


@dataclass(frozen=True)
class Catalogue:
    """What was found out about all exercises; prints as a table."""

    rows: tuple[Measured, ...]

    @property
    def ok(self) -> bool:
        """Whether every mistake is named, and every planted one caught."""
        return not any(row.misnamed or row.survived for row in self.rows)

    def __str__(self) -> str:
        return "\n".join([HEAD, "-" * len(HEAD), *map(line, self.rows), "", *self.summary()])

    def summary(self) -> Iterator[str]:
        """The sums, and what is not as it should be."""
        known, both, two, held = (
            sum(getattr(row, name) for row in self.rows)
            for name in ("known", "both_named", "pairs", "held")
        )
        misnamed = [f"{row.name}, {name}" for row in self.rows for name in row.misnamed]
        survived = [f"{row.name}, {name}" for row in self.rows for name in row.survived]
        yield f"{known - len(misnamed)} of {known} mistakes are refused and named, each on {len(SEEDS)} seeds"
        yield f"{both} of {two} pairs ({share(both, two)}) are both named"
        yield f"mutation score: {held - len(survived)} of {held} ({share(held - len(survived), held)}) planted mistakes are caught"
        right, slow = (max(self.rows, key=attrgetter(name)) for name in ("right", "slowest"))
        yield (
            f"a right answer is told so in {right.right:.0f} ms at most ({right.name}); the slowest "
            f"answer of all took {slow.slowest:.0f} ms ({slow.name})"
        )
        if misnamed:
            yield f"not named: {'; '.join(misnamed)}"
        if survived:
            yield f"not caught: {'; '.join(survived)}"


HEAD = f"{'exercise':22} {'known':>5} {'named':>6} {'pairs named':>14} {'caught':>7} {'ms':>4} {'at most':>7}  by"


def line(row: Measured) -> str:
    """One exercise as a line of the table."""
    both = (
        f"{row.both_named}/{row.pairs} {share(row.both_named, row.pairs):>6}" if row.pairs else "-"
    )
    seen = str(row.held - len(row.survived)) if row.held else "-"
    return (
        f"{row.name:22} {row.known:5} {row.known - len(row.misnamed):6} {both:>14} {seen:>7} "
        f"{row.right:4.0f} {row.slowest:7.0f}  {row.witness}"
    )


def share(part: int, whole: int) -> str:
    """A share in per cent, rounded down: only all is 100 %."""
    return f"{int(1000 * part / whole) / 10:g} %" if whole else "-"


def listed(names: list[str] | None = None) -> str:
    """Every known mistake with the term of the formula that it breaks.

    Raises:
        KeyError: as `catalogue`.
    """
    lines = []
    for name, exercise in chosen(names).items():
        lines.append(f"{name}: {exercise.formula}")
        lines += [f"  {mistake.name}   [{mistake.term}]" for mistake in exercise.mistakes]
    return "\n".join(lines)


def catalogue(names: list[str] | None = None) -> Catalogue:
    """Measure the exercises of these names, or all.

    Raises:
        KeyError: there is no such exercise; the message lists those there are.
    """
    return Catalogue(tuple(measure(name, e) for name, e in chosen(names).items()))


def chosen(names: list[str] | None) -> dict[str, Exercise]:
    """The exercises of these names, or all."""
    known = exercises()
    for name in names or ():
        if name in known:
            continue
        if name in every():
            raise KeyError(f"{name} asks for names, not for a formula: it has no list of mistakes")
        raise KeyError(f"no exercise {name!r}; there are: {', '.join(known)}")
    return {name: known[name] for name in names or known}
