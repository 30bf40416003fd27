r"""The exercises on fine-tuning: which layers learn, what they add, and what an accuracy is worth."""

import numpy as np
import torch
from torch import Tensor

from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise, Mistake, NumberExercise

# --- One vector for a text ----------------------------------------------------------------------

RIGHT, LEFT, FULL = "padding on the right", "padding on the left", "no padding"


def draw_hidden(rng: np.random.Generator, case: str) -> Inputs:
    position, lengths = np.arange(7), np.array([[7], [4], [1]])
    real = {RIGHT: position < lengths, LEFT: position >= 7 - lengths, FULL: position >= 0 * lengths}
    return {"hidden": rng.standard_normal((3, 7, 5)), "real": real[case]}


def pool_variant(hidden: Tensor, real: Tensor, of: str = "real", by: str = "real") -> Tensor:
    """The mean of some positions, divided by one number or another."""
    length = hidden.shape[1]
    first, last = (torch.arange(length) == i for i in (0, length - 1))
    chosen = {
        "real": real, "all": real | True, "padding": ~real, "first": first & (real | True),
        "last": last & (real | True), "all but the first": real & ~first,
    }[of].to(hidden).unsqueeze(-1)  # fmt: skip
    total, n = (hidden * chosen).sum(1), chosen.sum(1).clamp(min=1)
    divisors: dict[str, Tensor | float] = {
        "real": n, "length": length, "1": 1.0, "batch": chosen.sum(), "mean": n.mean(),
    }  # fmt: skip
    return total / divisors[by]


DIVISOR, SUM = "the number of real tokens under the line", "the sum over the real tokens"
mean_pool = Exercise(
    title="the mean over the real tokens",
    formula="Σ_t real_t h_t / Σ_t real_t",
    reference=pool_variant,
    variant=pool_variant,
    draw=draw_hidden,
    cases=(RIGHT, LEFT, FULL),
    axes="batch d_model",
    mistakes=(
        Mistake(
            "over all positions, padding included",
            SUM,
            "The vectors at padded positions are not zero. A text would get another vector in "
            "another batch.",
            {"of": "all"},
        ),
        Mistake(
            "divided by the padded length",
            DIVISOR,
            "The same text in a batch of longer ones would get a shorter vector.",
            {"by": "length"},
        ),
        Mistake("with the sum for the mean", DIVISOR, "Divide.", {"by": "1"}),
        Mistake(
            "divided by the number of real tokens of the whole batch",
            DIVISOR,
            "real.sum() counts all texts; each text has its own number: sum along the length.",
            {"by": "batch"},
        ),
        Mistake(
            "divided by the mean number of real tokens",
            DIVISOR,
            "Each text has its own number, (batch, 1).",
            {"by": "mean"},
        ),
        Mistake(
            "over the padding",
            SUM,
            "real is True where a token is real. Some libraries have it the other way round.",
            {"of": "padding"},
        ),
        Mistake(
            "with the first position alone",
            SUM,
            "That is [CLS], which this checkpoint was never trained to fill.",
            {"of": "first"},
        ),
        Mistake(
            "with the last position alone",
            SUM,
            "In a padded batch that is mostly padding.",
            {"of": "last"},
        ),
        Mistake(
            "without the first position",
            SUM,
            "[CLS] is a real token like the others, and the checkpoint was trained with it.",
            {"of": "all but the first"},
        ),
    ),
    next="Next: one linear map on top of it, and the classifier is there.",
)

# --- The learning rate's schedule ---------------------------------------------------------------

PLACES = {
    "the first step": 0,
    "in the warm-up": 1,
    "the last of the warm-up": 4,
    "the first after it": 5,
    "half way": 11,
    "the last step": 22,
}


def draw_step(rng: np.random.Generator, case: str) -> Inputs:
    return {"step": PLACES[case], "steps": 23, "warmup": 5}


def schedule_variant(
    step: int, steps: int, warmup: int, up: str = "s + 1", down: str = "linear", until: str = "<"
) -> Tensor:
    """The factor of a step, with switches."""
    s, n = float(step), float(steps - warmup)
    if step < warmup or (until == "<=" and step == warmup):
        factor = {"s + 1": (s + 1) / warmup, "s": s / warmup, "none": 1.0}[up]
    else:
        factor = {
            "linear": (steps - s) / n,
            "none": 1.0,
            "one step late": min(1.0, (steps - s + 1) / n),
            "one step early": (steps - s - 1) / n,
            "to zero": (steps - 1 - s) / (n - 1),
            "over all steps": (steps - s) / steps,
            "not from the warm-up": 1 - s / n,
            "cosine": (1 + np.cos(np.pi * (s - warmup) / n)) / 2,
        }[down]
    return torch.tensor([factor], dtype=torch.float64)


