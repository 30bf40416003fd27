"""Whose work an answer is: the package's functions and torch's are recognised by what they are.

The answer runs once under Python's profiler, which sees every function that is entered, whatever its
name: from a closure, a default argument, an object or `sys.modules`.
"""

import dis
import inspect
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F

from .running import Finding, code_of

# What torch has ready-made: right to use, and good to know that one did.
READY = (F.scaled_dot_product_attention, F.multi_head_attention_forward, torch.layer_norm)
STORES = {"STORE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "STORE_DEREF"}


def whose(exercise: Any, student: Callable, given: list) -> tuple[str, tuple[str, ...]]:
    """A remark on an answer that calls the solution, and the names of what it calls.

    Raises: Finding, if it merely returns what the package's own function returns.
    """
    ours = {id(code_of(f)): inspect.unwrap(f).__name__ for f in (exercise.right, *exercise.twins)}
    names = ours | {id(code_of(f) or f): f"torch's {f.__name__}" for f in READY}
    called: dict[str, None] = {}
    returned: list[Any] = []

    def see(frame: Any, event: str, arg: Any) -> None:
        which = id(arg) if event == "c_call" else id(frame.f_code)
        if event in ("call", "c_call") and which in names:
            called[names[which]] = None
        elif event == "return" and which in ours:
            returned.extend(arg if isinstance(arg, tuple) else (arg,))

    if sys.getprofile():  # somebody is measuring, and there can be only one
        return "", ()
    sys.setprofile(see)
    try:
        output = student(*given)
    except Exception:  # it ran before: not worth a word
        return "", ()
    finally:
        sys.setprofile(None)
    code = code_of(student)  # what stores something elsewhere does more than to return
    more = isinstance(code, CodeType) and any(
        step.opname in STORES for step in dis.get_instructions(code)
    )
    parts = output if isinstance(output, tuple | list) else (output,)
    if returned and not more and all(any(part is a for a in returned) for part in parts):
        what = (
            f"This is the package's own {next(iter(called))}: there is nothing of yours to check."
        )
        raise Finding(f"{what} The formula: {exercise.formula}")
    remark = f"It calls {' and '.join(called)}, which does the work of this formula."
    return remark if called else "", tuple(called)
