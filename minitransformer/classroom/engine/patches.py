r"""A known mistake is a patch of the right answer, which stands once.

`patched(right, mistake)` is the right answer's source with every old text of the mistake replaced by
its new text; `planted` puts it in the place of the package's own function, so that everything that
calls it makes the mistake.
"""

import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A known way to get it wrong."""

    name: str
    """Completes the sentence "Your output equals the formula ..."."""
    term: str
    """The term of the formula that it breaks."""
    hint: str
    """What to look at; not the solution."""
    edits: tuple[tuple[str, str], ...]
    """The patch: each old text of the right answer's source, and the new text in its place."""


def known(*terms: tuple[str, list[tuple[str, ...]]]) -> tuple[Mistake, ...]:
    """Mistakes, listed by the term that they break; each is (name, hint, old, new, old, new, ...)."""
    return tuple(
        Mistake(name, term, hint, tuple(zip(edits[::2], edits[1::2], strict=True)))
        for term, mistakes in terms
        for name, hint, *edits in mistakes
    )


@functools.cache
def source_of(functions: tuple[Callable, ...]) -> str:
    """The source of functions, one after the other."""
    return "\n\n".join(textwrap.dedent(inspect.getsource(f)) for f in functions)


@functools.cache
def patched(right: tuple[Callable, ...], *mistakes: Mistake) -> tuple[Callable, ...] | None:
    """The functions of a right answer with these mistakes in them, in the same order.

    Returns: None where an old text does not occur (any more): two mistakes may exclude each other.
    """
    functions = tuple(inspect.unwrap(f) for f in right)
    source = source_of(functions)
    for old, new in (edit for mistake in mistakes for edit in mistake.edits):
        if old not in source:
            return None
        source = source.replace(old, new)
    made: dict = {}
    for f in functions:
        made |= f.__globals__
    try:
        exec(
            compile(source, f"<{right[-1].__name__} with mistakes>", "exec", dont_inherit=True),
            made,
        )
    except SyntaxError:  # two patches of one expression
        return None
    return tuple(made[f.__name__] for f in functions)


@contextlib.contextmanager
def planted(right: tuple[Callable, ...], *mistakes: Mistake) -> Iterator[None]:
    """Within, the package's own functions make these mistakes, wherever they are called from."""
    functions = [inspect.unwrap(f) for f in right]
    before = [f.__code__ for f in functions]
    for f, wrong in zip(functions, patched(right, *mistakes) or (), strict=True):
        f.__code__ = wrong.__code__
    try:
        yield
    finally:
        for f, code in zip(functions, before, strict=True):
            f.__code__ = code