UP, DOWN = "(s + 1)/w", "(S - s)/(S - w)"
warmup_then_linear = NumberExercise(
    title="warm up, then fall",
    formula="(s + 1)/w for s < w, then (S - s)/(S - w)",
    reference=schedule_variant,
    variant=schedule_variant,
    draw=draw_step,
    cases=tuple(PLACES),
    axes="factor",
    mistakes=(
        Mistake(
            "starting at 0",
            UP,
            "A factor of 0 makes the first step a wasted one. Steps are counted from 0, so s + 1.",
            {"up": "s"},
        ),
        Mistake(
            "without the warm-up",
            UP,
            "AdamW's first steps are its most uncertain ones; they should be small.",
            {"up": "none"},
        ),
        Mistake(
            "with the warm-up one step too long",
            "s < w",
            "At s = w the first line would give more than 1.",
            {"until": "<="},
        ),
        Mistake("that never falls", DOWN, "After the warm-up it falls to 0.", {"down": "none"}),
        Mistake(
            "falling one step too early",
            DOWN,
            "The first step after the warm-up has the whole rate: S - s, not S - s - 1.",
            {"down": "one step early"},
        ),
        Mistake(
            "falling one step too late",
            DOWN,
            "The first step after the warm-up is where it starts to fall: at s = w + 1 it is less.",
            {"down": "one step late"},
        ),
        Mistake(
            "reaching 0 at the last step",
            DOWN,
            "Steps are counted from 0 to S - 1, and 0 is reached at S, when all is done. A last step "
            "at rate 0 is wasted.",
            {"down": "to zero"},
        ),
        Mistake(
            "falling over all S steps",
            DOWN,
            "It would jump down at the end of the warm-up. S - w steps are left to fall in.",
            {"down": "over all steps"},
        ),
        Mistake(
            "counting the fall from step 0",
            DOWN,
            "The fall begins at s = w, with the factor 1.",
            {"down": "not from the warm-up"},
        ),
        Mistake(
            "along a cosine",
            DOWN,
            "Many like it better; BERT's recipe is a straight line.",
            {"down": "cosine"},
        ),
    ),
    next="Next: `warmup_then_linear` in training/optim.py, which the loop asks at every step.",
)

# --- Gradual unfreezing -------------------------------------------------------------------------


def draw_progress(rng: np.random.Generator, case: str) -> Inputs:
    share = {"at the start": 0, "early": 11, "half way": 35, "at the end": 69}[case]
    return {"n_layers": 7, "step": share, "steps": 70}


