r"""The ledger: the list of formulas, each proven equal to its code. `show` puts one on a card."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from html import escape

from . import rows_decoder, rows_formulas, rows_models, rows_modules
from .formula import Formula
from .measure import measure

LEDGER: dict[str, Formula] = {
    row.id: row
    for rows in (rows_formulas.ROWS, rows_modules.ROWS, rows_decoder.ROWS, rows_models.ROWS)
    for row in rows
}


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
