r"""How a check answers: it runs a student's function and says what is wrong, by name if it can.

An `Exercise` has a reference, a way to draw inputs, properties that every right answer has, and a
list of known mistakes. Each mistake is a small wrong implementation: the formula written once with
switches, one switch turned. When the student's outputs equal those of a mistake in every case, that
is the mistake. The answer goes from the coarse to the fine, since a wrong shape explains more than
a wrong number:

1. still to be written  2. does not run  3. wrong type or shape  4. changes its inputs
5. NaN, or a property broken  6. a known mistake  7. otherwise where, and by how much, it differs

The inputs follow from what hides mistakes: float64, every axis of another size, weights of order
1, masks of every kind, and the gradients are compared too.
"""

import functools
import inspect
import linecache
import math
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import limits
from .patches import Mistake, patched

Inputs = dict[str, Any]
SEED = 4
# float64 rounds in the 16th digit; a mistake shows in the third.
EXACT = 1e-9
# An answer that agrees this well but not better was computed in float32 somewhere.
SINGLE = 1e-4


@dataclass(frozen=True)
class Exercise:
    """What a student is asked for, and all that is known about wrong answers to it."""

    title: str
    formula: str
    right: Callable[..., Any]
    """The right answer: the package's own function where there is one. Its source is patched."""
    draw: Callable[[np.random.Generator, str], Inputs]
    """`draw(rng, case)`: the arguments in the student's order."""
    cases: tuple[str, ...]
    axes: str
    """Names of the output's axes."""
    mistakes: tuple[Mistake, ...]
    properties: dict[str, Callable[[Callable, Inputs], str | None]] = field(default_factory=dict)
    """Name of each property, and a function that says how it is broken."""
    next: str = ""
    """One sentence: what to look at when it is right."""
    differentiated: bool = True
    """Whether training sends gradients through it; an optimiser's step is taken without."""
    parts: tuple[Callable, ...] = ()
    """Functions that `right` calls and that mistakes may patch as well."""
    rows: tuple[str, ...] = ()
    """Where `right` is the package's own: the ledger's rows in which a planted mistake must show."""
    package: Callable[..., Any] | None = None
    """Where it is not: the same computed by the package, or by the library that it relies on."""
    known: dict[Any, Tensor | None] = field(default_factory=dict, init=False, repr=False)
    """Outputs of wrong versions that were computed once: a second check need not do it again."""

    def __call__(self, student: Any, seed: int = SEED) -> "Result":
        """Check a student's function; the result prints as the answer, also when it never ends."""
        try:
            with limits.limited(limits.SECONDS):
                return self.answer(student, seed)
        except limits.STOPS as stop:
            return Result(self.title, False, stopped(student, stop))

    def answer(self, student: Any, seed: int) -> "Result":
        """The answer to a function that comes to an end."""
        return Result(self.title, *diagnose(self, student, seed))

    def inputs(self, seed: int = SEED) -> dict[str, Inputs]:
        """The arguments of every case."""
        every = {}
        for case in self.cases:
            drawn = self.draw(np.random.default_rng(seed), case)
            every[case] = {
                name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a
                for name, a in drawn.items()
            }
        return every

    def tensor(self, output: Any) -> Any:
        """An output in the form in which it is compared."""
        return output

    def patched(self, *mistakes: Mistake) -> Callable[..., Any] | None:
        """The right answer with these mistakes made; None if they do not fit together."""
        right = (*self.parts, self.right)
        made = patched(right, *mistakes) or patched(right, *reversed(mistakes))
        return made and made[-1]

    def wrong(self, seed: int, case: str, inputs: Inputs, *mistakes: Mistake) -> Tensor | None:
        """What these mistakes together give in a case; None if they do not run together."""
        key = (seed, case, *(m.name for m in mistakes))
        if key not in self.known:
            made = self.patched(*mistakes)
            try:
                self.known[key] = made and self.tensor(made(*copies(inputs)))
            except (RuntimeError, ArithmeticError, LookupError, TypeError, ValueError):
                self.known[key] = None
        return self.known[key]


class NumberExercise(Exercise):
    """The same for a function that gives a number, or says yes or no, where others give a tensor."""

    def tensor(self, output: Any) -> Any:
        """As a tensor of one number; what is no number stays as it is, and is told so."""
        try:
            return torch.as_tensor(output, dtype=torch.float64).detach().reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            return output

    def answer(self, student: Any, seed: int) -> "Result":
        """As of a tensor of one number."""
        if not callable(student):
            return super().answer(student, seed)

        @functools.wraps(student)  # a crash is looked for in the student's own code
        def as_tensor(*inputs: Any) -> Any:
            return self.tensor(student(*inputs))

        return super().answer(as_tensor, seed)


