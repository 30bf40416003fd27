r"""The exercises of notebook 11, on strategies: when each layer learns, and a change of low rank."""

import numpy as np
import torch
from torch import Tensor

from ...proofs.formula import Inputs
from ...training.lora import LoRALinear
from ...training.strategies import GradualUnfreezing, Progress
from ..engine.diagnosis import Exercise
from ..engine.patches import known

STEPS = {"at the start": 0, "early": 11, "half way": 35, "at the end": 69}


def draw_progress(rng: np.random.Generator, case: str) -> Inputs:
    return {"n_layers": 7, "step": STEPS[case], "steps": 70}


def right_gradual_rates(n_layers: int, step: int, steps: int) -> Tensor:
    thawed = min(1 + n_layers * step // steps, n_layers)
    return (torch.arange(n_layers) >= n_layers - thawed).float()


gradual_rates = Exercise(
    title="gradual unfreezing",
    formula="layer l learns once step/steps ≥ (L - 1 - l)/L, layers counted from 0 at the bottom",
    right=right_gradual_rates, package=lambda L, s, S: torch.tensor(GradualUnfreezing(every=None).rates(L, Progress(s, S, 0))),
    draw=draw_progress, cases=tuple(STEPS), axes="layer",
    mistakes=known(
        "the order of the layers",
        ("with the layers thawed from the bottom up", "Layer 0 is the embeddings. The head is new and must learn first.", ".float()", ".float().flip(0)"),
        "the layers already thawed",
        ("with only the newest layer learning", "A thawed layer keeps learning when the next one joins it.", ">= n_layers", "== n_layers"),
        "the number of layers at step 0",
        ("with nothing learning at first", "At step 0 the head learns: one layer, not none.", "1 + n_layers * step", "n_layers * step"),
        ("with two layers from the start", "At step 0 the head learns alone.", "1 + n_layers * step", "2 + n_layers * step"),
    ),
    next="Next: compare with GradualUnfreezing.rates in training/strategies.py, which takes a few lines.",
)  # fmt: skip

LENGTH, D_IN, D_OUT, RANK = 5, 6, 7, 4


def draw_lora(rng: np.random.Generator, case: str) -> Inputs:
    return {
        "x": rng.standard_normal((3, LENGTH, D_IN)), "W": rng.standard_normal((D_OUT, D_IN)),
        "A": rng.standard_normal((RANK, D_IN)),
        "B": np.zeros((D_OUT, RANK)) if case == "B = 0" else rng.standard_normal((D_OUT, RANK)),
        "alpha": 9.0,
    }  # fmt: skip


def right_lora(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return x @ W.mT + alpha / len(A) * (x @ A.mT @ B.mT)


def lora_by_package(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    state = {"linear.weight": W, "A": A, "B": B}
    return torch.func.functional_call(LoRALinear(linear, len(A), alpha), state, (x,))


lora = Exercise(
    title="a linear map with a low-rank change",
    formula="y = x Wᵀ + (α/r) x Aᵀ Bᵀ",
    right=right_lora, package=lora_by_package, draw=draw_lora, cases=("B = 0", "a change"), axes="batch length d_out",
    mistakes=known(
        "x Wᵀ", ("without the pretrained map", "LoRA adds to what was there; with B = 0 the output must be that of W alone.", "x @ W.mT + ", ""),
        "the factor α/r",
        ("with α for α/r", "The rank is the number of rows of A; dividing by it keeps the scale when r changes.", "alpha / len(A)", "alpha"),
        ("without the scale", "α is an argument.", "alpha / len(A) * ", ""),
        ("divided by the width of x, not by the rank", "A has shape (r, d_in): which of the two is r?", "alpha / len(A)", "alpha / x.shape[-1]"),
        ("with r/α for α/r", "A larger α is a larger change.", "alpha / len(A)", "len(A) / alpha"),
        ("divided by the root of the rank", "That is another proposal (rsLoRA); here it is the rank itself.", "alpha / len(A)", "alpha / len(A) ** 0.5"),
    ),
    next="Next: merge it. W + (α/r) B A gives the same outputs and costs nothing at prediction.",
)  # fmt: skip
