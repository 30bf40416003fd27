"""A `Quiz`: letters to be matched with names; a wrong name is answered with what contradicts it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

from tqdm import tqdm

from . import limits
from .diagnosis import Result
from .running import Finding, paragraphs, stopped


@dataclass(frozen=True)
class Quiz:
    """Patients, called by letters, to be matched with the names of their mistakes."""

    title: str
    right: dict[str, str] = field(repr=False)  # the name for each letter
    names: tuple[str, ...]  # all names to choose from
    against: Callable[[str, str], str]  # what contradicts a wrong name: `against(letter, name)`
    evidence: Callable[[str], str]  # what shows that the right name is right: `evidence(letter)`

    def __call__(self, student: Any, measured: bool = True) -> Result:
        """Check a student's function, which returns a dictionary.

        With `measured` the answer has the evidence, which takes a few seconds per patient, once.
        """
        try:
            return self.compare(self.given(student), measured)
        except Finding as finding:
            return Result(self.title, False, str(finding))

    def given(self, student: Any) -> dict[str, str | None]:
        """What the student's function returns. Raises: Finding, if it cannot be compared."""
        if not callable(student):
            kind = type(student).__name__
            raise Finding(f"Pass the function itself, without calling it; this check got {kind}.")
        choice = ", ".join(sorted(self.names))
        try:
            with limits.limited(limits.SECONDS):
                given = student()
        except NotImplementedError:
            raise Finding(f"Still to be written. The names to choose from: {choice}") from None
        except (Exception, *limits.STOPS) as error:
            raise Finding(stopped(student, error)) from None
        if not isinstance(given, dict):
            wanted, got = 'a dictionary such as {"A": "no shift"}', type(given).__name__
            raise Finding(f"Your function must return {wanted}, but it returns {got}.")
        unknown = [f"There is no patient {k!r}." for k in given if k not in tuple(self.right)]
        for name in given.values():
            if name is not None and name not in self.names:
                near = get_close_matches(str(name), self.names, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"The names are: {choice}."
                unknown.append(f"No mistake is called {name!r}. {hint}")
        if unknown:
            raise Finding(paragraphs(*unknown))
        return given

    def compare(self, given: dict[str, str | None], measured: bool) -> Result:
        """The answer to existing names for existing letters."""
        named = {letter: name for letter, name in given.items() if name is not None}
        bar = partial(tqdm, desc="examining", unit="patient", leave=False)
        if named == self.right:
            evidence = map(self.evidence, bar(named)) if measured else ["All are named."]
            return Result(self.title, True, paragraphs(*evidence))
        wrong = {letter: name for letter, name in named.items() if name != self.right[letter]}
        good = [letter for letter in named if letter not in wrong]
        left = [letter for letter in self.right if letter not in named]
        steps = bar(wrong.items()) if measured and wrong else wrong.items()
        against = (f": {self.against(*step)}" if measured else "." for step in steps)
        message = paragraphs(
            *(
                f"{x} is not a case of {wrong[x]!r}{why}"
                for x, why in zip(wrong, against, strict=True)
            ),
            f"Right: {', '.join(good)}." if good else "",
            f"Not named yet: {', '.join(left)}." if left else "",
        )
        mistakes = tuple(f"{letter} taken for {name!r}" for letter, name in wrong.items())
        return Result(self.title, False, message, mistakes)
