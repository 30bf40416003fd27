r"""Running a student's function: a crash, a stop, a wrong type or a wrong shape becomes a message."""

import copy
import dis
import functools
import inspect
import linecache
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...proofs.formula import Inputs
from . import limits


class Finding(Exception):
    """What is wrong with an answer; never leaves the engine."""

    def __init__(self, message: str, *mistakes: str) -> None:
        super().__init__(message)
        self.mistakes = mistakes  # names of the known ones that explain it


WRITING = "`+=` and the like, `[...] =`, and methods that end in _ write into the tensor given."


def copies(inputs: Inputs) -> list[Any]:
    """The arguments, copied: a function that changes them harms nobody else."""
    return [a.clone() if isinstance(a, Tensor) else copy.copy(a) for a in inputs.values()]


def guarded(student: Callable) -> Callable:
    """The student's function; what it sets in torch does not outlive the call."""

    def calm(*given: Any) -> Any:
        try:
            return student(*given)
        finally:
            torch.set_grad_enabled(True)
            torch.set_default_dtype(torch.float64)

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
    for name, before, after in zip(inputs, inputs.values(), given, strict=True):
        tensor = isinstance(before, Tensor)
        if (isinstance(before, dict | list) and before != after) or (
            tensor and not before.equal(after)
        ):
            raise Finding(
                f"Your function changes its argument {name} (case: {case}), which the caller still "
                f"needs. Make a new one, or work on a copy, {name}.{'clone' if tensor else 'copy'}(). "
                + (WRITING if tensor else "Methods such as pop() change what they belong to.")
            )
    return output


def raised_by_python(error: Exception) -> bool:
    """Whether an error comes from a `raise` outside of the libraries, such as that of a stub."""
    last: Any = error.__traceback__
    while last.tb_next:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised = code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]
    return raised and "site-packages" not in code.co_filename


def code_of(student: Callable) -> Any:
    """The code of a function, or of the `forward` or `__call__` of an object; None if it has none."""
    f = inspect.unwrap(student)
    method = getattr(f, "forward", type(f).__call__)
    return getattr(f, "__code__", None) or getattr(method, "__code__", None)


def crash(student: Callable, error: Exception, inputs: Inputs, case: str) -> str:
    """Where in the student's own code it stopped, and what it was given."""
    given = ", ".join(
        f"{name} {tuple(a.shape) if isinstance(a, Tensor) else repr(a)}"
        for name, a in inputs.items()
        if isinstance(a, Tensor | str | int | float)
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
    if not isinstance(output, Tensor):
        got = f"{len(output)} things" if isinstance(output, tuple) else type(output).__name__
        raise Finding(f"Your function must return {wants}, but it returns {got}.")
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
    if output.dim() and len(name) == len(axes) and all(n in name for n in output.shape):
        mine = ", ".join(name[n] for n in output.shape)
        message += f" Judging by their sizes, your axes are ({mine})."
    return message
