"""Run the ledger: every implementation of every formula against every other."""

from collections.abc import Mapping
from dataclasses import dataclass

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
        titles = {id: LEDGER[id].title for id in self.rows}
        wide, where = max(map(len, titles.values())), max(len(LEDGER[id].source) for id in titles)
        head = f"{'formula':{wide}}  " + "".join(f"{name:>{width(name)}}" for name in CHECKS)
        lines = [head + "   source", "-" * (len(head) + 3 + min(where, 46))]
        for id, errors in self.rows.items():
            cells = "".join(cell(errors[name], CHECKS[name], width(name)) for name in CHECKS)
            lines.append(f"{titles[id]:{wide}}  {cells}   {LEDGER[id].source}")
        bad = [f"{titles[id]}: {', '.join(e.wrong())}" for id, e in self.rows.items() if e.wrong()]
        limits = ", ".join(f"{k} {v:.0e}" for k, v in CHECKS.items())
        lines += ["", f"largest errors; allowed: {limits}; '!' marks one above", ""]
        lines.append(
            f"{len(bad)} of {len(self.rows)} formulas are off: " + "; ".join(bad)
            if bad
            else f"all {len(self.rows)} formulas hold"
        )
        return "\n".join(lines)

    __repr__ = __str__


def width(check: str) -> int:
    """The width of a column of the table."""
    return max(9, len(check) + 2)


def cell(error: float | None, limit: float, width: int) -> str:
    """One entry of the table."""
    if error is None:
        return f"{'-':>{width - 1}} "
    return f"{error:>{width - 1}.0e}{' ' if error <= limit else '!'}"


def verify(ids: list[str] | None = None, seed: int = SEED) -> Report:
    """Measure every formula of the ledger, or those named.

    Returns: a report; `print` it for the table, `report.ok` says whether all hold.
    Raises: KeyError for an id that the ledger does not have.
    """
    return Report({id: measure(find(id), seed) for id in ids or LEDGER})
