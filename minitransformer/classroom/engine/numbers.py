"""Comparing numbers: how far an output is from the right one, where, and in what pattern."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...proofs.formula import Inputs

SEED = 4
EXACT = 1e-9  # float64 rounds in the 16th digit; a mistake shows in the third
SINGLE = 1e-4  # an answer that agrees this well, but no better, was computed in float32 somewhere
ROUNDED = 2e-7  # what a few roundings to float32 cost, relative to the largest entry


def as_numbers(output: Any) -> Any:
    """A list, an array or whole numbers as a float64 tensor; what holds no numbers stays as it is."""
    try:
        made = output if isinstance(output, Tensor) else torch.from_numpy(np.array(output))
        if made.numel() == 1:
            return made.detach().double().reshape(())
        return output if made.dtype == torch.bool else made.detach().double()
    except (TypeError, ValueError, RuntimeError):
        return output


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite where only one of the two is NaN."""
    if not a.numel():
        return 0.0
    same = (a == b) | (a.isnan() & b.isnan())  # inf - inf is NaN as well
    return float((a - b).abs().masked_fill(same, 0.0).nan_to_num(math.inf).max())


def gradients(f: Callable[..., Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """The gradients of a fixed random sum of the outputs; a plain sum hides errors."""
    floats = {k: a for k, a in inputs.items() if isinstance(a, Tensor) and a.is_floating_point()}
    wanted = {k: a.clone().requires_grad_() for k, a in floats.items()}
    output = f(*(inputs | wanted).values())
    if not output.requires_grad:
        return {}
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED)).to(output)
    weighted = (output * weights).sum()  # given as grad_outputs they would make torch import sympy
    grads = torch.autograd.grad(weighted, list(wanted.values()), allow_unused=True)
    return {name: g for name, g in zip(wanted, grads, strict=True) if g is not None}


def pattern(
    yours: dict[str, Tensor], right: dict[str, Tensor], errors: dict[str, float], axes: str
) -> str:
    """In which cases and places an output is wrong, by how much, and in what pattern."""
    case = max(errors, key=lambda c: errors[c])
    a, b = yours[case], right[case]
    off = (a - b).abs().nan_to_num(math.inf)
    at = place(axes, np.unravel_index(int(off.argmax()), off.shape))
    where = f" (case: {case})"
    if errors[case] <= SINGLE * max(1.0, float(b.abs().max())):
        return (
            f"Nearly: the largest difference is {errors[case]:.0e}{at}{where}. That is float32's "
            "precision, and the inputs are float64: some step makes a float32 tensor or number, or a "
            "small number is added that the formula does not have."
        )
    if b.numel() == 1:
        parts = [f"It gives {float(a):.6g}; the formula gives {float(b):.6g}{where}."]
    else:
        parts = [f"The largest difference is {errors[case]:.2g}{at}{where}."]
    if fine := [c for c in errors if errors[c] <= EXACT]:
        parts.append(f"These cases are right: {', '.join(fine)}.")
    peak = int(b.abs().argmax())
    largest = float(b.reshape(-1)[peak])
    factor = float(a.reshape(-1)[peak]) / largest if largest else math.nan
    proportional = math.isfinite(factor) and distance(a, factor * b) <= EXACT * abs(largest)
    if proportional and factor and b.numel() > 1:
        parts.append(f"Every entry is {factor:.4g} times the right one: a factor.")
    for i, name in enumerate(axes.split()):
        wrong = [j for j in range(a.shape[i]) if float(off.select(i, j).max()) > EXACT]
        if len(wrong) < a.shape[i] and len(wrong) <= 12:
            parts.append(f"Along {name} only {wrong} are wrong.")
    return " ".join([*parts, *trends(a - b, axes)])


def place(axes: str, at: Iterable) -> str:
    """A place in words: ", at batch 0, query 2"; nothing for a single number."""
    named = [f"{axis} {int(i)}" for axis, i in zip(axes.split(), at, strict=True)]
    return f", at {', '.join(named)}" if named else ""


def digits(error: float) -> str:
    """A measured error as the next power of ten, which is the same on every machine."""
    return "the last bit" if error == 0 else f"1e{math.ceil(math.log10(error))}"


def trends(off: Tensor, axes: str) -> list[str]:
    """Whether an error is the same everywhere, or grows along an axis."""
    off = off.double()
    if off.numel() > 1 and distance(off, off.mean()) <= EXACT:
        return [
            f"Every entry is {abs(off.mean()):.4g} too {'large' if off.mean() > 0 else 'small'}."
        ]
    said = []
    for i, name in enumerate(axes.split()):
        along = off.abs().transpose(0, i).reshape(off.shape[i], -1).amax(1)
        if len(along) > 4 and bool((along.diff() > EXACT).all()):
            said.append(f"The error grows along {name}, from {along[0]:.2g} to {along[-1]:.2g}.")
    return said
