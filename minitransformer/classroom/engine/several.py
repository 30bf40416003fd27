"""An exercise whose answer is several tensors, such as the gradients of all inputs."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...proofs.formula import Inputs
from .diagnosis import Exercise, Result
from .numbers import EXACT, distance
from .running import Finding, copies, guarded


@dataclass(frozen=True)
class ExerciseOfSeveral(Exercise):
    """An exercise whose answer is a tuple of tensors, compared as one long row."""

    outputs: tuple[str, ...] = ()  # the names of the tensors, in order
    like: tuple[str, ...] = ()  # for each of them, the input that it is shaped like

    def tensor(self, output: Any, inputs: Inputs | None = None) -> Any:
        """All tensors in one row. Raises: Finding, if one is missing, or misshapen for these inputs."""
        if output is None:
            return None
        got = len(output) if isinstance(output, tuple | list) else "one thing"
        if got != len(self.outputs):
            wanted = f"{len(self.outputs)} tensors, {', '.join(self.outputs)}"
            raise Finding(f"Return {wanted}; your function returns {got}.")
        for name, like, a in zip(self.outputs, self.like, output, strict=True):
            if not isinstance(a, Tensor):
                raise Finding(f"{name} must be a torch tensor, but it is {type(a).__name__}.")
            if inputs and a.shape != (right := inputs[like].shape):
                wanted = f"wanted that of {like}, {tuple(right)}, got {tuple(a.shape)}"
                raise Finding(f"The shape of {name} is wrong: {wanted}.")
        return torch.cat([a.flatten() for a in output])

    def answer(self, student: Any, seed: int) -> Result:
        """As for one tensor; also says which one is wrong."""
        result = super().answer(student, seed)
        if not result.passed and not result.mistakes:
            with contextlib.suppress(Exception):
                return replace(result, message=result.message + self.which(student, seed))
        return result

    def which(self, student: Callable, seed: int) -> str:
        """Which outputs are wrong and which right; "" if all are right."""
        right = dict.fromkeys(self.outputs, True)
        for inputs in self.inputs(seed).values():
            mine, theirs = guarded(student)(*copies(inputs)), self.right(*copies(inputs))
            for name, a, b in zip(self.outputs, mine, theirs, strict=True):
                right[name] &= distance(a.detach(), b) <= EXACT
        wrong = ", ".join(name for name in right if not right[name])
        others = ", ".join(name for name in right if right[name]) or "none"
        return f"\n\nWrong: {wrong}. Right: {others}." if wrong else ""
