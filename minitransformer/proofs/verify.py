"""Run the ledger: compare every implementation of every formula with the others."""

from collections.abc import Mapping
from dataclasses import dataclass

from tqdm import tqdm

from .ledger import LEDGER, find
from .measure import CHECKS, SEED, Errors, measure


@dataclass(frozen=True)
class Report:
    """The errors of all formulas; prints as a table."""

    rows: Mapping[str, Errors]

    @property
    def ok(self) -> bool:
        """Whether every formula holds."""
        return not any(errors.wrong() for errors in self.rows.values())

    def __str__(self) -> str:
        formulas = {id: find(id) for id in self.rows}
        wide = max(len(f.title) for f in formulas.values())
        width = {name: max(9, len(name) + 2) for name in CHECKS}
        checks = "".join(f"{name:>{width[name]}}" for name in CHECKS)
        head = f"{'formula':{wide}}  {checks}   "
        longest = max(len(f.source) for f in formulas.values())
        lines = [f"{head}source", "-" * (len(head) + min(46, longest))]
        for id, errors in self.rows.items():
            cells = "".join(cell(errors[name], CHECKS[name], width[name]) for name in CHECKS)
            lines.append(f"{formulas[id].title:{wide}}  {cells}   {formulas[id].source}")
        limits = ", ".join(f"{k} {v:.0e}" for k, v in CHECKS.items())
        wrong = {formulas[id].title: errors.wrong() for id, errors in self.rows.items()}
        bad = [f"{title}: {', '.join(names)}" for title, names in wrong.items() if names]
        off = f"{len(bad)} of {len(self.rows)} formulas are off: {'; '.join(bad)}"
        summary = off if bad else f"all {len(self.rows)} formulas hold"
        allowed = f"largest errors; allowed: {limits}; '!' marks one above"
        return "\n".join([*lines, "", allowed, "", summary])

    __repr__ = __str__


def cell(error: float | None, limit: float, width: int) -> str:
    """One entry of the table."""
    if error is None:
        return f"{'-':>{width - 1}} "
    return f"{error:>{width - 1}.0e}{' ' if error <= limit else '!'}"


def verify(ids: list[str] | None = None, seed: int = SEED) -> Report:
    """Measure every formula of the ledger, or those named.

    On a terminal a progress bar appears after three seconds.

    Returns: a report; print it for the table. `report.ok` is True if all formulas hold.

    Raises: KeyError: an id is unknown.
    """
    formulas = [find(id) for id in ids or LEDGER]
    bar = tqdm(formulas, "verify", unit=" formulas", delay=3, leave=False, disable=None)
    return Report({formula.id: measure(formula, seed) for formula in bar})
