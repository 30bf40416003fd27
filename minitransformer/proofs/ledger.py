r"""The ledger: the list of formulas, each proven equal to its code. `show` puts one on a card."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path

from . import rows_decoder, rows_formulas, rows_models, rows_modules
from .formula import Formula
from .measure import measure

ROWS = rows_formulas.ROWS + rows_modules.ROWS + rows_decoder.ROWS + rows_models.ROWS
LEDGER: dict[str, Formula] = {row.id: row for row in ROWS}


def find(id: str) -> Formula:
    """The row with this id.

    Raises: KeyError: the id is unknown; the message lists the known ones.
    """
    if id not in LEDGER:
        raise KeyError(f"no formula {id!r} in the ledger; there are: {', '.join(LEDGER)}")
    return LEDGER[id]


def where(id: str) -> str:
    """The file and line of our code for a formula, such as "formulas/ops.py:91".

    Raises: as `find`.
    """
    return place(code(find(id))[0])


class Card:
    """A formula, our code for it and the measured errors, side by side (HTML in a notebook)."""

    def __init__(self, formula: Formula):
        self.formula, self.errors = formula, measure(formula)
        self.code = "\n\n".join(without_docstring(f) for f in code(formula))
        self.places = places(formula)

    def __repr__(self) -> str:
        f = self.formula
        places = "\n".join(f"{name:16}{place}" for name, place in self.places.items())
        return f"{f.title}\n\n  {f.latex}\n\n{f.source}\n\n{places}\n\n{self.code}\n\n{self.errors}"

    def _repr_html_(self) -> str:
        f, cell = self.formula, "vertical-align:top;text-align:left"
        errors = {name: f"{e:.0e}" for name, e in self.errors.items() if e is not None}
        return (
            f"<table><tr><td style='{cell};max-width:26em'><b>{escape(f.title)}</b><br>$${f.latex}$$"
            f"<small>{escape(f.source)}</small>{table(self.places)}</td>"
            f"<td style='{cell}'><pre>{escape(self.code)}</pre></td>"
            f"<td style='{cell}'><b>largest error</b>{table(errors)}</td></tr></table>"
        )


def show(id: str) -> Card:
    """The formula with this id, typeset, beside our source code and the measured errors.

    Raises: as `find`.
    """
    return Card(find(id))


def code(formula: Formula) -> tuple[Callable, ...]:
    """The functions of the package that compute the formula."""
    return formula.shows or (formula.ours,)


def places(formula: Formula) -> dict[str, str]:
    """Where each implementation stands."""
    implementations = {
        "by hand": (formula.by_hand,), "ours": code(formula), "fused": (formula.fused,),
        "torch": (formula.reference,), "by-hand grad": (formula.backward_by_hand,),
    }  # fmt: skip
    found = {name: ", ".join(place(f) for f in fs if f) for name, fs in implementations.items()}
    if formula.shows or found["fused"] == found["ours"]:
        del found["fused"]  # the same code with torch's kernels
    return {name: where for name, where in found.items() if where}


def place(f: Callable) -> str:
    """The file and line of a function of the package, or the full name of another library's."""
    f = unwrapped(f)
    if not f.__module__.startswith("minitransformer."):
        return f"{f.__module__}.{f.__qualname__}"
    package = Path(__file__).parent.parent
    file = Path(f.__code__.co_filename).relative_to(package).as_posix()
    return f"{file}:{f.__code__.co_firstlineno}"


def unwrapped(f: Callable) -> Callable:
    """The function within a partial or below decorators."""
    while isinstance(f, partial) or hasattr(f, "__wrapped__"):
        f = f.func if isinstance(f, partial) else f.__wrapped__
    return f


def without_docstring(f: Callable) -> str:
    """The source of a function or class without its docstrings, which repeat the formula."""
    source = textwrap.dedent(inspect.getsource(unwrapped(f)))
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            docstring = slice(node.body[0].lineno - 1, node.body[0].end_lineno)
            lines[docstring] = ["\0"] * len(lines[docstring])
    return "\n".join(line for line in lines if line != "\0").rstrip()


def table(cells: dict[str, str]) -> str:
    """Names and values as the rows of an HTML table."""
    row = "<tr><td style='text-align:left'>{}</td><td>{}</td></tr>"
    rows = (row.format(escape(name), escape(value)) for name, value in cells.items())
    return f"<table>{''.join(rows)}</table>"
