r"""The exercises of the notebook on debugging: two instruments, and the names of nine mistakes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..formulas.ledger import Inputs
from ..model.modes import in_evaluation_mode
from . import clinic, limits
from .broken import FAULTS, SEATS
from .diagnosis import EXACT, Mistake, NumberExercise, Result, stopped

# --- The first loss -----------------------------------------------------------------------------


def draw_answers(rng: np.random.Generator, case: str) -> Inputs:
    return {"n": {"two classes": 2, "65 characters": 65, "GPT-2's vocabulary": 50257}[case]}


def chance_variant(n: int, log: str = "e", of: str = "n", sign: int = 1) -> Tensor:
    """The loss of knowing nothing, with switches."""
    share = torch.tensor([{"n": n, "n - 1": n - 1, "1/n": 1 / n}[of]], dtype=torch.float64)
    f = {"e": torch.log, "2": torch.log2, "10": torch.log10, "none": lambda p: 1 - 1 / p}[log]
    return sign * f(share)


chance_loss = NumberExercise(
    title="the loss of a model that knows nothing",
    formula="-ln(1/n) = ln n",
    reference=chance_variant,
    variant=chance_variant,
    draw=draw_answers,
    cases=("two classes", "65 characters", "GPT-2's vocabulary"),
    axes="value",
    mistakes=(
        Mistake(
            "with the logarithm to base 2",
            "ln",
            "Those are bits. torch's cross-entropy is in nats: math.log, not math.log2.",
            {"log": "2"},
        ),
        Mistake(
            "with the logarithm to base 10", "ln", "math.log is the natural one.", {"log": "10"}
        ),
        Mistake(
            "with a share of errors for a logarithm",
            "ln",
            "1 - 1/n is how often a guess is wrong. The loss is the surprise, -ln of what the right "
            "answer was given.",
            {"log": "none"},
        ),
        Mistake(
            "with the sign of the log-probability",
            "the minus in front",
            "The loss is minus the logarithm of the right answer's probability, so never below 0.",
            {"sign": -1},
        ),
        Mistake(
            "for n - 1 answers",
            "1/n",
            "The right answer is one of the n.",
            {"of": "n - 1"},
        ),
    ),
    next="Next: measure it. A first loss elsewhere has a reason, and it is found before training.",
)

# --- Does a block look ahead? -------------------------------------------------------------------

BACK, TRAINING, BLANK = "looks back", "looks back, in training mode", "its last output is blank"
AHEAD, FAINT, PLAIN = "one token ahead", "a mask of -7", "one token ahead, no norm"
FIRST, REPEATS = "the first reads the last", "all repeat the first"
LENGTH, D_MODEL = 7, 4


class Mixer(nn.Module):
    """Every output is a weighted sum of the positions that it looks at."""

    def __init__(self, weights: Tensor, norm: bool, training: bool):
        super().__init__()
        self.weights, self.norm, self.given = weights, norm, training
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """Norm, mix, drop."""
        z = nn.functional.layer_norm(x, x.shape[-1:]) if self.norm else x
        return nn.functional.dropout(self.weights @ z, 0.3, self.training)


def draw_block(rng: np.random.Generator, case: str) -> Inputs:
    """A block that does or does not look ahead, and where to look."""
    drawn = torch.from_numpy(rng.uniform(0.5, 1.5, (LENGTH, LENGTH)))
    weights = drawn.tril(1 if case in (AHEAD, PLAIN) else 0)
    if case == FAINT:
        weights = weights + 1e-3 * drawn.triu(1)
    if case == BLANK:
        weights = drawn.diag().diag()
        weights[-1] = 0.0
    if case in (FIRST, REPEATS):
        weights = torch.zeros_like(drawn)
        weights[(0, -1) if case == FIRST else (slice(None), 0)] = 1.0
    return {
        "block": Mixer(weights, case not in (PLAIN, FIRST), case == TRAINING),
        "x": rng.standard_normal((3, LENGTH, D_MODEL)),
        "t": LENGTH - 1 if case == BLANK else 4,
    }


def leaks_variant(
    block: nn.Module,
    x: Tensor,
    t: int,
    change: str = "random",
    places: str = "from t",
    look: str = "before t",
    mode: str = "evaluation",
    tolerance: float = EXACT,
) -> Tensor:
    """Whether an output before t moved, with switches."""
    other, generator = x.clone(), torch.Generator().manual_seed(0)
    at = {"from t": slice(t, None), "all": slice(None), "t": slice(t, t + 1),
          "last": slice(-1, None), "from t - 1": slice(t - 1, None)}[places]  # fmt: skip
    other[:, at] += (
        torch.randn(other[:, at].shape, generator=generator, dtype=x.dtype)
        if change == "random"
        else 1.0
    )
    if mode == "as it is":
        with torch.random.fork_rng(devices=[]):
            moved = (block(other) - block(x)).abs()
    else:
        with in_evaluation_mode(block):
            moved = (block(other) - block(x)).abs()
    seen = {"before t": slice(None, t), "from t": slice(t, None), "up to t": slice(None, t + 1)}
    return (moved[:, seen[look]].max() > tolerance).double().reshape(1)


def left_as_it_was(f: Callable, inputs: Inputs) -> str | None:
    """Whether the block is in the mode it came in."""
    block = inputs["block"]
    block.train(block.given)
    f(*inputs.values())
    changed = block.training != block.given
    block.train(block.given)
    if not changed:
        return None
    return (
        "It came in training mode and is in evaluation mode now, so whoever trains on trains "
        "without dropout. Note block.training first and give it back with block.train(...)."
    )


def yes_or_no(f: Callable, inputs: Inputs) -> str | None:
    """Whether the answer is a verdict, not a measurement."""
    answer = float(f(*inputs.values()))
    return None if answer in (0.0, 1.0) else f"It is {answer:.3g}: compare it with something."


leaks = NumberExercise(
    title="does a block look ahead?",
    formula="some |f(x')_i - f(x)_i| > 0 with i < t, where x' is x before t and random from t on",
    reference=leaks_variant,
    variant=leaks_variant,
    draw=draw_block,
    cases=(BACK, TRAINING, AHEAD, FIRST, FAINT, PLAIN, BLANK, REPEATS),
    axes="verdict",
    mistakes=(
        Mistake(
            "with a constant added, for random numbers",
            "x', random from t on",
            "LayerNorm subtracts the mean, and your constant with it: the block never hears of it.",
            {"change": "constant"},
        ),
        Mistake(
            "with all of x changed",
            "x' is x before t",
            "Then every output may move. Only what comes from t on may differ.",
            {"places": "all"},
        ),
        Mistake(
            "with x changed from t - 1 on",
            "x' is x before t",
            "An output may well look at its own position: off by one.",
            {"places": "from t - 1"},
        ),
        Mistake(
            "with position t alone changed",
            "x', random from t on",
            "The block may look further ahead than one token.",
            {"places": "t"},
        ),
        Mistake(
            "with the last position alone changed",
            "x', random from t on",
            "A mask that is off by one shows the next token, not the last one.",
            {"places": "last"},
        ),
        Mistake(
            "with the outputs from t on",
            "i < t",
            "Those may move: they look back at what you changed. Watch the ones before.",
            {"look": "from t"},
        ),
        Mistake(
            "with the output at t as well",
            "i < t",
            "The output at t looks at the input at t, and rightly: off by one.",
            {"look": "up to t"},
        ),
        Mistake(
            "with dropout on",
            "f, the same function both times",
            "In training mode two calls differ by themselves. Call block.eval() first, and give the "
            "mode back at the end.",
            {"mode": "as it is"},
        ),
        Mistake(
            "with too large a tolerance",
            "> 0",
            "A mask of -7 for -inf leaves a weight of a thousandth, and training will find it. In "
            "float64 rounding is below 1e-12.",
            {"tolerance": 1e-1},
        ),
        Mistake(
            "that never fires",
            "> 0",
            "It lets every block pass. Try it on one of which you know that it looks ahead.",
            {"tolerance": math.inf},
        ),
    ),
    properties={
        "the answer is True or False": yes_or_no,
        "the block is left in the mode it came in": left_as_it_was,
    },
    next="Next: the same question for every position at once, as a picture.",
)

# --- Nine names ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quiz:
    """Letters to be matched with the names of mistakes; a wrong name is answered with a measurement."""

    title: str

    def __call__(self, student: Any, measured: bool = True) -> Result:
        """Check a student's function, which returns a dictionary.

        Args:
            measured: say what speaks against each wrong name. That takes some seconds a patient, once.
        """
        if not callable(student):
            kind = type(student).__name__
            said = f"This check wants the function itself, without calling it; got {kind}."
            return Result(self.title, False, said)
        try:
            with limits.limited(limits.SECONDS):
                names = student()
        except NotImplementedError:
            said = "Still to be written. The names to choose from: " + ", ".join(sorted(FAULTS))
            return Result(self.title, False, said)
        except (Exception, *limits.STOPS) as error:
            return Result(self.title, False, stopped(student, error))
        if not isinstance(names, dict):
            kind = type(names).__name__
            said = f'Your function must return a dictionary such as {{"A": "no shift"}}, it returns {kind}.'
            return Result(self.title, False, said)
        unknown = self.unknown(names)
        if unknown:
            return Result(self.title, False, "\n\n".join(unknown))
        return self.compare(names, measured)

    def unknown(self, names: dict[Any, Any]) -> list[str]:
        """What cannot be compared: letters and names that there are not."""
        said = [f"There is no patient {k!r}." for k in names if k not in tuple(clinic.PATIENTS)]
        for name in names.values():
            if name is not None and not (isinstance(name, str) and name in FAULTS):
                near = get_close_matches(str(name), FAULTS, n=1)
                hint = (
                    f"Did you mean {near[0]!r}?"
                    if near
                    else f"There are: {', '.join(sorted(FAULTS))}."
                )
                said.append(f"No mistake is called {name!r}. {hint}")
        return said

    def compare(self, names: dict[str, str | None], measured: bool) -> Result:
        """The answer to names that there are."""
        right = dict(zip(clinic.PATIENTS, SEATS, strict=True))
        named = {k: v for k, v in names.items() if v is not None}
        wrong = {k: v for k, v in named.items() if v != right[k]}
        if named == right:
            evidence = "\n\n".join(map(treated, right)) if measured else "Every patient is named."
            return Result(self.title, True, evidence)
        said = [
            f"{letter} is not a case of {name!r}"
            + (f": {contradiction(clinic.chart(letter), name)}" if measured else ".")
            for letter, name in wrong.items()
        ]
        if good := [letter for letter in named if letter not in wrong]:
            said.append(f"Right: {', '.join(good)}.")
        if left := [letter for letter in right if letter not in named]:
            said.append(f"Not named yet: {', '.join(left)}.")
        mistakes = tuple(f"{letter} taken for {name!r}" for letter, name in wrong.items())
        return Result(self.title, False, "\n\n".join(said), mistakes)


def contradiction(chart: clinic.Chart, name: str) -> str:
    """The measurement that speaks against a name; empty where none does.

    A symptom that is there and not explained says more than one that is missing.
    """
    fault = FAULTS[name]
    if fault.kind != chart.kind:
        does = {"writer": "write characters", "reader": "sort texts"}
        return (
            f"that is a mistake of models that {does[fault.kind]}; this one does not "
            f"{does[fault.kind]}."
        )
    for symptom in clinic.SYMPTOMS:
        if symptom.shows(chart) and symptom.name not in fault.signs | fault.sometimes:
            return f"that does not explain that {symptom.measured(chart)}."
    for symptom in clinic.SYMPTOMS:
        if symptom.name in fault.signs and not symptom.shows(chart):
            return f"that mistake {symptom.would}; here {symptom.measured(chart)}."
    return ""


def treated(letter: str) -> str:
    """What was wrong, what shows it, and what the treatment does."""
    ill = clinic.chart(letter)
    cured, fault = clinic.chart(ill.kind), FAULTS[SEATS[clinic.PATIENTS.index(letter)]]
    there = [s for s in clinic.SYMPTOMS if s.name in ill.signs]
    seen = "; ".join(s.measured(ill) for s in there)
    after = "; ".join(s.measured(cured) for s in there)
    name = SEATS[clinic.PATIENTS.index(letter)]
    return f"{letter}: {name}. {fault.story} Seen: {seen}. Treated: {after}."


diagnoses = Quiz("nine diagnoses")
