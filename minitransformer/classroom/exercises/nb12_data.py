r"""The exercises of notebook 12, on how much data it takes: what an accuracy is worth."""

import numpy as np
import torch
from torch import Tensor

from ...lab.results import mean_and_sd
from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise
from ..engine.patches import known

# --- Over the test texts ------------------------------------------------------------------------


def draw_shares(rng: np.random.Generator, case: str) -> Inputs:
    """The accuracies of five methods on a test of some size."""
    return {"p": rng.uniform(0.55, 0.95, 5), "n": {"a small test": 63, "a large test": 1008}[case]}


def error_of_a_share(p: Tensor, n: int) -> Tensor:
    """The standard error of a share."""
    return (p * (1 - p) / n).sqrt()


def error_by_torch(p: Tensor, n: int) -> Tensor:
    """That of n coins, as a share of them."""
    return torch.distributions.Binomial(n, p).stddev / n


# fmt: off
accuracy_error = Exercise(
    title="the standard error of an accuracy",
    formula="√(p (1 - p) / n)",
    right=error_of_a_share, package=error_by_torch, draw=draw_shares, cases=("a small test", "a large test"), axes="method",
    mistakes=known(
        ("the root", [("without the root", "p (1 - p) / n is a variance.", ".sqrt()", "")]),
        ("what stands under the root", [
            ("with n outside the root", "Four times the test texts halve the error, they do not quarter it.", "(p * (1 - p) / n).sqrt()", "(p * (1 - p)).sqrt() / n"),
        ]),
        ("n", [("with n - 1 for n", "The - 1 belongs to a spread that was measured; here the spread follows from p alone.", "/ n", "/ (n - 1)")]),
        ("p (1 - p)", [("with p for p (1 - p)", "A model that is always right has no error at all: at p = 1 this must be 0.", "p * (1 - p)", "p")]),
    ),
    next="Next: this is the error of the test, that over seeds is the error of the training. Both are there.",
)
# fmt: on

# --- Over the seeds -----------------------------------------------------------------------------


def draw_accuracies(rng: np.random.Generator, case: str) -> Inputs:
    """Four methods, each trained with some seeds."""
    return {"accuracies": rng.uniform(0.5, 1.0, (4, {"three seeds": 3, "seven seeds": 7}[case]))}


def mean_of_seeds(accuracies: Tensor) -> Tensor:
    """The mean of each row, and its standard error."""
    n, mean = accuracies.shape[1], accuracies.mean(1)
    variance = ((accuracies - mean[:, None]) ** 2).sum(1) / (n - 1)
    return torch.stack([mean, variance.sqrt() / n**0.5], 1)


def mean_by_the_package(accuracies: Tensor) -> Tensor:
    """As the results' table has it, which shows the standard deviation."""
    rows = [mean_and_sd(row) for row in accuracies.tolist()]
    two = [(mean, sd / accuracies.shape[1] ** 0.5) for mean, sd in rows]
    return torch.tensor(two, dtype=torch.float64)


# fmt: off
mean_and_error = Exercise(
    title="mean and standard error over seeds",
    formula="m = Σ a_s / n and √(Σ (a_s - m)² / (n - 1)) / √n",
    right=mean_of_seeds, package=mean_by_the_package, draw=draw_accuracies, cases=("three seeds", "seven seeds"), axes="method two",
    mistakes=known(
        ("the n - 1 under the root", [
            ("with the mean square taken over n, not n - 1", "The mean was fitted to the same numbers, so they lie nearer to it than to the true mean. NumPy's default is n, torch's is n - 1.",
             "(n - 1)", "n"),
        ]),
        ("the final / √n", [
            ("with the standard deviation for the standard error", "How far apart single runs lie does not say how well their mean is known.", " / n**0.5", ""),
            ("divided by n, not by its root", "Variances add up.", "n**0.5", "n"),
        ]),
        ("the root of the mean square", [
            ("with the variance for its root", "An error has the units of the accuracy.", "variance.sqrt()", "variance"),
        ]),
    ),
    next="Next: a difference smaller than two such errors is not a result.",
)
# fmt: on
