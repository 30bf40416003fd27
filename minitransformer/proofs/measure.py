"""The largest difference between the implementations of one formula, forward and backward."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .formula import Formula, Inputs

# What is compared with what, and the largest error allowed. The inputs are of order 1, so the
# errors are absolute; those of a gradient are relative to its largest entry, which sums many terms.
CHECKS = {
    "by hand": 1e-10,  # NumPy by hand against ours, float64
    "torch": 1e-10,  # ours against torch's reference, float64
    "float32": 2e-5,  # the same in float32
    "fused": 1e-10,  # written out against torch's kernels, float64
    "gradient": 1e-9,  # autograd through ours against autograd through the reference, float64
    "fused grad": 1e-9,  # the same for torch's kernels
    "by-hand grad": 1e-9,  # the derivative in NumPy against autograd through ours, float64
}
SEED = 20171206  # any seed must do; tests run others


class Errors(dict[str, float | None]):
    """The largest error of each check of one formula; None where a check does not apply."""

    def __str__(self) -> str:
        return "   ".join(f"{k} {v:.0e}" for k, v in self.items() if v is not None)

    def wrong(self) -> list[str]:
        """The checks that fail; NaN fails."""
        return [k for k, v in self.items() if v is not None and not v <= CHECKS[k]]


def measure(formula: Formula, seed: int = SEED) -> Errors:
    """The largest error of each check over all cases of one formula."""
    worst = Errors(dict.fromkeys(CHECKS))

    def note(check: str, error: float) -> None:
        old = worst[check]
        worst[check] = error if old is None else worse(error, old)

    for case in formula.cases:
        inputs = formula.draw(np.random.default_rng(seed), case)
        hand = as_tuple(formula.by_hand(**inputs))
        ours, ours_grad = run(formula, formula.ours, inputs, torch.float64)
        ref, ref_grad = run(formula, formula.reference, inputs, torch.float64)
        note("by hand", distance([torch.as_tensor(a) for a in hand], ours))
        note("torch", distance(ours, ref))
        small, _ = run(formula, formula.ours, inputs, torch.float32)
        ref_small, _ = run(formula, formula.reference, inputs, torch.float32)
        note("float32", distance(small, ref_small))
        if ours_grad:
            note("gradient", distance(ours_grad, ref_grad, relative=True))
            if formula.backward_by_hand is not None:
                hand_grad = run_backward(formula, inputs, ours[0].shape)
                note("by-hand grad", distance(hand_grad, ours_grad, relative=True))
        if formula.fused is not None:
            fused, fused_grad = run(formula, formula.fused, inputs, torch.float64)
            note("fused", distance(fused, ours))
            if fused_grad:
                note("fused grad", distance(fused_grad, ours_grad, relative=True))
    return worst


def run(
    formula: Formula, f: Callable[..., Any], inputs: Inputs, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute in torch: the outputs, and the gradients of a random sum of them."""
    tensors: Inputs = {}
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.copy())
            if value.is_floating_point():
                value = value.to(dtype).requires_grad_(name in differentiable(formula, inputs))
        tensors[name] = value
    outputs = list(as_tuple(f(**tensors)))
    wanted = [t for t in tensors.values() if isinstance(t, Tensor) and t.requires_grad]
    if not wanted or not any(o.requires_grad for o in outputs):
        return [o.detach() for o in outputs], []
    weights = random_weights([o.shape for o in outputs])
    loss = sum((o * weight.to(dtype)).sum() for o, weight in zip(outputs, weights, strict=True))
    return [o.detach() for o in outputs], list(torch.autograd.grad(loss, wanted))


def run_backward(formula: Formula, inputs: Inputs, shape: tuple[int, ...]) -> list[Tensor]:
    """The gradients of the same random sum by the derivative in NumPy, in the order of `run`."""
    d_output = random_weights([shape])[0].numpy()
    grads = formula.backward_by_hand(d_output, **inputs)
    names = differentiable(formula, inputs)
    if not isinstance(grads, dict):
        grads = dict(zip(names, as_tuple(grads), strict=True))
    return [torch.as_tensor(grads[name]) for name in names]


def differentiable(formula: Formula, inputs: Inputs) -> list[str]:
    """The names of the inputs that have a gradient."""
    real = [k for k, a in inputs.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return [name for name in real if name not in formula.no_gradient]


def random_weights(shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """What to multiply outputs by before summing them: the loss that gradients are taken of.

    Random, since a plain sum hides errors: softmax's rows sum to one whatever the scores.
    """
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]


def distance(a: list[Tensor], b: list[Tensor], relative: bool = False) -> float:
    """The largest difference between two lists of tensors; infinite when their shapes differ."""
    worst = 0.0
    if len(a) != len(b):
        return float("inf")
    for x, y in zip(a, b, strict=True):
        if x.shape != y.shape:
            return float("inf")
        error = (x.double() - y.double()).abs().max().item() if x.numel() else 0.0
        if relative:
            error /= max(1.0, y.abs().max().item())
        worst = worse(error, worst)
    return worst


def worse(a: float, b: float) -> float:
    """The larger of two errors; NaN is larger than any number."""
    return a if math.isnan(a) or a > b else b


def as_tuple(result: Any) -> tuple:
    """A tuple of results, also of one."""
    return result if isinstance(result, tuple) else (result,)