def gradual(
    n_layers: int, step: int, steps: int, end: str = "top", keeps: bool = True, first: int = 1
) -> Tensor:
    """The rates, thawed from one end or the other."""
    thawed = min(first + n_layers * step // steps, n_layers)
    rates = torch.zeros(n_layers)
    rates[n_layers - thawed :] = 1.0
    if not keeps and thawed:
        rates[n_layers - thawed + 1 :] = 0.0
    return rates if end == "top" else rates.flip(0)


gradual_rates = Exercise(
    title="gradual unfreezing",
    formula="layer l learns once step/steps ≥ (L - 1 - l)/L, layers counted from 0 at the bottom",
    reference=gradual,
    variant=gradual,
    draw=draw_progress,
    cases=("at the start", "early", "half way", "at the end"),
    axes="layer",
    mistakes=(
        Mistake(
            "with the layers thawed from the bottom up",
            "the order of the layers",
            "Layer 0 is the embeddings. The head is new and must learn first.",
            {"end": "bottom"},
        ),
        Mistake(
            "with only the newest layer learning",
            "what happens to layers that are thawed already",
            "A thawed layer goes on learning while the next one joins it.",
            {"keeps": False},
        ),
        Mistake(
            "with nothing learning at first",
            "the number of layers at step 0",
            "At step 0 the head learns: one layer, not none.",
            {"first": 0},
        ),
        Mistake(
            "with two layers from the start",
            "the number of layers at step 0",
            "At step 0 the head learns alone.",
            {"first": 2},
        ),
    ),
    next="Next: compare with GradualUnfreezing.rates in training/strategies.py, which is three lines.",
)

# --- LoRA ---------------------------------------------------------------------------------------

LENGTH, D_IN, D_OUT, RANK = 5, 6, 7, 4


def draw_lora(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((3, LENGTH, D_IN)),
        "W": rng.standard_normal((D_OUT, D_IN)),
        "A": rng.standard_normal((RANK, D_IN)),
        "B": np.zeros((D_OUT, RANK)) if case == "B = 0" else rng.standard_normal((D_OUT, RANK)),
        "alpha": 9.0,
    }


SCALES = {
    "alpha / r": lambda alpha: alpha / RANK,
    "alpha": lambda alpha: alpha,
    "1": lambda alpha: 1.0,
    "alpha / d": lambda alpha: alpha / D_IN,
    "r / alpha": lambda alpha: RANK / alpha,
    "alpha / sqrt(r)": lambda alpha: alpha / RANK**0.5,
}


def lora_variant(
    x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float, scale: str = "alpha / r",
    frozen: bool = True,
) -> Tensor:  # fmt: skip
    """The map and its change, under one scale or another."""
    change = SCALES[scale](alpha) * (x @ A.mT) @ B.mT
    return x @ W.mT + change if frozen else change


THE_SCALE = "the factor α/r"
lora = Exercise(
    title="a linear map with a low-rank change",
    formula="y = x Wᵀ + (α/r) x Aᵀ Bᵀ",
    reference=lora_variant,
    variant=lora_variant,
    draw=draw_lora,
    cases=("B = 0", "a change"),
    axes="batch length d_out",
    mistakes=(
        Mistake(
            "without the pretrained map",
            "x Wᵀ",
            "LoRA adds to what was there; with B = 0 the output must be that of W alone.",
            {"frozen": False},
        ),
        Mistake(
            "with α for α/r",
            THE_SCALE,
            "The rank is the number of rows of A; dividing by it keeps the rate when r changes.",
            {"scale": "alpha"},
        ),
        Mistake("without the scale", THE_SCALE, "α is an argument.", {"scale": "1"}),
        Mistake(
            "divided by the width of x, not by the rank",
            THE_SCALE,
            "A has shape (r, d_in): which of the two is r?",
            {"scale": "alpha / d"},
        ),
        Mistake(
            "with r/α for α/r",
            THE_SCALE,
            "A larger α is a larger change.",
            {"scale": "r / alpha"},
        ),
        Mistake(
            "divided by the root of the rank",
            THE_SCALE,
            "That is another proposal (rsLoRA); here it is the rank itself.",
            {"scale": "alpha / sqrt(r)"},
        ),
    ),
    next="Next: merge it. W + (α/r) B A gives the same outputs and costs nothing at prediction.",
)

# --- What an accuracy is worth ------------------------------------------------------------------


def draw_accuracies(rng: np.random.Generator, case: str) -> Inputs:
    return {"accuracies": rng.uniform(0.5, 1.0, (4, {"three seeds": 3, "seven seeds": 7}[case]))}


def spread(
    accuracies: Tensor, minus: int = 1, over: str = "sqrt(n)", what: str = "deviation"
) -> Tensor:
    """Mean and standard error of each row."""
    n = accuracies.shape[1]
    mean = accuracies.mean(1)
    variance = ((accuracies - mean[:, None]) ** 2).sum(1) / (n - minus)
    by = {"sqrt(n)": n**0.5, "1": 1.0, "n": float(n)}[over]
    error = (variance.sqrt() if what == "deviation" else variance) / by
    return torch.stack([mean, error], 1)


mean_and_error = Exercise(
    title="mean and standard error over seeds",
    formula="m = Σ a_s / n and √(Σ (a_s - m)² / (n - 1)) / √n",
    reference=spread,
    variant=spread,
    draw=draw_accuracies,
    cases=("three seeds", "seven seeds"),
    axes="method two",
    mistakes=(
        Mistake(
            "with the mean square taken over n, not n - 1",
            "the n - 1 under the root",
            "The mean was fitted to the same numbers, so they lie nearer to it than to the truth. "
            "NumPy's default is n, torch's is n - 1.",
            {"minus": 0},
        ),
        Mistake(
            "with the standard deviation for the standard error",
            "the last / √n",
            "How far single runs lie from each other is not how well their mean is known.",
            {"over": "1"},
        ),
        Mistake(
            "divided by n, not by its root", "the last / √n", "Variances add up.", {"over": "n"}
        ),
        Mistake(
            "with the variance for its root",
            "the root over the mean square",
            "An error is in the units of the accuracy.",
            {"what": "variance"},
        ),
    ),
    next="Next: a difference smaller than two such errors is not a result.",
)


def draw_shares(rng: np.random.Generator, case: str) -> Inputs:
    return {"p": rng.uniform(0.55, 0.95, 5), "n": {"a small test": 63, "a large test": 1008}[case]}


def share_error(
    p: Tensor, n: int, root: str = "whole", both: bool = True, minus: int = 0
) -> Tensor:
    """The standard error of a share."""
    n = n - minus
    product = p * (1 - p) if both else p
    if root == "whole":
        return (product / n).sqrt()
    return product.sqrt() / n if root == "above" else product / n


accuracy_error = Exercise(
    title="the standard error of an accuracy",
    formula="√(p (1 - p) / n)",
    reference=share_error,
    variant=share_error,
    draw=draw_shares,
    cases=("a small test", "a large test"),
    axes="method",
    mistakes=(
        Mistake(
            "without the root",
            "the root",
            "p (1 - p) / n is a variance.",
            {"root": "none"},
        ),
        Mistake(
            "with n outside the root",
            "what stands under the root",
            "Four times the test texts halve the error, they do not quarter it.",
            {"root": "above"},
        ),
        Mistake(
            "with n - 1 for n",
            "n",
            "The - 1 belongs to a spread that was measured; here it follows from p alone.",
            {"minus": 1},
        ),
        Mistake(
            "with p for p (1 - p)",
            "p (1 - p)",
            "A model that is always right has no error at all: at p = 1 this must be 0.",
            {"both": False},
        ),
    ),
    next="Next: this error is of the test, the one over seeds is of the training. Both are there.",
)

# --- Across domains -----------------------------------------------------------------------------


def draw_linear(rng: np.random.Generator, case: str) -> Inputs:
    n = {"nine examples": 9, "one example": 1}[case]
    return {
        "X": rng.standard_normal((n, 6)),
        "y": rng.standard_normal(n),
        "v": rng.standard_normal(4),
        "B": rng.standard_normal((4, 6)),
    }


def linear_variant(
    X: Tensor, y: Tensor, v: Tensor, B: Tensor, error: str = "prediction - y", head: bool = True,
    mean: bool = True, factor: float = 1.0,
) -> Tensor:  # fmt: skip
    """The gradient of the loss by the features' matrix."""
    said = X @ B.mT @ v
    e = {"prediction - y": said - y, "y - prediction": y - said, "prediction": said}[error]
    left = v if head else torch.ones_like(v)
    gradient = factor * torch.outer(left, e @ X)
    return gradient / len(X) if mean else gradient


feature_gradient = Exercise(
    title="what the head sends into the features",
    formula="∂L/∂B = (1/n) Σ (v·Bx - y) v xᵀ for L = (1/2n) Σ (v·Bx - y)²",
    reference=linear_variant,
    variant=linear_variant,
    draw=draw_linear,
    cases=("nine examples", "one example"),
    axes="k d",
    mistakes=(
        Mistake(
            "without the head v",
            "the v in front of xᵀ",
            "The features feel the error only through the head: whatever v says is sent back.",
            {"head": False},
        ),
        Mistake("summed, not averaged", "1/n", "The loss is a mean.", {"mean": False}),
        Mistake(
            "with a factor 2 that the 1/2 cancels", "1/2n", "Derive the square.", {"factor": 2.0}
        ),
        Mistake(
            "with the sign of the step, not of the gradient",
            "v·Bx - y",
            "The gradient points uphill; the minus comes with the step.",
            {"error": "y - prediction"},
        ),
        Mistake(
            "with the prediction for the error",
            "v·Bx - y",
            "Where the prediction is right nothing must move.",
            {"error": "prediction"},
        ),
    ),
    next="Next: with a random v this gradient is large and points nowhere useful. That is the whole "
    "argument for training the head first.",
)


def draw_matrix(rng: np.random.Generator, case: str) -> Inputs:
    n = {"four domains": 4, "three domains": 3}[case]
    return {"accuracy": rng.uniform(0.4, 1.0, (n, n))}


def in_and_out_variant(accuracy: Tensor, home: str = "diagonal", away: str = "rest") -> Tensor:
    """Two means of a square matrix."""
    n, diagonal = len(accuracy), accuracy.diagonal()
    rest = {
        "rest": (accuracy.sum() - diagonal.sum()) / (n * n - n),
        "all": accuracy.mean(),
        "by n squared": (accuracy.sum() - diagonal.sum()) / (n * n),
        "one side": accuracy.triu(1).sum() / (n * (n - 1) / 2),
    }[away]
    return torch.stack([diagonal.mean() if home == "diagonal" else accuracy[0].mean(), rest])


in_and_out = Exercise(
    title="at home and away",
    formula="(1/n) Σ_i a_ii and (1/(n² - n)) Σ_{i≠j} a_ij",
    reference=in_and_out_variant,
    variant=in_and_out_variant,
    draw=draw_matrix,
    cases=("four domains", "three domains"),
    axes="two",
    mistakes=(
        Mistake(
            "with the whole matrix as away",
            "i ≠ j in the second sum",
            "The diagonal is home and must not count twice.",
            {"away": "all"},
        ),
        Mistake(
            "with the second sum divided by n²",
            "1/(n² - n)",
            "How many entries are off the diagonal?",
            {"away": "by n squared"},
        ),
        Mistake(
            "with one triangle only",
            "i ≠ j in the second sum",
            "From movies to tweets is another matter than from tweets to movies.",
            {"away": "one side"},
        ),
        Mistake(
            "with the first row for the diagonal",
            "a_ii",
            "Home is where training and test are of one domain.",
            {"home": "row"},
        ),
    ),
    next="Next: a method is robust when the second number stays near the first.",
)
