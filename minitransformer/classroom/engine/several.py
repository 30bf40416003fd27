"""An exercise whose answer is several tensors, such as the gradients of all inputs."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .diagnosis import Exercise, Result
from .numbers import EXACT, distance
from .running import copies, guarded


@dataclass(frozen=True)
class ExerciseOfSeveral(Exercise):
    """An exercise whose answer is a tuple of tensors, compared as one long row."""

    outputs: tuple[str, ...] = ()  # the names of the tensors, in order
    like: tuple[str, ...] = ()  # for each of them, the input that it is shaped like

    def tensor(self, output: Any) -> Any:
        """All tensors in one row; anything else stays as it is, to be reported."""
        several = isinstance(output, tuple | list) and all(isinstance(a, Tensor) for a in output)
        return torch.cat([a.flatten() for a in output]) if several else output

    def answer(self, student: Any, seed: int) -> Result:
        """As for one tensor; also says which one is missing, misshapen or wrong."""
        with contextlib.suppress(Exception):  # a crash is reported by the diagnosis
            if malformed := self.malformed(student, seed):
                return Result(self.title, False, malformed)
        result = super().answer(student, seed)
        if not result.passed and not result.mistakes:
            with contextlib.suppress(Exception):
                return Result(self.title, False, result.message + self.which(student, seed))
        return result

    def malformed(self, student: Callable, seed: int) -> str:
        """What is wrong with the number of outputs, their types or shapes; "" if nothing."""
        for case, inputs in self.inputs(seed).items():
            output = guarded(student)(*copies(inputs))
            if output is None:  # reported by the diagnosis
                return ""
            got = len(output) if isinstance(output, tuple | list) else "one thing"
            if got != len(self.outputs):
                wanted = f"{len(self.outputs)} tensors, {', '.join(self.outputs)}"
                return f"Return {wanted}; your function returns {got}."
            for name, like, a in zip(self.outputs, self.like, output, strict=True):
                if not isinstance(a, Tensor):
                    return f"{name} must be a torch tensor, but it is {type(a).__name__}."
                if a.shape != (right := inputs[like].shape):
                    wanted = f"wanted that of {like}, {tuple(right)}, got {tuple(a.shape)}"
                    return f"The shape of {name} is wrong (case: {case}): {wanted}."
        return ""

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
