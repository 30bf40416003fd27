r"""An `Exercise`, and how its check answers: it runs a student's function and names what is wrong.

An exercise has a right answer, a way to draw inputs, properties of every right answer, and a list of
known mistakes: patches of the right answer. If a student's outputs equal those of a patched version
in every case, that is the mistake. The answer goes from coarse to fine, since a wrong shape explains
more than a wrong number:

1. still to be written  2. does not run  3. wrong type or shape  4. changes its inputs
5. NaN, or a property broken  6. a known mistake  7. otherwise where, and by how much, it differs,
and the line in which a change would make it right

The inputs are chosen so that no mistake hides: float64, every axis of a different size, weights of
order 1, masks of every kind. The gradients are compared too.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from itertools import chain, combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...proofs.draws import ABOVE, HUGE, OTHER
from ...proofs.formula import Inputs
from . import limits, lines
from .identity import whose
from .numbers import EXACT, ROUNDED, SEED, as_numbers, digits, distance, gradients, pattern, place
from .patches import Mistake, patched
from .running import Finding, check_type, copies, crash, guarded, paragraphs, run, stopped

Cases = dict[str, Inputs]
OTHER_SIZES = "other sizes"  # the first case, with every size another one
ALONE = {  # what it means if everything else is right
    (OTHER_SIZES,): "All other cases are right: is a size written into your code as a number?",
    (HUGE, ABOVE): "All other cases are right: is something hidden by a finite number, or the largest "
    "score taken of hidden ones as well?",
}  # fmt: skip
Property = Callable[[Callable, Inputs], str | None]  # says how it is broken; None if it holds


@dataclass(frozen=True)
class Result:
    """The answer of a check; a notebook shows it as a box."""

    title: str
    passed: bool
    message: str
    mistakes: tuple[str, ...] = ()  # names of the known ones that were recognised
    uses: tuple[str, ...] = ()  # functions of the package or of torch that are the solution

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'not yet'}: {self.title}\n\n{self.message}"

    def _repr_html_(self) -> str:
        colour, word = ("#2e7d32", "passed") if self.passed else ("#c62828", "not yet")
        body = "".join(
            f"<pre>{part}</pre>" if part.startswith("    ") else f"<p>{part}</p>"
            for part in escape(self.message).split("\n\n")
        )
        return (
            f"<div style='border-left:4px solid {colour};padding:0.2em 1em'>"
            f"<p><b style='color:{colour}'>{word}</b>: {escape(self.title)}</p>{body}</div>"
        )


@dataclass(frozen=True)
class Exercise:
    """What a student is asked for, and everything known about wrong answers to it."""

    title: str
    formula: str
    right: Callable[..., Any]  # where there is one, the package's own; its source is patched
    draw: Callable[..., Inputs]  # `draw(rng, case, sizes)`: the arguments in order
    cases: tuple[str, ...]
    axes: str  # names of the output's axes
    mistakes: tuple[Mistake, ...]
    properties: dict[str, Property] = field(default_factory=dict)  # by name
    said: str = "Your output equals the formula"  # before the name of a known mistake
    next: str = ""  # one sentence: what to look at when it is right
    differentiated: bool = True  # whether training sends gradients through it
    parts: tuple[Callable, ...] = ()  # functions that `right` calls and mistakes may patch as well
    wants: str = "one torch tensor"
    numbers: bool = False  # whether numbers of any kind will do: a list, an array, whole numbers
    precise: bool = True  # whether float32's digits are too few
    twins: tuple[Callable, ...] = ()  # other functions of the package that are the solution
    # If `right` belongs to the package: the ledger's rows in which a planted mistake must show.
    rows: tuple[str, ...] = ()
    # Otherwise: the same computed by the package, or by the library that it relies on.
    package: Callable[..., Any] | None = None
    # Outputs of wrong versions computed so far, so that a second check is quick.
    known: dict[Any, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, student: Any, seed: int = SEED) -> Result:
        """Check a student's function; it gets an answer even if it never ends."""
        try:
            with limits.limited(limits.SECONDS), limits.usual_state():
                torch.manual_seed(seed)
                return self.answer(student, seed)
        except limits.STOPS as stop:
            return Result(self.title, False, stopped(student, stop))

    def answer(self, student: Any, seed: int) -> Result:
        """The answer to a function that comes to an end."""
        start = time.monotonic()
        try:
            message, uses = diagnose(self, student, seed)
            return Result(self.title, True, message, uses=uses)
        except Finding as finding:
            message = str(finding)
            if not finding.mistakes and time.monotonic() - start < lines.SECONDS:
                message = paragraphs(message, lines.advice(self, student, seed, diagnose))
            return Result(self.title, False, message, finding.mistakes)

    def inputs(self, seed: int = SEED) -> Cases:
        """The arguments of every case."""
        every = {}
        for case in self.cases:
            what = (self.cases[0], OTHER) if case == OTHER_SIZES else (case,)
            every[case] = self.draw(np.random.default_rng(seed), *what)
        return {
            case: {k: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for k, a in x.items()}
            for case, x in every.items()
        }

    def tensor(self, output: Any, inputs: Inputs | None = None) -> Any:
        """An output in the form in which it is compared; what cannot be compared stays as it is."""
        return as_numbers(output) if self.numbers else output

    def correct(self, *inputs: Any) -> Tensor:
        """The right answer in the form in which it is compared."""
        return self.tensor(self.right(*inputs))

    def patched(self, *mistakes: Mistake) -> Callable[..., Any] | None:
        """The right answer with these mistakes made; None if they do not fit together."""
        right = (*self.parts, self.right)
        made = patched(right, *mistakes) or patched(right, *reversed(mistakes))
        return made[-1] if made else None

    def wrong(self, seed: int, case: str, inputs: Inputs, *mistakes: Mistake) -> Tensor | None:
        """The output with these mistakes made together; None if they do not run together."""
        key = (seed, case, *(m.name for m in mistakes))
        if key not in self.known:
            made, output = self.patched(*mistakes), None
            with suppress(Exception):
                output = self.tensor(made(*copies(inputs))) if made else None
            self.known[key] = output
        return self.known[key]

    def pairs(self) -> list[tuple[Mistake, Mistake]]:
        """Every two mistakes that can be made at once: neither patch removes the other's text."""
        return [pair for pair in combinations(self.mistakes, 2) if self.patched(*pair)]


