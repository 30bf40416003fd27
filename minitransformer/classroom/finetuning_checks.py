r"""The exercises on fine-tuning: which layers learn, what they add, and what an accuracy is worth."""

import numpy as np
import torch
from torch import Tensor

from ..formulas.ledger import Inputs
from .diagnosis import Exercise, Mistake

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
