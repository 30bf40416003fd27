r"""The exercises of notebook 12, on how much data it takes: what an accuracy is worth."""

import numpy as np
import torch
from torch import Tensor

from ...lab.results import mean_and_sd
from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise
from ..engine.patches import known


def draw_shares(rng: np.random.Generator, case: str) -> Inputs:
    n, methods = {"a small test": (63, 5), "a large test": (1008, 3)}[case]
    p = rng.uniform(0.55, 0.95, methods)
    p[-1] = 1.0  # always right: no error
    return {"p": p, "n": n}


def right_accuracy_error(p: Tensor, n: int) -> Tensor:
    return (p * (1 - p) / n).sqrt()


accuracy_error = Exercise(
    title="the standard error of an accuracy",
    formula="√(p (1 - p) / n)",
    right=right_accuracy_error, numbers=True, differentiated=False, precise=False, package=lambda p, n: torch.distributions.Binomial(n, p).stddev / n,
    draw=draw_shares, cases=("a small test", "a large test"), axes="method",
    mistakes=known(
        "the root", ("without the root", "p (1 - p) / n is a variance.", ".sqrt()", ""),
        ("times 1.96", "That is half of a 95 % interval; the standard error is one.", ".sqrt()", ".sqrt() * 1.96"),
        "what is under the root",
        ("with n outside the root", "Four times the test texts only halve the error.", "(p * (1 - p) / n).sqrt()", "(p * (1 - p)).sqrt() / n"),
        "n", ("without n", "The more test texts, the smaller the error.", " / n", ""),
        ("with n - 1 for n", "The - 1 belongs to a spread that was measured; here the spread follows from p alone.", "/ n", "/ (n - 1)"),
        "p (1 - p)", ("with p for p (1 - p)", "A model that is always right has no error at all: at p = 1 this must be 0.", "p * (1 - p)", "p"),
    ),
    next="Next: this error comes from the test set, the error over seeds from training. Both are present.",
)  # fmt: skip


def draw_accuracies(rng: np.random.Generator, case: str) -> Inputs:
    shape = {"six seeds": (5, 6), "seven seeds": (3, 7)}[case]
    return {"accuracies": rng.uniform(0.5, 1.0, shape)}


def right_mean_and_error(accuracies: Tensor) -> Tensor:
    n, mean = accuracies.shape[1], accuracies.mean(1)
    variance = ((accuracies - mean[:, None]) ** 2).sum(1) / (n - 1)
    return torch.stack([mean, variance.sqrt() / n**0.5], 1)


def mean_and_error_by_package(accuracies: Tensor) -> Tensor:
    moments = accuracies.new_tensor([mean_and_sd(row) for row in accuracies.tolist()])
    return moments / accuracies.new_tensor([1, accuracies.shape[1] ** 0.5])


mean_and_error = Exercise(
    title="mean and standard error over seeds",
    formula="m = Σ a_s / n and √(Σ (a_s - m)² / (n - 1)) / √n",
    right=right_mean_and_error, twins=(mean_and_sd,), numbers=True, differentiated=False, precise=False, package=mean_and_error_by_package, draw=draw_accuracies, cases=("six seeds", "seven seeds"), axes="method two",
    mistakes=known(
        "the n - 1 under the root",
        ("with the mean square taken over n, not n - 1", "The mean comes from the same numbers, so they lie too close to it.", "(n - 1)", "n"),
        "the final / √n",
        ("with the standard deviation for the standard error", "How far apart single runs lie does not say how well their mean is known.", " / n**0.5", ""),
        ("divided by n, not by its root", "Variances add up.", "n**0.5", "n"),
        ("divided by the root of the number of methods", "n counts the seeds: the second axis.", "n**0.5", "len(accuracies) ** 0.5"),
        "m", ("with the median for the mean", "The mean is Σ a_s / n.", "torch.stack([mean,", "torch.stack([accuracies.median(1).values,"),
        "the root of the mean square", ("with the variance for its root", "An error has the units of the accuracy.", "variance.sqrt()", "variance"),
    ),
    next="Next: a difference smaller than two such errors is not a result.",
)  # fmt: skip