def diagnose(exercise: Exercise, answer: Any, seed: int) -> tuple[str, tuple[str, ...]]:
    """What to say to a right answer, and what it borrows. Raises: Finding, which says what is wrong."""
    if not callable(answer):
        kind = type(answer).__name__
        raise Finding(f"Pass the function itself, without calling it; this check got {kind}.")
    cases, student = exercise.inputs(seed), guarded(answer)
    right = {case: exercise.correct(*copies(inputs)) for case, inputs in cases.items()}
    yours: dict[str, Tensor] = {}
    message = ""
    try:
        for case, inputs in cases.items():
            output = exercise.tensor(run(student, inputs, case), inputs)
            check_type(output, right[case], exercise.axes, case, exercise.wants)
            yours[case] = output.detach()
    except NotImplementedError:
        raise Finding(f"Still to be written. The formula: {exercise.formula}") from None
    except Finding as finding:
        message = str(finding)
    errors = {case: distance(output, right[case]) for case, output in yours.items()}
    worst, tolerance = max(errors.values(), default=0.0), EXACT
    if not exercise.precise:
        tolerance = ROUNDED * max(1.0, *(float(a.abs().max()) for a in right.values()))
    if not EXACT < worst <= tolerance:  # otherwise it is right, but for float32's rounding
        message = message or symptom(exercise, student, cases, yours)
    if not message and worst <= tolerance:
        slopes = check_gradients(exercise, student, cases, seed, tolerance)
        remark, uses = whose(exercise, student, copies(cases[exercise.cases[0]]))
        return praise(exercise, worst, slopes, remark), uses
    # A mistake may show in one case and crash in the next: the earlier cases still name it.
    found = recognise(exercise, cases, yours, seed) if worst > EXACT else ()
    named = described(exercise.said, *found) if found else ""
    wrong = {case for case in cases if errors.get(case, 1.0) > EXACT}
    if not found and len(yours) == len(cases) and worst > EXACT:
        named = pattern(yours, right, errors, exercise.axes)
        if not named.startswith("Nearly"):
            named = f"None of the {len(exercise.mistakes)} mistakes this check knows. {named}"
        elif message:
            named = ""
    if not found:
        named = paragraphs(named, *(why for of, why in ALONE.items() if wrong and wrong <= {*of}))
    raise Finding(paragraphs(message, named), *(m.name for m in found))


def described(what: str, *mistakes: Mistake) -> str:
    """A known mistake in words, or a pair of them."""
    message = f"{what} {', and '.join(m.name for m in mistakes)}."
    two = ["So there are two mistakes."] if len(mistakes) > 1 else []
    hints = dict.fromkeys(text for m in mistakes for text in (f"Look at {m.term}.", m.hint))
    return " ".join([message, *two, *hints])


