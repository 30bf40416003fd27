"""Trials and their results: the lines of a JSONL file, and the table over seeds."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.atomic import write_whole
from .grid import TF_IDF

START = b'{"trial"'
"""How the line of a result begins."""


@dataclass(frozen=True)
class Trial:
    """One training: everything that decides its result."""

    domain: str
    method: str
    """A strategy as `strategies.named` reads it, or "tf-idf"."""
    labels: int
    """The number of training texts."""
    seed: int
    """Of the choice of texts, the new head, the order of the texts and dropout."""
    lr: float = 0.0
    steps: int = 0
    batch_size: int = 32
    basis: str = ""
    """A hash of the rest: model, tokenizer, pooling, precision, and all texts with their labels."""


@dataclass(frozen=True)
class Result:
    """The outcome of a trial."""

    trial: Trial
    valid_accuracy: float
    valid_loss: float
    accuracy: dict[str, float]
    """On the test part of each domain."""
    collapsed: bool
    """The model gives every test text of its own domain the same label."""
    seconds: float
    trained: int = 0
    """The largest number of parameters that learn at the same time."""
    memory_mib: float = 0.0
    """Peak memory of the training, above that of the model at rest."""
    pairs: float = 0.0
    """`pairing_accuracy` afterwards, on the lab's unrelated texts."""
    moved: dict[str, float] | None = None


def read(path: str | Path, mend: bool = False) -> list[Result]:
    """The results in a file; none if there is no such file.

    A last line that was cut off in the middle of writing is passed over.

    Args:
        mend: remove that line from the file, once it is clear that all others are results.

    Raises: ValueError: a line that is no result; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    raw, whole, results = path.read_bytes(), b"", []
    for number, line in enumerate(raw.splitlines(keepends=True), 1):
        try:
            fields = json.loads(line)
            results.append(Result(**(fields | {"trial": Trial(**fields["trial"])})))
        except (ValueError, TypeError, KeyError) as error:
            ends = line.endswith(b"\n") or not isinstance(error, json.JSONDecodeError)
            if not ends and (line.startswith(START) or START.startswith(line)):
                break
            raise ValueError(
                f"{path}, line {number}: not a result of these experiments ({error}); remove the "
                "line, or give another file"
            ) from error
        whole += line if line.endswith(b"\n") else line + b"\n"
    if mend and whole != raw:
        write_whole(path, whole)
    return results


def by_validation(result: Result) -> tuple[float, float]:
    """How rates are compared: by validation accuracy; at equal accuracy by the smaller loss."""
    return result.valid_accuracy, -result.valid_loss


def chosen(results: Sequence[Result]) -> dict[tuple[str, str, int], list[Result]]:
    """For each (domain, method, labels) one result per seed, at the rate chosen with the first.

    Of results with another basis, other steps or another batch size, only the last kind counts.
    """
    cells: dict[tuple[str, str, int], list[Result]] = {}
    for r in results:
        cells.setdefault((r.trial.domain, r.trial.method, r.trial.labels), []).append(r)
    for cell, members in cells.items():
        members = [r for r in members if kind(r) == kind(members[-1])]
        first = min(r.trial.seed for r in members)
        best = max((r for r in members if r.trial.seed == first), key=by_validation)
        cells[cell] = [r for r in members if r.trial.lr == best.trial.lr]
    return cells


def kind(result: Result) -> tuple[str, int, int]:
    """What the results of several seeds must have in common."""
    return result.trial.basis, result.trial.steps, result.trial.batch_size


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds; the deviation of a single value is not a number."""
    sd = statistics.stdev(values) if len(values) > 1 else float("nan")
    return statistics.fmean(values), sd


def table(results: Sequence[Result]) -> str:
    """Mean and spread over seeds, for each domain, number of labels and method."""
    header = "trained on,labels,method,rate,accuracy,collapsed,learns,s,MiB,pairs"
    rows = [header.split(",")]
    cells = sorted(chosen(results).items(), key=lambda cell: (cell[0][0], cell[0][2]))
    for (domain, method, labels), members in cells:
        mean, sd = mean_and_sd([r.accuracy[domain] for r in members])
        rows.append([
            domain, str(labels), method, f"{members[0].trial.lr:.1e}",
            f"{mean:.3f}" + (f" ± {sd:.3f}" if len(members) > 1 else ""),
            f"{sum(r.collapsed for r in members)} of {len(members)}", f"{members[0].trained:,}",
            f"{statistics.median(r.seconds for r in members):.1f}",
            f"{statistics.median(r.memory_mib for r in members):.0f}",
            f"{statistics.fmean(r.pairs for r in members):.3f}",
        ])  # fmt: skip
        if method == TF_IDF:  # it has no rate, and nothing of the model learns
            rows[-1] = [cell if i not in (3, 6, 8, 9) else "-" for i, cell in enumerate(rows[-1])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{'<' if i in (0, 2) else '>'}{w}}}" for i, w in enumerate(widths))
    return "\n".join(line.format(*row).rstrip() for row in rows)
