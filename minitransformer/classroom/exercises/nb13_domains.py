r"""The exercises of notebook 13, on domains: what a new head does to the features, and what travels."""

import numpy as np
import torch
from torch import Tensor

from ...proofs.draws import SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ..engine.diagnosis import OTHER_SIZES, Exercise
from ..engine.patches import known


def draw_linear(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    n = 1 if case == "one example" else sizes["keys"]
    return draw(f"X: {n} d_k, y: {n}, v: heads, B: heads d_k")(rng, case, sizes)


def right_feature_gradient(X: Tensor, y: Tensor, v: Tensor, B: Tensor) -> Tensor:
    error = X @ B.mT @ v - y
    return torch.outer(v, error @ X) / len(X)


feature_gradient = Exercise(
    title="what the head sends into the features",
    formula="∂L/∂B = (1/n) Σ (v·Bx - y) v xᵀ for L = (1/2n) Σ (v·Bx - y)²",
    right=right_feature_gradient, package=lambda X, y, v, B: torch.func.grad(lambda B: ((X @ B.mT @ v - y) ** 2).mean() / 2)(B),
    differentiated=False, precise=False, draw=draw_linear, cases=("several examples", "one example", OTHER_SIZES), axes="k d",
    mistakes=known(
        "the v in front of xᵀ",
        ("without the head v", "The error reaches the features only through the head.", "torch.outer(v, ", "torch.outer(torch.ones_like(v), "),
        "1/n", ("summed, not averaged", "The loss is a mean.", " / len(X)", ""),
        ("divided by the number of features", "n is the number of examples: len(X).", "/ len(X)", "/ X.shape[1]"),
        "1/2n", ("with a factor 2 that the 1/2 cancels", "Differentiate the square.", "return ", "return 2 * "),
        "v·Bx - y",
        ("with the sign of the step, not of the gradient", "The gradient points uphill; the step has the minus.", "X @ B.mT @ v - y", "y - X @ B.mT @ v"),
        ("without the error", "An example that is predicted well pulls less.", "error @ X", "X.sum(0)"),
        ("with the prediction for the error", "Where the prediction is right, nothing may move.", "X @ B.mT @ v - y", "X @ B.mT @ v"),
    ),
    next="Next: with a random v this gradient is large and points nowhere useful. That is the whole argument for training the head first.",
)  # fmt: skip


def draw_matrix(rng: np.random.Generator, case: str) -> Inputs:
    n = {"four domains": 4, "five domains": 5}[case]
    return {"accuracy": rng.uniform(0.4, 1.0, (n, n))}


def right_in_and_out(accuracy: Tensor) -> Tensor:
    n, home = len(accuracy), accuracy.diagonal()
    away = (accuracy.sum() - home.sum()) / (n * n - n)
    return torch.stack([home.mean(), away])


def in_and_out_by_mask(accuracy: Tensor) -> Tensor:
    home = torch.eye(len(accuracy), dtype=torch.bool)
    return torch.stack([accuracy[home].mean(), accuracy[~home].mean()])


AWAY = "(accuracy.sum() - home.sum()) / (n * n - n)"
in_and_out = Exercise(
    title="at home and away",
    formula="(1/n) Σ_i a_ii and (1/(n² - n)) Σ_{i≠j} a_ij",
    right=right_in_and_out, numbers=True, differentiated=False, precise=False, package=in_and_out_by_mask, draw=draw_matrix, cases=("four domains", "five domains"), axes="two",
    mistakes=known(
        "i ≠ j in the second sum",
        ("with the whole matrix as away", "The diagonal is home and must not count twice.", AWAY, "accuracy.mean()"),
        ("with one triangle only", "From movies to tweets is not the same as from tweets to movies.", AWAY, "accuracy.triu(1).sum() / (n * (n - 1) / 2)"),
        "1/(n² - n)", ("with the second sum divided by n²", "How many entries are off the diagonal?", "(n * n - n)", "(n * n)"),
        "the order", ("with home and away exchanged", "First home, then away.", "[home.mean(), away]", "[away, home.mean()]"),
        "a_ii", ("with the first row for the diagonal", "Home is where training and test share one domain.", "home.mean()", "accuracy[0].mean()"),
    ),
    next="Next: a method is robust when the second number stays near the first.",
)  # fmt: skip
