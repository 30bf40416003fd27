"""The largest difference between the implementations of one formula, forward and backward."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .formula import Formula, Inputs

# Each comparison, and the largest error allowed. The inputs are of order 1, so the errors are
# absolute; those of a gradient, which sums many terms, are relative to its largest entry.
CHECKS = {
    "by hand": 1e-10,  # NumPy by hand against ours, float64
    "torch": 1e-10,  # ours against torch's reference, float64
    "float32": 2e-5,  # the same in float32
    "fused": 1e-10,  # written out against torch's kernels, float64
    "gradient": 1e-9,  # autograd through ours against autograd through the reference, float64
    "fused grad": 1e-9,  # the same for torch's kernels
    "by-hand grad": 1e-9,  # the derivative in NumPy against autograd through ours, float64
}
SEED = 20171206  # any seed must do; the tests use others


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
    with torch.random.fork_rng(devices=[]):  # building modules draws random weights
        for case in formula.cases:
            inputs = formula.draw(np.random.default_rng(seed), case)
            for check, error in compare(formula, inputs).items():
                worst[check] = float(np.maximum(error, worst[check] or 0.0))  # NaN stays
    return worst


def compare(formula: Formula, inputs: Inputs) -> dict[str, float]:
    """The error of each check that applies to these inputs."""
    hand = [torch.as_tensor(a) for a in as_tuple(formula.by_hand(**inputs))]
    ours, grad = run(formula, formula.ours, inputs)
    reference, reference_grad = run(formula, formula.reference, inputs)
    errors = {"by hand": distance(hand, ours), "torch": distance(ours, reference)}
    small = [run(formula, f, inputs, torch.float32)[0] for f in (formula.ours, formula.reference)]
    errors["float32"] = distance(small[0], small[1])
    if grad:
        errors["gradient"] = distance(grad, reference_grad, relative=True)
    if grad and formula.backward_by_hand is not None:
        hand_grad = run_backward(formula, inputs, ours[0].shape)
        errors["by-hand grad"] = distance(hand_grad, grad, relative=True)
    if formula.fused is not None:
        fused, fused_grad = run(formula, formula.fused, inputs)
        errors["fused"] = distance(fused, ours)
        if fused_grad:
            errors["fused grad"] = distance(fused_grad, grad, relative=True)
    return errors


def run(
    formula: Formula, f: Callable[..., Any], inputs: Inputs, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute in torch: the outputs, and the gradients of a random sum of them."""
    tensors, wanted = dict(inputs), differentiable(formula, inputs)
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(value.copy())
            if tensors[name].is_floating_point():
                tensors[name] = tensors[name].to(dtype).requires_grad_(name in wanted)
    outputs = list(as_tuple(f(**tensors)))
    detached = [o.detach() for o in outputs]
    if not any(o.requires_grad for o in outputs):
        return detached, []
    loss = sum((o * random_weights(o.shape).to(dtype)).sum() for o in outputs)
    return detached, list(torch.autograd.grad(loss, [tensors[name] for name in wanted]))


def run_backward(formula: Formula, inputs: Inputs, shape: tuple[int, ...]) -> list[Tensor]:
    """The gradients of the same random sum by the derivative in NumPy, in the order of `run`."""
    grads = formula.backward_by_hand(random_weights(shape).numpy(), **inputs)
    names = differentiable(formula, inputs)
    if not isinstance(grads, dict):
        grads = dict(zip(names, as_tuple(grads), strict=True))
    return [torch.as_tensor(grads[name]) for name in names]


def differentiable(formula: Formula, inputs: Inputs) -> list[str]:
    """The names of the inputs that have a gradient."""
    real = [k for k, a in inputs.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    return [name for name in real if name not in formula.no_gradient]


def random_weights(shape: tuple[int, ...]) -> Tensor:
    """Weights for a sum of an output; a plain sum hides errors: softmax always sums to one."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def distance(a: list[Tensor], b: list[Tensor], relative: bool = False) -> float:
    """The largest difference between two lists of tensors; infinite when their shapes differ."""
    if [x.shape for x in a] != [y.shape for y in b]:
        return math.inf
    errors = [0.0]
    for x, y in zip(a, b, strict=True):
        error = (x.double() - y.double()).abs().max().item() if x.numel() else 0.0
        errors.append(error / max(1.0, y.abs().max().item()) if relative else error)
    return float(np.max(errors))  # NaN if any is


def as_tuple(result: Any) -> tuple:
    """The result itself if it is a tuple, otherwise a tuple of one."""
    return result if isinstance(result, tuple) else (result,)