def praise(exercise: Exercise, error: float, gradient_error: float, remark: str) -> str:
    """What has been verified, and what to look at next."""
    cases, slopes = ", ".join(exercise.cases), f", gradients to {digits(gradient_error)}"
    message = f"It computes {exercise.formula}. Verified in float64 ({cases}): outputs to "
    message += f"{digits(error)}{slopes if exercise.differentiated else ''}."
    if exercise.properties:
        message += f" It also holds that {'; '.join(exercise.properties)}."
    return paragraphs(message, remark, exercise.next)


def symptom(exercise: Exercise, student: Callable, cases: Cases, yours: dict[str, Tensor]) -> str:
    """The first thing that shows without a right answer: NaN, or a broken property; "" if none."""
    for case, output in yours.items():
        bad = ~output.isfinite()
        if bad.any():
            if output.numel() == 1:
                return f"It gives {float(output)} (case: {case})."
            some = f"{int(bad.sum())} of {bad.numel()} entries are NaN or infinite (case: {case})"
            return f"{some}, the first{place(exercise.axes, bad.nonzero()[0].tolist())}."
    for name, broken in exercise.properties.items():
        for case, inputs in cases.items():
            with suppress(Exception):  # it ran on the case itself; the rest of the answer will do
                if how := broken(student, inputs):
                    return f"A property is broken (case: {case}): {name}. {how}"
    return ""


def recognise(
    exercise: Exercise, cases: Cases, yours: dict[str, Tensor], seed: int
) -> tuple[Mistake, ...]:
    """The known mistake, or the pair of them, whose outputs are the student's in every case."""
    singles = ((mistake,) for mistake in exercise.mistakes)
    for mistakes in chain(singles, combinations(exercise.mistakes, 2)):
        # Most differ in the first case, so that the others are not computed.
        if all(
            (wrong := exercise.wrong(seed, case, cases[case], *mistakes)) is not None
            and wrong.shape == output.shape
            and torch.allclose(wrong, output, rtol=EXACT, atol=EXACT, equal_nan=True)
            for case, output in yours.items()
        ):
            return mistakes
    return ()


REPAIRED = (
    "Somewhere a NaN or an infinity arises and is repaired afterwards, by nan_to_num or torch.where. "
    "In the forward pass it is gone; in the backward pass it is still there. Keep it from arising."
)


def check_gradients(
    exercise: Exercise, student: Callable, cases: Cases, seed: int, tolerance: float
) -> float:
    """The largest error of gradients, relative to the largest entry. Raises: Finding, if wrong."""
    worst = 0.0
    for case, inputs in cases.items() if exercise.differentiated else ():
        right = gradients(exercise.correct, inputs)
        try:
            yours = gradients(lambda *given: exercise.tensor(student(*given)), inputs)
        except RuntimeError as error:
            how = crash(student, error, inputs, case)
            raise Finding(f"The output is right, but not its gradient.\n\n{how}") from None
        for name in right:
            if name not in yours:
                what = f"The output is right, but no gradient reaches {name} (case: {case})."
                raise Finding(f"{what} What cuts it off: .detach(), .item(), no_grad or NumPy?")
            off = distance(yours[name], right[name]) / max(1.0, float(right[name].abs().max()))
            worst = max(worst, off)
            if off > tolerance:
                raise wrong_gradient(exercise, inputs, case, name, yours[name], off, seed)
    return worst


def wrong_gradient(
    exercise: Exercise, inputs: Inputs, case: str, name: str, yours: Tensor, off: float, seed: int
) -> Finding:
    """What is wrong with the gradient of one input, by name if a known mistake explains it."""
    nan = int(yours.isnan().sum())
    how = f"{nan} of {yours.numel()} entries are NaN" if nan else f"off by {off:.1e}"
    message = f"The output is right, but the gradient of {name} is not (case: {case}): {how}."
    right = exercise.correct(*copies(inputs))
    for mistake in exercise.mistakes:
        # A mistake that does not run in this case, or whose output is wrong, explains nothing.
        output = exercise.wrong(seed, case, inputs, mistake)
        if output is None or distance(output, right) > EXACT:
            continue
        made = exercise.patched(mistake)
        wrong = gradients(lambda *given, f=made: exercise.tensor(f(*given)), inputs)
        if name in wrong and distance(wrong[name], yours) <= EXACT:
            named = described("It equals the formula", mistake)
            return Finding(paragraphs(message, named), mistake.name)
    return Finding(paragraphs(message, REPAIRED if nan else ""))
