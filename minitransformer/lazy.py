"""Names of a package that are loaded when they are first used, so that importing it costs nothing."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(
    package: str, names: Mapping[str, str], modules: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """`__all__`, `__getattr__` and `__dir__` of a package.

    Args:
        names: for each module of the package the names in it, separated by spaces.
        modules: for each name that is itself a module, where it is.
    """
    home = {name: module for module, of_it in names.items() for name in of_it.split()}

    def load(name: str) -> Any:
        # Python asks here only for names that the package does not have yet.
        if name in modules:
            value = importlib.import_module(f"{package}.{modules[name]}")
        elif name in home:
            value = getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    every = sorted([*home, *modules])
    return every, load, lambda: sorted({*vars(sys.modules[package]), *every})
