r"""The exercises by name: `mt.check.attention(my_attention)` names what is wrong with it.

Each name of this module is an `Exercise` or a `Quiz` of a file in `exercises/`; call it with your answer.
"""

import functools
import importlib
import pkgutil
from difflib import get_close_matches

from . import exercises as files
from .engine.diagnosis import Exercise
from .engine.quiz import Quiz


@functools.cache
def every() -> dict[str, Exercise | Quiz]:
    """Everything that a notebook may ask for, by name, in the order of the notebooks."""
    found: dict[str, Exercise | Quiz] = {}
    for module in pkgutil.iter_modules(files.__path__):
        names = vars(importlib.import_module(f"{files.__name__}.{module.name}"))
        found |= {name: e for name, e in names.items() if isinstance(e, Exercise | Quiz)}
    return found


def exercises() -> dict[str, Exercise]:
    """The exercises that ask for a formula and know wrong answers to it."""
    return {name: e for name, e in every().items() if isinstance(e, Exercise)}


def __getattr__(name: str) -> Exercise | Quiz:
    # Python asks here only for names that the module itself does not have.
    if name.startswith("__"):
        raise AttributeError(name)
    if name in every():
        return every()[name]
    near = get_close_matches(name, every(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the known ones are: {', '.join(every())}"
    raise AttributeError(f"no exercise {name!r}; {hint}")


def __dir__() -> list[str]:
    # What a student sees after typing `mt.check.` and a tab.
    return sorted(every())