@dataclass(frozen=True)
class Result:
    """The answer of a check; a notebook shows it as a box."""

    title: str
    passed: bool
    message: str
    mistakes: tuple[str, ...] = ()
    """Names of the known mistakes that were recognised."""

    def __repr__(self) -> str:
        return f"{'passed' if self.passed else 'not yet'}: {self.title}\n\n{self.message}"

    def _repr_html_(self) -> str:
        colour = "#2e7d32" if self.passed else "#c62828"
        parts = escape(self.message).split("\n\n")
        body = "".join(
            f"<pre>{part}</pre>" if part.startswith("    ") else f"<p>{part}</p>" for part in parts
        )
        word = "passed" if self.passed else "not yet"
        return (
            f"<div style='border-left:4px solid {colour};padding:0.2em 1em'>"
            f"<p><b style='color:{colour}'>{word}</b>: {escape(self.title)}</p>{body}</div>"
        )


Answer = tuple[bool, str, tuple[str, ...]]


class Finding(Exception):
    """What is wrong with an answer, found while running it; never leaves this file."""


def diagnose(exercise: Exercise, student: Any, seed: int) -> Answer:
    """The answer to one function: passed, what to say, the names of known mistakes."""
    if not callable(student):
        kind = type(student).__name__
        return False, f"This check wants the function itself, without calling it; got {kind}.", ()
    cases = exercise.inputs(seed)
    right = {
        case: exercise.tensor(exercise.right(*copies(inputs))) for case, inputs in cases.items()
    }
    yours: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    said: list[str] = []
    try:
        for case, inputs in cases.items():
            output = run(student, inputs, case)
            check_type(exercise, output, right[case], case)
            yours[case], errors[case] = output.detach(), distance(output.detach(), right[case])
    except NotImplementedError:
        return False, f"Still to be written. The formula: {exercise.formula}", ()
    except Finding as finding:
        said = [str(finding)]
    worst = max(errors.values(), default=0.0)
    said = said or symptoms(exercise, student, cases, yours)
    if not said and worst <= EXACT:
        return check_gradients(exercise, student, cases, worst, seed)
    # A mistake may show in one case and crash in the next: what came before still names it.
    found = recognise(exercise, cases, yours, seed) if worst > EXACT else ()
    said += [described("Your output", *found)] if found else []
    if not found and len(yours) == len(cases) and worst > EXACT:
        said.append(where(exercise, yours, right, errors))
    return False, "\n\n".join(said), tuple(m.name for m in found)


def described(what: str, *mistakes: Mistake) -> str:
    """A known mistake in words, or a pair of them."""
    said = f"{what} equals the formula {', and '.join(m.name for m in mistakes)}."
    if len(mistakes) > 1:
        said += " Two mistakes, then."
    return " ".join([said] + [f"Look at {m.term}. {m.hint}" for m in mistakes])


# --- Running the student's code ---------------------------------------------------------------


def run(student: Callable, inputs: Inputs, case: str) -> Any:
    """Call with copies of the inputs; a crash or a changed input is a finding."""
    given = copies(inputs)
    try:
        output = student(*given)
    except NotImplementedError:
        raise
    except Exception as error:
        raise Finding(crash(student, error, inputs, case)) from None
    for name, before, after in zip(inputs, inputs.values(), given, strict=True):
        if isinstance(before, Tensor) and not torch.equal(before, after):
            raise Finding(
                f"Your function changes its argument {name} (case: {case}). The caller still needs "
                f"it: make a new tensor instead, such as `{name} = {name}.masked_fill(...)` for "
                f"`{name}.masked_fill_(...)`."
            )
    return output


def crash(student: Callable, error: Exception, inputs: Inputs, case: str) -> str:
    """Where in the student's own code it stopped, and what it was given."""
    said = [f"It does not run (case: {case}). {type(error).__name__}: {error}"]
    said += [*line_of(student, error), limits.usual_cause(error)]
    given = ", ".join(
        f"{name} {tuple(a.shape) if isinstance(a, Tensor) else repr(a)}"
        for name, a in inputs.items()
        if isinstance(a, Tensor | str)
    )
    said.append(f"It was called with {given}.")
    return "\n\n".join(part for part in said if part)


def stopped(student: Callable, stop: BaseException) -> str:
    """Why and where it was stopped."""
    said = {
        limits.TimeUp: f"Stopped after {limits.SECONDS:.0f} seconds; a right answer takes far less than one.",
        KeyboardInterrupt: "You stopped it.",
        SystemExit: "Your function ends the program.",
    }.get(type(stop), f"It does not run. {type(stop).__name__}: {stop}")
    line, cause = line_of(student, stop), limits.usual_cause(stop)
    if isinstance(stop, limits.TimeUp) and not line:
        cause = "It was not in your function then. Is the machine busy? Check again."
    parts = [said, *line, cause]
    return "\n\n".join(part for part in parts if part)


