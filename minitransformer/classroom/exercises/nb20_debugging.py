r"""The exercises of notebook 20, on debugging: two instruments, and the names of nine mistakes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...proofs.draws import SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ..clinic import charts as clinic
from ..clinic.instruments import chance_loss as chance_of
from ..clinic.instruments import leak
from ..clinic.patients import FAULTS, SEATS
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise
from ..engine.patches import known
from ..engine.quiz import Quiz

ANSWERS = {"two classes": 2, "65 characters": 65, "GPT-2's vocabulary": 50257}


def loss_of_equal_logits(n: int) -> Tensor:
    """By torch, for a model that finds all answers equally likely."""
    return nn.functional.cross_entropy(torch.zeros(1, n, dtype=torch.float64), torch.tensor([0]))


chance_loss = Exercise(
    title="the loss of a model that knows nothing",
    formula="-ln(1/n) = ln n",
    numbers=True, differentiated=False, precise=False, wants="a number",
    right=chance_of, package=loss_of_equal_logits, draw=draw(n=ANSWERS.get), cases=tuple(ANSWERS), axes="",
    mistakes=known(
        "ln",
        ("with the logarithm to base 2", "Those are bits. torch's cross-entropy is in nats: math.log, not math.log2.", "math.log(", "math.log2("),
        ("with the logarithm to base 10", "math.log is the natural one.", "math.log(", "math.log10("),
        ("with a share of errors for a logarithm", "1 - 1/n is how often a guess is wrong. The loss is -ln of a probability.", "math.log(n)", "(1 - 1 / n)"),
        ("without the logarithm, n itself", "The loss is the logarithm of n.", "math.log(n)", "n"),
        ("with ln 2 whatever n is", "n is an argument.", "math.log(n)", "math.log(2)"),
        "the minus in front",
        ("with the sign of the log-probability", "The loss is minus the logarithm of a probability, so it is never below 0.", "return ", "return -"),
        "1/n", ("for n - 1 answers", "The right answer is one of the n.", "(n)", "(n - 1)"),
    ),
    next="Next: measure it. If the first loss is anything else, there is a reason, and you find it before training.",
)  # fmt: skip

BACK, TRAINING, BLANK = "looks back", "looks back, in training mode", "its last output is blank"
AHEAD, FAINT, PLAIN = "one token ahead", "a mask of -7", "one token ahead, no norm"
EDGES: dict[str, Callable[[int], tuple[int, int]]] = {  # which position reads which, given t
    "the one before t reads t": lambda t: (t - 1, t), "the one before t reads the last": lambda t: (t - 1, -1),
    "the first reads t": lambda t: (0, t), "the first reads the last": lambda t: (0, -1),
    "the second reads the one after t": lambda t: (1, t + 1),
}  # fmt: skip
REPEATS, NOTHING, ONE_TEXT = "all repeat the first", "it reads nothing", "the last text leaks"


class Mixer(nn.Module):
    """Every output is a weighted sum of the positions that it looks at."""

    def __init__(self, weights: Tensor, norm: bool, training: bool):
        super().__init__()
        self.weights, self.norm, self.given = weights, norm, training
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """Norm, mix, drop."""
        z = nn.functional.layer_norm(x, x.shape[-1:]) if self.norm else x
        weights = self.weights[-len(x) :, : x.shape[1], : x.shape[1]]  # a shorter text will do, too
        return nn.functional.dropout(weights @ z, 0.3, self.training)


def draw_block(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """A block that does or does not look ahead, and where to look."""
    length, batch = sizes["queries"], sizes["batch"]
    t = length - 1 if case == BLANK else length // 2 + 1
    drawn = torch.from_numpy(rng.uniform(0.5, 1.5, (length, length)))
    weights = drawn.tril(1 if case in (AHEAD, PLAIN) else 0)
    if case == FAINT:
        weights = weights + 1e-3 * drawn.triu(1)
    if case == BLANK:
        weights = drawn.diag().diag()
        weights[-1] = 0.0
    bare: dict[str, Any] = {REPEATS: (slice(None), 0), NOTHING: (0, slice(0))} | {
        k: e(t) for k, e in EDGES.items()
    }
    if case in bare:
        weights = torch.zeros_like(drawn)
        weights[bare[case]] = 1.0
    weights = weights.repeat(batch, 1, 1)
    if case == ONE_TEXT:
        weights[-1] = drawn
    return {
        "block": Mixer(weights, case not in (PLAIN, *EDGES), case == TRAINING),
        "x": rng.standard_normal((batch, length, sizes["d_k"])),
        "t": t,
    }


def looks_ahead(block: nn.Module, x: Tensor, t: int) -> bool:
    """Whether an output before t moves when the input changes from t on."""
    return leak(block, x, t) > EXACT


def has_gradient_ahead(block: Mixer, x: Tensor, t: int) -> bool:
    """By torch's derivative of the outputs before t with respect to the inputs from t on."""
    block.eval()
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x)[:, :t].square().sum((0, 2)), x)
    block.train(block.given)
    return bool(jacobian[:, :, t:].any())


