r"""A known mistake is a patch of the right answer, which stands once.

`patched(right, mistake)` is the right answer's source with every old text of the mistake replaced by
its new text; `planted` puts it in the place of the package's own function, so that everything that
calls it makes the mistake.
"""

import __future__

import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType


@dataclass(frozen=True)
class Mistake:
    """A known way to get it wrong."""

    name: str  # completes the sentence "Your output equals the formula ..."
    term: str  # the term of the formula that it breaks
    hint: str  # what to look at; not the solution
    edits: tuple[tuple[str, str], ...]  # old texts of the right answer's source, each with its new


def known(*table: str | tuple[str, ...]) -> tuple[Mistake, ...]:
    """A table of mistakes: a term of the formula, then those that break it, and so on.

    Each mistake is (name, hint, old, new, old, new, ...).
    """
    mistakes, term = [], ""
    for entry in table:
        if isinstance(entry, str):
            term = entry
        else:
            name, hint, *edits = entry
            pairs = zip(edits[::2], edits[1::2], strict=True)
            mistakes.append(Mistake(name, term, hint, tuple(pairs)))
    return tuple(mistakes)


@functools.cache
def source_of(f: Callable) -> str:
    """The source of a function."""
    return textwrap.dedent(inspect.getsource(f))


@functools.cache
def compiled(source: str, name: str) -> CodeType:
    """The code of a function's source; annotations stay text, since nobody reads them."""
    flags = __future__.annotations.compiler_flag
    return compile(source, f"<{name} with mistakes>", "exec", flags, dont_inherit=True)


@functools.cache
def patched(right: tuple[Callable, ...], *mistakes: Mistake) -> tuple[Callable, ...] | None:
    """The functions of a right answer with these mistakes in them, in the same order.

    Returns: None if an old text does not occur (any more): two mistakes may exclude each other.
    """
    functions = [inspect.unwrap(f) for f in right]
    sources = [source_of(f) for f in functions]
    for old, new in (edit for mistake in mistakes for edit in mistake.edits):
        if not any(old in source for source in sources):
            return None
        sources = [source.replace(old, new) for source in sources]
    made = {name: value for f in functions for name, value in f.__globals__.items()}
    try:
        for f, source in zip(functions, sources, strict=True):
            exec(compiled(source, f.__name__), made)
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
