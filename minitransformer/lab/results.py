"""Trials and their results: the lines of a JSONL file, and the table over seeds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.atomic import write_whole
from .grid import TF_IDF


@dataclass(frozen=True)
class Trial:
    """One training: everything that decides its result."""

    domain: str
    method: str
    """A strategy as `strategies.named` reads it, or "tf-idf"."""
    labels: int
    """Training texts."""
    seed: int
    """Of the choice of texts, the new head, their order and dropout."""
    lr: float = 0.0
    steps: int = 0
    batch_size: int = 32


@dataclass(frozen=True)
class Result:
    """What came of a trial."""

    trial: Trial
    valid_accuracy: float
    valid_loss: float
    accuracy: dict[str, float]
    """On the test part of each domain."""
    collapsed: bool
    """The model says the same to every test text of its own domain."""
    seconds: float
    trained: int = 0
    """Parameters that learn, at most at a time."""
    memory_mib: float = 0.0
    """Peak memory of the training, over that of the model at rest."""
    pairs: float = 0.0
    """`pairing_accuracy` afterwards, on the lab's unrelated texts."""
    moved: dict[str, float] | None = None


def read(path: str | Path, mend: bool = False) -> list[Result]:
    """The results in a file; none if there is no such file.

    Args:
        mend: remove a last line that was cut off in the middle of writing.

    Raises:
        ValueError: a line that is no result; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines.pop() and mend:
        write_whole(path, "".join(f"{line}\n" for line in lines).encode())
    results = []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            results.append(Result(**(fields | {"trial": Trial(**fields["trial"])})))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}: not a result of these experiments ({error}); remove the "
                "line, or give another file"
            ) from error
    return results


def by_validation(result: Result) -> tuple[float, float]:
    """What a rate is chosen by: validation accuracy, of equal ones the smaller loss."""
    return result.valid_accuracy, -result.valid_loss


Cell = tuple[str, str, int]
"""Domain, method, number of labels."""


def chosen(results: Sequence[Result]) -> dict[Cell, list[Result]]:
    """For each cell the results, one a seed, at the rate that validation chose with the first."""
    cells: dict[Cell, list[Result]] = {}
    for r in results:
        cells.setdefault((r.trial.domain, r.trial.method, r.trial.labels), []).append(r)
    for cell, members in cells.items():
        first = min(r.trial.seed for r in members)
        best = max((r for r in members if r.trial.seed == first), key=by_validation)
        cells[cell] = [r for r in members if r.trial.lr == best.trial.lr]
    return cells


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; of one value the deviation is not known."""
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return statistics.fmean(values), sd


def table(results: Sequence[Result], domain: str | None = None) -> str:
    """Mean and spread over seeds, for each domain, number of labels and method.

    Args:
        domain: whose test texts count; by default those of the domain that was trained on.
    """
    rows = [("trained on", "labels", "method", "rate", "accuracy", "collapsed", "learns", "s", "MiB",
             "pairs")]  # fmt: skip
    cells = chosen(results)
    for source, method, labels in sorted(cells, key=lambda c: (c[0], c[2])):
        members = cells[source, method, labels]
        mean, sd = mean_and_sd([r.accuracy[domain or source] for r in members])
        counted = method == TF_IDF
        rows.append((
            source, str(labels), method, "-" if counted else f"{members[0].trial.lr:.1e}",
            f"{mean:.3f}" + (f" ± {sd:.3f}" if len(members) > 1 else ""), f"{sum(r.collapsed for r in members)} of {len(members)}",
            "-" if counted else f"{members[0].trained:,}",
            f"{statistics.median(r.seconds for r in members):.1f}",
            "-" if counted else f"{statistics.median(r.memory_mib for r in members):.0f}",
            "-" if counted else f"{mean_and_sd([r.pairs for r in members])[0]:.3f}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, 2) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
