r"""The exercises of notebook 10, on fine-tuning: one vector per text, and the learning rate's schedule."""

import numpy as np

from ...model import heads
from ...proofs.draws import SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ...training import optim
from ..engine.diagnosis import OTHER_SIZES, Exercise
from ..engine.patches import known

RIGHT, LEFT, FULL = "padding on the right", "padding on the left", "no padding"


def draw_hidden(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    n = sizes["queries"]
    position, lengths = np.arange(n), np.array([[n], [1], [4]])[: sizes["batch"]]
    real = {RIGHT: position < lengths, LEFT: position >= n - lengths, FULL: position >= 0 * lengths}
    return draw("hidden: batch queries d_model", real=real[case])(rng, case, sizes)


REAL, COUNT = "real.unsqueeze(-1)", "weight.sum(1).clamp(min=1)"
mean_pool = Exercise(
    title="the mean over the real tokens",
    formula="Σ_t real_t h_t / Σ_t real_t",
    right=heads.mean_pool, rows=("mean_pool",), draw=draw_hidden, precise=False, cases=(RIGHT, LEFT, FULL, OTHER_SIZES), axes="batch d_model",
    mistakes=known(
        "the sum over the real tokens",
        ("over all positions, padding included", "The vectors at padded positions are not zero. A text would get a different vector in a different batch.",
         REAL, "(real | True).unsqueeze(-1)"),
        ("over the padding", "real is True where a token is real. In some libraries it is the other way round.", REAL, "(~real).unsqueeze(-1)"),
        ("with the first position alone", "That is [CLS], which this checkpoint was never trained to fill.",
         REAL, "(real | True)[:, :1].unsqueeze(-1)", "hidden * weight", "hidden[:, :1] * weight"),
        ("with the last position alone", "In a padded batch that is mostly padding.",
         REAL, "(real | True)[:, -1:].unsqueeze(-1)", "hidden * weight", "hidden[:, -1:] * weight"),
        ("without the first position", "[CLS] is a real token like the others, and the checkpoint was trained with it.",
         REAL, "real[:, 1:].unsqueeze(-1)", "hidden * weight", "hidden[:, 1:] * weight"),
        ("with the largest, not the mean", "That is max pooling; this is the mean.", f"(hidden * weight).sum(1) / {COUNT}", "hidden.masked_fill(weight == 0, float('-inf')).amax(1)"),
        "the number of real tokens in the denominator",
        ("divided by the padded length", "The same text in a batch of longer ones would get a shorter vector.", COUNT, "hidden.shape[1]"),
        ("with the sum for the mean", "Divide.", f" / {COUNT}", ""),
        ("divided by the number of real tokens of the whole batch", "real.sum() counts all texts; sum along the length only.", COUNT, "weight.sum()"),
        ("divided by the mean number of real tokens", "Each text has its own number, (batch, 1).", COUNT, "weight.sum(1).mean().clamp(min=1)"),
    ),
    next="Next: one linear map on top of it completes the classifier.",
)  # fmt: skip

PLACES = {
    "the first step": (0, 23, 5), "in the warm-up": (1, 23, 5), "the last of the warm-up": (4, 23, 5),
    "the first after it": (5, 23, 5), "half way": (11, 23, 5), "the last step": (22, 23, 5),
    "another warm-up": (2, 41, 8), "another fall": (26, 41, 8),
    "no warm-up": (0, 13, 0), "the second step without one": (1, 13, 0),
}  # fmt: skip
"""Steps, with the number of all steps and those of the warm-up."""


def right_warmup_then_linear(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return (steps - step) / (steps - warmup)


FALL = "(steps - step) / (steps - warmup)"
warmup_then_linear = Exercise(
    title="warm up, then fall",
    formula="(s + 1)/w for s < w, then (S - s)/(S - w)",
    right=right_warmup_then_linear, twins=(optim.warmup_then_linear,), package=lambda s, S, w: optim.warmup_then_linear(s, S, max(w - 0.5, 0) / S),  # the warm-up is a share there, rounded up
    numbers=True, differentiated=False, precise=False, wants="a number",
    draw=lambda rng, case: dict(zip(("step", "steps", "warmup"), PLACES[case], strict=True)), cases=tuple(PLACES), axes="",
    mistakes=known(
        "(s + 1)/w",
        ("starting at 0", "A factor of 0 wastes the first step. Steps are counted from 0, so s + 1.", "(step + 1) / warmup", "step / warmup"),
        ("with w + 1 for w", "At s = w - 1, the last step of the warm-up, the factor is 1.", "/ warmup", "/ (warmup + 1)"),
        ("without the warm-up", "AdamW's first steps are its most uncertain ones; they should be small.", "(step + 1) / warmup", "1.0"),
        "s < w", ("with the warm-up one step too long", "At s = w the first line would give more than 1.", "step < warmup", "step <= warmup"),
        "(S - s)/(S - w)",
        ("that never falls", "After the warm-up it falls to 0.", FALL, "1.0"),
        ("falling one step too early", "The first step after the warm-up has the full rate: S - s.", FALL, "(steps - step - 1) / (steps - warmup)"),
        ("falling one step too late", "At s = w the factor is 1, and at s = w + 1 it is less.", FALL, "min(1.0, (steps - step + 1) / (steps - warmup))"),
        ("reaching 0 at the last step", "Steps are counted from 0 to S - 1, and 0 is reached at S, when training is over. A last step at rate 0 is wasted.",
         FALL, "(steps - step - 1) / (steps - warmup - 1)"),
        ("falling over all S steps", "It would jump down at the end of the warm-up. S - w steps are left to fall in.", FALL, "(steps - step) / steps"),
        ("counting the fall from step 0", "The fall begins at s = w, with the factor 1.", FALL, "1 - step / (steps - warmup)"),
        ("with // for /", "// rounds down, to 0 or 1; / divides.", "(step + 1) / warmup", "(step + 1) // warmup", FALL, "(steps - step) // (steps - warmup)"),
        ("with the inverse root of the step", "That is the schedule of the 2017 paper; here it is a straight line.", "(step + 1) / warmup", "(step + 1) * warmup**-1.5", FALL, "(step + 1) ** -0.5"),
        ("along a cosine", "Many prefer it; BERT's recipe is a straight line.", FALL, "(1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2"),
    ),
    next="Next: `warmup_then_linear` in training/optim.py, which the training loop calls at every step.",
)  # fmt: skip
