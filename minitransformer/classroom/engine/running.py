r"""Running a student's function: a crash, a stop, a wrong type or a wrong shape becomes a message."""

import copy
import dis
import functools
import inspect
import linecache
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...proofs.formula import Inputs
from . import limits


class Finding(Exception):
    """What is wrong with an answer; never leaves the engine."""

    def __init__(self, message: str, *mistakes: str) -> None:
        super().__init__(message)
        self.mistakes = mistakes  # names of the known ones that explain it


def copies(inputs: Inputs) -> list[Any]:
    """The arguments, copied: a function that changes them harms nobody else."""
    return [
        a.clone() if isinstance(a, Tensor) else copy.copy(a) if isinstance(a, dict | list) else a
        for a in inputs.values()
    ]


def guarded(student: Callable, dtype: torch.dtype = torch.float32) -> Callable:
    """The student's function, which finds torch as usual and leaves it as usual at every call."""

    def calm(*given: Any) -> Any:
        with limits.usual_state(dtype):
            return student(*given)

    return functools.update_wrapper(calm, student, updated=())


def run(student: Callable, inputs: Inputs, case: str) -> Any:
    """Call the function with copies of the inputs; a crash or a changed input is a finding."""
    given = copies(inputs)
    try:
        output = student(*given)
    except Exception as error:
        if isinstance(error, NotImplementedError) and raised_by_python(error):
            raise
        raise Finding(crash(student, error, inputs, case)) from None
    for i, (name, before) in enumerate(inputs.items()):
        if isinstance(before, Tensor):
            same = before.equal(given[i])
        else:
            same = not isinstance(before, dict | list) or before == given[i]
        if not same:
            raise Finding(changed(student, inputs, name, i, case))
    return output


def raised_by_python(error: Exception) -> bool:
    """Whether an error comes from a `raise` outside of the libraries, such as that of a stub."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    if last is None or "site-packages" in last.tb_frame.f_code.co_filename:
        return False
    return last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


class Watch(TorchFunctionMode):
    """Remembers the line of a file at which a tensor is first written to."""

    def __init__(self, tensor: Any, file: str) -> None:
        super().__init__()
        self.tensor, self.file, self.line = tensor, file, ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.tensor._version
        output = func(*args, **(kwargs or {}))
        if self.tensor._version > before and not self.line:
            frame = sys._getframe()
            while frame.f_back and frame.f_code.co_filename != self.file:
                frame = frame.f_back
            self.line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        return output


def changed(student: Callable, inputs: Inputs, name: str, i: int, case: str) -> str:
    """What to say to a function that changes its i-th argument, and the line that does it."""
    message = (
        f"Your function changes its argument {name} (case: {case}). The caller still needs it: "
    )
    if not isinstance(inputs[name], Tensor):
        return f"{message}work on a copy, `{name} = {name}.copy()`, or do not write to it."
    given = copies(inputs)
    watch = Watch(given[i], getattr(code_of(student), "co_filename", ""))
    with watch:
        student(*given)
    message += (
        f"make a new tensor, or start with `{name} = {name}.clone()`. Methods whose names end in "
    )
    message += "_, `+=` and the like, and `[...] =` write into the tensor they are given."
    return paragraphs(message, f"It happens in the line\n\n    {watch.line}" if watch.line else "")


def code_of(student: Callable) -> Any:
    """The code of a function, or of the `forward` or `__call__` of an object; None if it has none."""
    f = inspect.unwrap(student)
    method = getattr(f, "forward", None) or getattr(type(f), "__call__", None)
    return getattr(f, "__code__", None) or getattr(method, "__code__", None)


def crash(student: Callable, error: Exception, inputs: Inputs, case: str) -> str:
    """Where in the student's own code it stopped, and what it was given."""
    given = ", ".join(
        f"{name} {tuple(a.shape) if isinstance(a, Tensor) else repr(a)}"
        for name, a in inputs.items()
        if isinstance(a, Tensor | str)
    )
    return paragraphs(
        f"It does not run (case: {case}). {type(error).__name__}: {error}",
        line_of(student, error),
        limits.usual_cause(error),
        f"It was called with {given}.",
    )


def stopped(student: Callable, stop: BaseException) -> str:
    """Why and where the function was stopped."""
    why = {
        limits.TimeUp: f"Stopped after {limits.SECONDS:.0f} seconds; a right answer takes far less than one.",
        KeyboardInterrupt: "You stopped it.",
        SystemExit: "Your function ends the program.",
    }.get(type(stop), f"It does not run. {type(stop).__name__}: {stop}")
    line, cause = line_of(student, stop), limits.usual_cause(stop)
    if isinstance(stop, limits.TimeUp) and not line:
        cause = "It was not inside your function at that moment. Is the machine busy? Check again."
    return paragraphs(why, line, cause)


def paragraphs(*parts: str) -> str:
    """The parts of a message that say something, as paragraphs."""
    return "\n\n".join(part for part in parts if part)


def line_of(student: Callable, error: BaseException) -> str:
    """The line of the student's own code at which an error arose; "" if it was elsewhere."""
    # The last frame from the student's file: the function itself, or a helper next to it.
    home = code_of(student)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if home is not None and f.filename == home.co_filename]
    if not own or "site-packages" in own[-1].filename:
        return ""
    last = own[-1]
    line = linecache.getline(last.filename, last.lineno or 0).strip() or last.line
    return f"It stops in `{last.name}`, at the line\n\n    {line}"


def check_type(output: Any, right: Tensor, axes: str, case: str, wants: str) -> None:
    """A tensor of the right shape and number type; anything else is a finding."""
    if output is None:
        raise Finding("Your function returns nothing. Is the `return` missing?")
    if isinstance(output, tuple):
        wanted = f"{wants}, ({axes.replace(' ', ', ')})" if axes else wants
        raise Finding(f"Your function returns {len(output)} things; this exercise wants {wanted}.")
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise Finding(f"Your function must return {wants}, but it returns {kind}.")
    if output.shape != right.shape:
        raise Finding(wrong_shape(axes.split(), output, right, case))
    if output.dtype != right.dtype:
        raise Finding(
            f"The output should be {right.dtype}, but yours is {output.dtype}. Make new tensors of the "
            "inputs' type, for instance with `x.new_zeros(...)`."
        )


def wrong_shape(axes: list[str], output: Tensor, right: Tensor, case: str) -> str:
    """What the axes should be; all sizes differ, so a size tells which axis it is."""
    if right.numel() == 1:
        return f"This exercise wants a single number; yours has the shape {tuple(output.shape)}."
    wanted = ", ".join(f"{a}={n}" for a, n in zip(axes, right.shape, strict=True))
    message = f"The shape is wrong (case: {case}): wanted ({wanted}), got {tuple(output.shape)}."
    name = dict(zip(right.shape, axes, strict=True))
    if len(name) == len(axes) and all(n in name for n in output.shape):
        mine = ", ".join(name[n] for n in output.shape)
        message += f" Judging by their sizes, your axes are ({mine})."
    return message