def line_of(student: Callable, error: BaseException) -> list[str]:
    """The line of the student's own code at which an error came; empty if it was elsewhere."""
    # The last frame that is not a library's: the student's function, or a helper beside it.
    home = getattr(inspect.unwrap(student), "__code__", None)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename
    ]
    own = [f for f in frames if home is not None and f.filename == home.co_filename]
    if not own:
        return []
    last = own[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip() or last.line
    return [f"It stops in `{last.name}`, at the line", f"    {line}"]


def check_type(exercise: Exercise, output: Any, right: Tensor, case: str) -> None:
    """A tensor, of the right shape and number type; anything else is a finding."""
    if output is None:
        raise Finding("Your function returns nothing. Is the `return` missing?")
    if isinstance(output, tuple):
        raise Finding(
            f"Your function returns {len(output)} things; this exercise wants one tensor, "
            f"({exercise.axes.replace(' ', ', ')})."
        )
    if not isinstance(output, Tensor):
        raise Finding(
            f"Your function must return a torch tensor, it returns {type(output).__name__}."
        )
    if output.shape != right.shape:
        raise Finding(wrong_shape(exercise.axes.split(), output, right, case))
    if output.dtype != right.dtype:
        raise Finding(
            f"The inputs are {right.dtype}, your output is {output.dtype}. Make new tensors of the "
            "inputs' kind, for instance with `x.new_zeros(...)`."
        )


def wrong_shape(axes: list[str], output: Tensor, right: Tensor, case: str) -> str:
    """What the axes should be; since all sizes differ, a size tells which axis it is."""
    wanted = ", ".join(f"{a}={n}" for a, n in zip(axes, right.shape, strict=True))
    said = f"The shape is wrong (case: {case}): wanted ({wanted}), got {tuple(output.shape)}."
    name = dict(zip(right.shape, axes, strict=True))
    if len(name) == len(axes) and all(n in name for n in output.shape):
        mine = ", ".join(name[n] for n in output.shape)
        said += f" By their sizes your axes are ({mine})."
    return said


# --- What is wrong with the numbers -----------------------------------------------------------


def copies(inputs: Inputs) -> list[Any]:
    """The arguments, tensors copied: not even a wrong version changes those of the next."""
    return [a.clone() if isinstance(a, Tensor) else a for a in inputs.values()]


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where only one of the two is NaN."""
    if not a.numel():
        return 0.0
    error = (a - b).abs()
    error = error.masked_fill(a == b, 0.0)  # inf - inf
    error = error.masked_fill(a.isnan() & b.isnan(), 0.0)
    return float(error.nan_to_num(math.inf).max())


def symptoms(
    exercise: Exercise, student: Callable, cases: dict[str, Inputs], yours: dict[str, Tensor]
) -> list[str]:
    """The first thing that can be seen without a reference: NaN, or a property that is broken."""
    for case, output in yours.items():
        bad = ~output.isfinite()
        if bad.any():
            at = place(exercise.axes.split(), bad.nonzero()[0].tolist())
            return [
                f"{int(bad.sum())} of {bad.numel()} entries are NaN or infinite (case: {case}), "
                f"the first at {at}."
            ]
    for name, broken in exercise.properties.items():
        for case, inputs in cases.items():
            try:
                how = broken(student, inputs)
            except Exception:  # it ran on the case itself; the rest of the answer will do
                how = None
            if how:
                return [f"A property is broken (case: {case}): {name}. {how}"]
    return []


def recognise(
    exercise: Exercise, cases: dict[str, Inputs], yours: dict[str, Tensor], seed: int
) -> tuple[Mistake, ...]:
    """The known mistake, or the pair of them, whose outputs are the student's in every case."""

    def equal(*mistakes: Mistake) -> bool:
        for case, output in yours.items():  # most differ in the first, which costs a single run
            wrong = exercise.wrong(seed, case, cases[case], *mistakes)
            if wrong is None or wrong.shape != output.shape or distance(output, wrong) > EXACT:
                return False
        return True

    for mistake in exercise.mistakes:
        if equal(mistake):
            return (mistake,)
    for a, b in pairs(exercise):
        if equal(a, b):
            return (a, b)
    return ()


def pairs(exercise: Exercise) -> list[tuple[Mistake, Mistake]]:
    """Every two mistakes that can be made at once: neither patch removes the other's place."""
    both = combinations(exercise.mistakes, 2)
    return [(a, b) for a, b in both if exercise.patched(a, b) is not None]


REPAIRED = (
    "Somewhere a NaN or an infinity arises and is repaired afterwards, by nan_to_num or torch.where. "
    "Forward it is gone; backward it is still there. Keep it from arising."
)


def check_gradients(
    exercise: Exercise, student: Callable, cases: dict[str, Inputs], error: float, seed: int
) -> Answer:
    """The numbers are right: are the gradients too, which training needs?"""
    worst = 0.0
    for case, inputs in cases.items() if exercise.differentiated else ():
        right = gradients(lambda *given: exercise.tensor(exercise.right(*given)), inputs)
        try:
            yours = gradients(student, inputs)
        except RuntimeError as error:
            return (
                False,
                f"The output is right, but not its gradient.\n\n{crash(student, error, inputs, case)}",
                (),
            )
        for name in right:
            if name not in yours:
                said = f"The output is right, but no gradient reaches {name} (case: {case}). "
                return False, said + "Something cuts it off: .detach(), .item() or NumPy.", ()
            off = distance(yours[name], right[name]) / max(1.0, float(right[name].abs().max()))
            worst = max(worst, off)
            if off <= EXACT:
                continue
            nan = int(yours[name].isnan().sum())
            how = f"{nan} of {yours[name].numel()} entries are NaN" if nan else f"off by {off:.1e}"
            parts = [
                f"The output is right, but the gradient of {name} is not (case: {case}): {how}."
            ]
            correct = exercise.tensor(exercise.right(*copies(inputs)))
            for mistake in exercise.mistakes:
                # Not every mistake runs in every case, nor has one that shows in the output a say.
                output = exercise.wrong(seed, case, inputs, mistake)
                if output is None or distance(output, correct) > EXACT:
                    continue
                made = exercise.patched(mistake)
                wrong = gradients(lambda *given, f=made: exercise.tensor(f(*given)), inputs)
                if name in wrong and distance(wrong[name], yours[name]) <= EXACT:
                    parts.append(described("It", mistake))
                    return False, "\n\n".join(parts), (mistake.name,)
            if nan:
                parts.append(REPAIRED)
            return False, "\n\n".join(parts), ()
    said = (
        f"It computes {exercise.formula}. Verified in float64 ({', '.join(cases)}): outputs to "
        f"{digits(error)}."
    )
    if exercise.differentiated:
        said = f"{said[:-1]}, gradients to {digits(worst)}."
    if exercise.properties:
        said += f" So it holds that {'; '.join(exercise.properties)}."
    return True, f"{said}\n\n{exercise.next}".strip(), ()


def gradients(f: Callable, inputs: Inputs) -> dict[str, Tensor]:
    """The gradients of a fixed random sum of the outputs; a plain sum hides errors."""
    given = {
        name: a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for name, a in inputs.items()
    }
    wanted = {k: a for k, a in given.items() if isinstance(a, Tensor) and a.requires_grad}
    output = f(*given.values())
    if not output.requires_grad:
        return {}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED)).to(output)
    loss = (output * weights).sum()
    grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name: g for name, g in zip(wanted, grads, strict=True) if g is not None}