def left_as_it_was(f: Callable, inputs: Inputs) -> str | None:
    """Whether the block is in the mode it came in."""
    block = inputs["block"]
    block.train(block.given)
    f(*inputs.values())
    changed = block.training != block.given
    block.train(block.given)
    said = "It came in training mode and is in evaluation mode now, so any further training runs "
    said += "without dropout. Save block.training first, and restore it with block.train(...)."
    return said if changed else None


def yes_or_no(f: Callable, inputs: Inputs) -> str | None:
    """Whether the answer is a verdict, not a measurement."""
    answer = float(f(*inputs.values()))
    return None if answer in (0.0, 1.0) else f"It is {answer:.3g}: compare it with something."


CHANGED = "other[:, t:]"
leaks = Exercise(
    title="does a block look ahead?",
    said="Your verdicts are those of a test",
    formula="some |f(x')_i - f(x)_i| > 0 with i < t, where x' is x before t and random from t on",
    right=looks_ahead, parts=(leak,), twins=(leak,), package=has_gradient_ahead,
    draw=draw_block, numbers=True, differentiated=False, wants="True or False",
    cases=(PLAIN, BACK, TRAINING, AHEAD, *EDGES, FAINT, BLANK, REPEATS, NOTHING, ONE_TEXT, OTHER_SIZES), axes="",
    mistakes=known(
        "x', random from t on",
        ("with a constant added, for random numbers", "LayerNorm subtracts the mean, and your constant with it: the block never notices.",
         "torch.randn_like(other[:, t:])", f"{CHANGED} + 1"),
        ("with position t alone changed", "The block may look further ahead than one token.", CHANGED, "other[:, t:t + 1]"),
        ("with the last position alone changed", "A mask that is off by one shows the next token, not the last one.", CHANGED, "other[:, -1:]"),
        ("with the input changed from t + 1 on", "Position t itself lies in the future of those before it.", CHANGED, "other[:, t + 1:]"),
        ("with the input changed before t", "The outputs may look back; change what they must not see.", CHANGED, "other[:, :t]"),
        "x' is x before t",
        ("with all of x changed", "Then every output may move. Only what comes from t on may differ.", CHANGED, "other[:, :]"),
        ("with x changed from t - 1 on", "An output may look at its own position: off by one.", CHANGED, "other[:, t - 1:]"),
        "i < t",
        ("with the outputs from t on", "Those may move: they look back at what you changed. Watch the ones before.", "[:, :t]", "[:, t:]"),
        ("with the output at t as well", "The output at t rightly looks at the input at t: off by one.", "[:, :t]", "[:, :t + 1]"),
        ("with the output at t - 1 alone", "An earlier output may look ahead as well.", "[:, :t]", "[:, t - 1:t]"),
        ("with the outputs before t - 1", "The output at t - 1 counts, too: off by one.", "[:, :t]", "[:, :t - 1]"),
        ("with the first output alone", "Any output before t may look ahead.", "[:, :t]", "[:, :1]"),
        ("with the first text alone", "A leak may be in any text of the batch.", "[:, :t]", "[:1, :t]"),
        "f, the same function both times",
        ("with dropout on", "In training mode two calls differ by themselves. Call block.eval() first, and restore the mode at the end.",
         "eval_mode(block)", "torch.random.fork_rng(devices=[])"),
        "> 0",
        ("with too large a tolerance", "A mask of -7 instead of -inf leaves a weight of a thousandth, and training will find it. In float64 rounding is below 1e-12.",
         "> EXACT", "> 0.1"),
        ("that always fires", "It lets no block pass. Try it on one that you know looks back only.", "> EXACT", "> -1.0"),
        ("that never fires", "It lets every block pass. Try it on one that you know looks ahead.", "> EXACT", '> float("inf")'),
    ),
    properties={"the answer is True or False": yes_or_no, "the block is left in the mode it came in": left_as_it_was},
    next="Next: the same question for every position at once, as a picture.",
)  # fmt: skip

RIGHT = dict(zip(clinic.PATIENTS, SEATS, strict=True))


def contradiction(letter: str, name: str) -> str:
    """The measurement that contradicts a name; "" if none does.

    A symptom that is present and unexplained says more than one that is missing.
    """
    chart, fault = clinic.chart(letter), FAULTS[name]
    if fault.kind != chart.kind:
        does = {"writer": "write characters", "reader": "sort texts"}[fault.kind]
        return f"that is a mistake of models that {does}; this one does not {does}."
    for symptom in clinic.SYMPTOMS:
        if symptom.shows(chart) and symptom.name not in fault.signs | fault.sometimes:
            return f"that does not explain why {symptom.measured(chart)}."
    for symptom in clinic.SYMPTOMS:
        if symptom.name in fault.signs and not symptom.shows(chart):
            return f"that mistake {symptom.would}; here {symptom.measured(chart)}."
    return ""


def treated(letter: str) -> str:
    """What was wrong, what shows it, and what the treatment does."""
    ill, name = clinic.chart(letter), RIGHT[letter]
    cured = clinic.chart(ill.kind)
    present = [s for s in clinic.SYMPTOMS if s.name in ill.signs]
    before, after = ("; ".join(s.measured(c) for s in present) for c in (ill, cured))
    return f"{letter}: {name}. {FAULTS[name].story} Seen: {before}. Treated: {after}."


diagnoses = Quiz("nine diagnoses", RIGHT, tuple(FAULTS), contradiction, treated)
