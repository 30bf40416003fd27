r"""The ledger: the list of formulas, each with its LaTeX, its source and its implementations.

A row proves that code equals formula. All implementations of a row take the same named inputs:

- `by_hand` takes NumPy arrays and computes index by index;
- `ours` takes torch tensors: the code that models are built from, written-out operations;
- `fused` is the same with torch's kernels;
- `reference` is torch's own operation or module;
- `backward_by_hand` takes NumPy arrays, the gradient of the output first, and returns those of the
  inputs: the derivative derived on paper.

`rows.py` here holds the rows of the formulas; `model/rows.py` adds those of the modules.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Formula:
    """One row: a formula and everything that claims to compute it."""

    id: str
    title: str
    latex: str
    source: str
    draw: Callable[[np.random.Generator, str], Inputs]
    """`draw(rng, case)` makes inputs of order 1 in float64, all dimensions different."""
    by_hand: Callable[..., Any]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    fused: Callable[..., Any] | None = None
    backward_by_hand: Callable[..., Any] | None = None
    """`f(d_output, **inputs)` gives the gradients of the inputs: a tuple in their order, or by name."""
    cases: tuple[str, ...] = ("plain",)
    no_gradient: tuple[str, ...] = ()
    """Inputs that are not differentiated, beside masks and integers."""
    shows: tuple[Callable, ...] = ()
    """What `show` prints as our code, when `ours` only arranges the inputs."""


LEDGER: dict[str, Formula] = {}


def add(formula: Formula) -> None:
    """Enter a row; an id stands once."""
    if formula.id in LEDGER:
        raise ValueError(f"the ledger already has a formula {formula.id!r}")
    LEDGER[formula.id] = formula


def find(id: str) -> Formula:
    """The row with this id.

    Raises:
        KeyError: there is none; the message lists those there are.
    """
    if id not in LEDGER:
        raise KeyError(f"no formula {id!r} in the ledger; there are: {', '.join(LEDGER)}")
    return LEDGER[id]


class Card:
    """A formula, our code for it and the measured errors, side by side (HTML in a notebook)."""

    def __init__(self, formula: Formula):
        from .verify import measure

        self.formula, self.errors = formula, measure(formula)
        code = formula.shows or (formula.ours,)
        self.code = "\n\n".join(without_docstring(f) for f in code)

    def __repr__(self) -> str:
        f = self.formula
        return f"{f.title}\n\n  {f.latex}\n\n{f.source}\n\n{self.code}\n\n{self.errors}"

    def _repr_html_(self) -> str:
        f, cell = self.formula, "vertical-align:top;text-align:left"
        rows = "".join(
            f"<tr><td style='text-align:left'>{escape(name)}</td><td>{error:.0e}</td></tr>"
            for name, error in self.errors.items()
            if error is not None
        )
        return (
            f"<table><tr><td style='{cell};max-width:26em'><b>{escape(f.title)}</b><br>$${f.latex}$$"
            f"<small>{escape(f.source)}</small></td>"
            f"<td style='{cell}'><pre>{escape(self.code)}</pre></td>"
            f"<td style='{cell}'><b>largest error</b><table>{rows}</table></td></tr></table>"
        )


def show(id: str) -> Card:
    """The formula with this id, typeset, beside our source code and the measured errors.

    Raises:
        KeyError: as `find`.
    """
    return Card(find(id))


def without_docstring(f: Callable) -> str:
    """The source of a function or class, less its docstrings, which repeat the formula."""
    source = textwrap.dedent(inspect.getsource(f))
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            for i in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[i] = "\0"
    return "\n".join(line for line in lines if line != "\0").rstrip()
