"""Whose work an answer is: the package's functions and torch's are recognised by what they are.

Names do not matter: the answer runs once under Python's profiler, which sees every function that is
entered, whether it was found in a closure, a default argument, an object or `sys.modules`.
"""

import dis
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .running import code_of

FUSED = (
    F.scaled_dot_product_attention, F.multi_head_attention_forward,
    torch.layer_norm, torch.native_layer_norm, torch.group_norm,
)  # fmt: skip
"""What torch has ready-made. It is right to use it, and good to know that one did."""
WRITES = {"STORE_GLOBAL", "STORE_ATTR", "STORE_SUBSCR", "STORE_DEREF"}


@dataclass(frozen=True)
class Borrowed:
    """What an answer takes from others."""

    solution: tuple[str, ...]  # names of the package's functions that are the solution
    torch: tuple[str, ...]  # names of torch's functions that compute it whole
    merely: bool  # whether it returns what the solution returned, and does nothing besides


def borrowed(student: Callable, given: list, solution: list[Callable]) -> Borrowed:
    """Run an answer on these arguments and see what it calls."""
    names = {id(code_of(f) or f): f.__name__ for f in solution}
    ready = {id(code_of(f) or f): f.__name__ for f in FUSED}
    called: dict[int, None] = {}
    returned: list[Any] = []

    def see(frame: Any, event: str, arg: Any) -> None:
        which = id(arg) if event == "c_call" else id(frame.f_code)
        if event in ("call", "c_call"):
            called[which] = None
        elif event == "return" and which in names:
            returned.extend(arg if isinstance(arg, tuple) else (arg,))

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        output = student(*given)
    finally:
        sys.setprofile(before)
    parts = output if isinstance(output, tuple | list) else (output,)
    same = all(any(part is a for a in returned) for part in parts)
    mine, theirs = (tuple(of[i] for i in called if i in of) for of in (names, ready))
    return Borrowed(mine, theirs, same and not stores(student))


def stores(student: Callable) -> bool:
    """Whether a function keeps something outside of itself, so that it does more than return."""
    code = getattr(inspect.unwrap(student), "__code__", None)
    return code is not None and any(step.opname in WRITES for step in dis.get_instructions(code))


def solutions(
    right: Callable, package: Callable | None, twins: tuple[Callable, ...]
) -> list[Callable]:
    """The right answer, its twins, and whatever of the package its witness `package` is made of."""
    found: list[Any] = [right, *twins]
    if package is not None:
        words = package.__code__.co_names
        made_of = [package.__globals__.get(word) for word in words]
        made_of += [getattr(thing, word, None) for thing in made_of for word in words]
        home = __name__.split(".")[0]
        things = [f for f in made_of if inspect.isfunction(f) or inspect.isclass(f)]
        found += [package, *(f for f in things if f.__module__.split(".")[0] == home)]
    return [f for f in found if code_of(f) and ".exercises.shared" not in f.__module__ or f is right]
