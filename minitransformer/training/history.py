"""What happened in a run: in memory, and line by line in a file."""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, TextIO

Entry = dict[str, int | float]


@dataclass
class History:
    """What happened: one entry per step, and one per validation."""

    steps: list[Entry] = field(default_factory=list)
    validations: list[Entry] = field(default_factory=list)
    best: Entry = field(default_factory=dict)
    """The validation whose weights were kept."""
    seconds: float = 0.0
    file: TextIO | None = field(default=None, compare=False)
    """Where each entry is also written, at once, as a line of JSON."""
    hash: Any = field(default_factory=hashlib.sha256, compare=False, repr=False)
    """Of what the file has."""

    def __repr__(self) -> str:
        return "\n".join(
            f"epoch {round(e['epoch'], 2):g}: training loss {e['loss']:.3f}, validation loss "
            f"{e['valid_loss']:.3f}"
            + (f", accuracy {e['valid_accuracy']:.3f}" if "valid_accuracy" in e else "")
            + "  <- kept" * (e is self.best)
            for e in self.validations
        )

    def add(self, entry: Entry) -> bool:
        """Append a step, or a validation, which has a `valid_loss`; True for the best one so far."""
        if self.file is not None:
            line = json.dumps(entry) + "\n"
            self.hash.update(line.encode())
            try:
                self.file.write(line)
                self.file.flush()
            except OSError as error:
                raise OSError(
                    f"{self.file.name} could not be written ({error.strerror or error}); make room, "
                    "then continue with resume=True (on the command line --resume)"
                ) from error
        if "valid_loss" not in entry:
            self.steps.append(entry)
            return False
        self.validations.append(entry)
        if self.best and score(entry) <= score(self.best):
            return False
        self.best = entry
        return True

    def recent_loss(self) -> float:
        """The mean loss of the steps since the last validation."""
        since = int(self.validations[-1]["step"]) if self.validations else 0
        losses = [s["loss"] for s in self.steps[since:]]
        return sum(losses) / len(losses)

    @classmethod
    def read(
        cls, path: str | Path, size: int | None = None, digest: str | None = None
    ) -> "History":
        """The history in a run's file, even while the run is going on.

        It reads the first `size` bytes, the file's size at a checkpoint; by default all whole lines.
        Raises ValueError for a line that is no entry, for fewer bytes than `size`, and for another
        hash than `digest`.
        """
        again = (
            "put back the file that belongs to the checkpoint, or start afresh in another folder"
        )
        try:
            raw = Path(path).read_bytes()[:size]
        except FileNotFoundError:
            raise ValueError(f"{path} is missing; {again}") from None
        if size is not None and len(raw) < size:
            raise ValueError(
                f"{path} has {len(raw)} bytes, at the checkpoint it had {size}; {again}"
            )
        history = cls()
        history.hash.update(raw)
        if digest not in (None, history.hash.hexdigest()):
            raise ValueError(f"{path} is damaged: it has changed since the checkpoint; {again}")
        *lines, rest = raw.split(b"\n")  # the last line may be half written
        for number, line in enumerate([*lines, *[rest] * (b"\0" in rest)], 1):
            try:
                entry = json.loads(line)
                entry["step"], entry["loss"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not an entry of a history") from error
            history.add(entry)
        return history

    def open(self, path: Path, size: int) -> None:
        """Write all further entries to this file too, after its first `size` bytes."""
        self.file = open(path, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
        self.file.truncate(size)

    def close(self) -> None:
        """Write to no file any more."""
        if self.file is not None:
            with contextlib.suppress(OSError):  # each line was written when it came
                self.file.close()
            self.file = None

    def saved_size(self) -> int:
        """The size of the file in bytes, once all of them are on the disk."""
        assert self.file is not None
        self.file.flush()
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def plot(self, ax: Any = None) -> Any:
        """Loss by step (smoothed over its neighbours), and every validation loss."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(6, 4), dpi=100)[1]
        at, losses = [s["step"] for s in self.steps], [s["loss"] for s in self.steps]
        width = max(1, len(losses) // 25)
        smooth = [fmean(losses[max(0, i - width) : i + width + 1]) for i in range(len(losses))]
        ax.plot(at, losses, color="C0", alpha=0.25, linewidth=0.8)
        ax.plot(at, smooth, color="C0", label="training loss")
        ends = [e["step"] for e in self.validations]
        valid = [e["valid_loss"] for e in self.validations]
        ax.plot(ends, valid, "o-", color="C1", label="validation loss")
        for e in self.validations:
            if "valid_accuracy" in e:
                ax.annotate(
                    f"{e['valid_accuracy']:.1%}", (e["step"], e["valid_loss"]),
                    textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8, color="C1",
                )  # fmt: skip
        ax.set(xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
        ax.legend(frameon=False)
        return ax


def score(entry: Entry) -> tuple[float, float]:
    """What makes a validation better: a higher accuracy; at equal accuracy a smaller loss."""
    return entry.get("valid_accuracy", 0.0), -entry["valid_loss"]
