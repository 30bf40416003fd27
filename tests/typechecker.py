"""What checks the annotations in tests: beartype, but for functions inside functions.

Those are made anew at every call, and beartype writes a checker for each: half the time of some tests.
The function around them is checked.
"""

from collections.abc import Callable

from beartype import beartype


def outermost(function: Callable) -> Callable:
    """beartype's decorator, for functions that are made once."""
    return function if "<locals>" in function.__qualname__ else beartype(function)
