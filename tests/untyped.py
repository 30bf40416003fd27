"""Annotations are checked at every call. A test that makes the same call a thousand times checks them once."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def untyped() -> Iterator[None]:
    """Calls of shapes that were checked before."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
