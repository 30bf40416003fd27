r"""The exercises of notebook 11, on strategies: when each layer learns, and a change of low rank."""

import numpy as np
import torch
from torch import Tensor

from ...proofs.draws import SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ...training.lora import LoRALinear
from ...training.strategies import GradualUnfreezing, Progress
from ..engine.diagnosis import OTHER_SIZES, Exercise
from ..engine.patches import known

STEPS = {
    "at the start": (7, 0, 70), "early": (7, 11, 70), "half way": (7, 35, 70), "at the end": (7, 69, 70),
    "just before a border": (7, 9, 70), "on a border": (7, 10, 70), "before another": (7, 19, 70),
    "eight layers": (8, 12, 100), "between two steps": (8, 13, 100), "after a border": (8, 25, 100),
    "before the last layer": (8, 87, 100), "more layers than steps": (8, 2, 3),
}  # fmt: skip
"""How many layers there are, the step, and the number of steps."""


def right_gradual_rates(n_layers: int, step: int, steps: int) -> Tensor:
    thawed = min(1 + n_layers * step // steps, n_layers)
    return (torch.arange(n_layers) >= n_layers - thawed).float()


gradual_rates = Exercise(
    title="gradual unfreezing",
    formula="layer l learns once step/steps ≥ (L - 1 - l)/L, layers counted from 0 at the bottom",
    right=right_gradual_rates, twins=(GradualUnfreezing.rates,), package=lambda L, s, S: torch.tensor(GradualUnfreezing(every=None).rates(L, Progress(s, S, 0))),
    numbers=True, differentiated=False, draw=lambda rng, case: dict(zip(("n_layers", "step", "steps"), STEPS[case], strict=True)), cases=tuple(STEPS), axes="layer",
    mistakes=known(
        "the order of the layers",
        ("with the layers thawed from the bottom up", "Layer 0 is the embeddings. The head is new and must learn first.", ".float()", ".float().flip(0)"),
        "the layers already thawed",
        ("with only the newest layer learning", "A thawed layer keeps learning when the next one joins it.", ">= n_layers", "== n_layers"),
        "the number of layers at step 0",
        ("with nothing learning at first", "At step 0 the head learns: one layer, not none.", "1 + n_layers * step", "n_layers * step"),
        ("with two layers from the start", "At step 0 the head learns alone.", "1 + n_layers * step", "2 + n_layers * step"),
        "⌊L · step/steps⌋",
        ("with layers thawed a step too early", "Layer l learns once step/steps reaches (L - 1 - l)/L: step counts, not step + 1.", "* step //", "* (step + 1) //"),
        ("with step/(steps - 1) for step/steps", "The last layer thaws at step/steps = (L - 1)/L.", "// steps,", "// (steps - 1),"),
        ("with step/(steps + 1) for step/steps", "The last layer thaws at step/steps = (L - 1)/L.", "// steps,", "// (steps + 1),"),
        ("with step // steps, which is 0", "Multiply by L first, then divide: L · step // steps.", "n_layers * step // steps", "n_layers * (step // steps)"),
        ("with L · step/steps rounded to the nearest", "A layer learns once its border is reached: round down.", "n_layers * step // steps", "round(n_layers * step / steps)"),
        ("with L · step/steps rounded up", "A layer learns once its border is reached: round down.", "n_layers * step // steps", "-(-n_layers * step // steps)"),
        ("with at most as many layers as steps", "The bound is the number of layers.", "steps, n_layers)", "steps, steps)"),
    ),
    next="Next: compare with GradualUnfreezing.rates in training/strategies.py, which takes a few lines.",
)  # fmt: skip


def draw_lora(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    batch, rank = sizes["batch"], sizes["heads"]
    shapes = f"x: {batch} queries d_k, W: d_v d_k, A: {rank} d_k, B: d_v {rank}"
    inputs = draw(shapes, alpha=13.0 if sizes is SIZES else 8.0)(rng, case, sizes)
    inputs["B"] *= case != "B = 0"
    return inputs


def right_lora(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    return x @ W.mT + alpha / len(A) * (x @ A.mT @ B.mT)


def lora_by_package(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    linear = torch.nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    state = {"linear.weight": W, "A": A, "B": B}
    return torch.func.functional_call(LoRALinear(linear, len(A), alpha), state, (x,))


lora = Exercise(
    title="a linear map with a low-rank change",
    formula="y = x Wᵀ + (α/r) x Aᵀ Bᵀ",
    right=right_lora, twins=(LoRALinear.forward,), package=lora_by_package, precise=False, draw=draw_lora, cases=("B = 0", "a change", OTHER_SIZES), axes="batch length d_out",
    mistakes=known(
        "x Wᵀ", ("without the pretrained map", "LoRA adds to what was there; with B = 0 the output must be that of W alone.", "x @ W.mT + ", ""),
        "the factor α/r",
        ("with α for α/r", "The rank is the number of rows of A; dividing by it keeps the scale when r changes.", "alpha / len(A)", "alpha"),
        ("without the scale", "α is an argument.", "alpha / len(A) * ", ""),
        ("divided by the width of x, not by the rank", "A has shape (r, d_in): which of the two is r?", "alpha / len(A)", "alpha / x.shape[-1]"),
        ("with r/α for α/r", "A larger α is a larger change.", "alpha / len(A)", "len(A) / alpha"),
        ("with // for /", "// rounds down: α/r is a fraction.", "alpha / len(A)", "alpha // len(A)"),
        ("divided by the root of the rank", "That is another proposal (rsLoRA); here it is the rank itself.", "alpha / len(A)", "alpha / len(A) ** 0.5"),
    ),
    next="Next: merge it. W + (α/r) B A gives the same outputs and costs nothing at prediction.",
)  # fmt: skip