def where(
    exercise: Exercise, yours: dict[str, Tensor], right: dict[str, Tensor], errors: dict[str, float]
) -> str:
    """An unknown mistake: in which cases, at which places, by how much, in which pattern."""
    case = max(errors, key=lambda c: errors[c])
    a, b, axes = yours[case], right[case], exercise.axes.split()
    off = (a - b).abs().nan_to_num(math.inf)
    at = place(axes, np.unravel_index(int(off.argmax()), off.shape))
    if errors[case] <= SINGLE:
        return (
            f"Nearly: the largest difference is {errors[case]:.0e}, at {at}. That is float32's "
            "precision, and the inputs are float64: some step makes a float32 tensor or number. Or a "
            "small number is added that the formula does not have."
        )
    said = [f"None of the {len(exercise.mistakes)} mistakes that this check knows."]
    said.append(f"The largest difference is {errors[case]:.2g}, at {at} (case: {case}).")
    fine = [c for c in errors if errors[c] <= EXACT]
    if fine:
        said.append(f"Right are the cases: {', '.join(fine)}.")
    largest = b.reshape(-1)[int(b.abs().argmax())]
    factor = float(a.reshape(-1)[int(b.abs().argmax())] / largest) if float(largest) else 0.0
    if factor and distance(a, factor * b) <= EXACT * float(largest.abs()):
        said.append(f"Every entry is {factor:.4g} times the right one: a factor.")
    for i, name in enumerate(axes):
        wrong = [j for j in range(a.shape[i]) if float(off.select(i, j).max()) > EXACT]
        if len(wrong) < a.shape[i] and len(wrong) <= 12:
            said.append(f"Along {name} only {wrong} are wrong.")
    return " ".join(said)


def place(axes: list[str], at: Any) -> str:
    """A place in words: batch 0, query 2."""
    return ", ".join(f"{axis} {int(i)}" for axis, i in zip(axes, at, strict=True))


def digits(error: float) -> str:
    """A measured error as the next power of ten, which is the same on every machine."""
    return "the last bit" if error == 0 else f"1e{math.ceil(math.log10(error))}"
