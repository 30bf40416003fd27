"""What happened in a run: in memory, and line by line in a file."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

Entry = dict[str, int | float]


@dataclass
class History:
    """What happened: one entry a step, one a validation."""

    steps: list[Entry] = field(default_factory=list)
    validations: list[Entry] = field(default_factory=list)
    best: Entry = field(default_factory=dict)
    """The validation whose weights were kept."""
    seconds: float = 0.0
    file: TextIO | None = field(default=None, compare=False)
    """Where each entry is also written, at once, as a line of JSON."""

    def __repr__(self) -> str:
        return "\n".join(
            f"epoch {round(e['epoch'], 2):g}: training loss {e['loss']:.3f}, validation loss "
            f"{e['valid_loss']:.3f}"
            + (f", accuracy {e['valid_accuracy']:.3f}" if "valid_accuracy" in e else "")
            + "  <- kept" * (e is self.best)
            for e in self.validations
        )

    def add(self, entry: Entry) -> bool:
        """Append a step, or a validation, which has a `valid_loss`; whether it is the best so far.

        Raises:
            OSError: the file could not be written.
        """
        if self.file is not None:
            try:
                self.file.write(json.dumps(entry) + "\n")
                self.file.flush()
            except OSError as error:
                raise OSError(
                    f"{self.file.name} could not be written ({error.strerror or error}); make room, "
                    "and go on with resume=True (on the command line --resume)"
                ) from error
        if "valid_loss" not in entry:
            self.steps.append(entry)
            return False
        self.validations.append(entry)
        better = not self.best or score(entry) > score(self.best)
        if better:
            self.best = entry
        return better

    def recent_loss(self) -> float:
        """The mean loss of the steps since the last validation."""
        since = int(self.validations[-1]["step"]) if self.validations else 0
        losses = [s["loss"] for s in self.steps[since:]]
        return sum(losses) / len(losses)

    @classmethod
    def read(cls, path: str | Path, size: int | None = None) -> "History":
        """The history that a run writes to its file, also while it runs.

        Args:
            size: read so many bytes, those that there were at a checkpoint; all when not given, but
                for a last line that is not finished yet.

        Raises:
            ValueError: a line that is no entry, or fewer bytes than `size`.
        """
        raw = Path(path).read_bytes()[:size]
        if size is not None and len(raw) < size:
            raise ValueError(
                f"{path} has {len(raw)} bytes, at the checkpoint it had {size}; put back the file "
                "that belongs to the checkpoint, or start afresh in another folder"
            )
        history = cls()
        for number, line in enumerate(raw.decode().split("\n")[:-1], 1):
            try:
                entry = json.loads(line)
                entry["step"], entry["loss"]
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not an entry of a history") from error
            history.add(entry)
        return history

    def saved_size(self) -> int:
        """The bytes of the file, when they have all reached the disk."""
        assert self.file is not None
        self.file.flush()
        os.fsync(self.file.fileno())
        return os.fstat(self.file.fileno()).st_size

    def plot(self, ax: Any = None) -> Any:
        """Loss by step (smoothed over its neighbours), and every validation loss."""
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(6, 4), dpi=100)
        at, losses = [s["step"] for s in self.steps], [s["loss"] for s in self.steps]
        width = max(1, len(losses) // 25)
        smooth = [
            sum(losses[max(0, i - width) : i + width + 1])
            / len(losses[max(0, i - width) : i + width + 1])
            for i in range(len(losses))
        ]
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
    """What is better: accuracy first, of equal ones the smaller loss."""
    return entry.get("valid_accuracy", 0.0), -entry["valid_loss"]
