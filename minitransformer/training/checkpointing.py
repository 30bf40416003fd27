"""A run that can be stopped at any moment: its state in one file, from which it goes on bit for bit.

What the next steps depend on: the weights, AdamW's moments and its count of steps, the random
numbers of dropout, the best weights so far, the history so far, and the number of the step, which
gives the learning rate and the place in the data.

A checkpoint is written beside the last one and then takes its name: whenever the process dies, one
whole checkpoint is there. Weights and moments are in a safetensors file, never a pickle, which could
run code; the rest is JSON in its header. The history is a file of its own that only grows.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..data.atomic import write_whole
from .history import History
from .parallel import gathered, rank_and_size

FILE, HISTORY = "checkpoint.safetensors", "history.jsonl"


class Checkpoint:
    """The checkpoint of one run, in a folder. Without a folder, none: then nothing is written.

    Args:
        every: steps from one checkpoint to the next.
        resume: go on from the one that there is.
        identity: what this run is, as `identity_of` says; it goes on only from its own checkpoint.

    Raises:
        FileExistsError: there is a run, and `resume` is not said.
    """

    def __init__(
        self, folder: str | Path | None = None, every: int = 1, resume: bool = False,
        identity: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.folder = None if folder is None else Path(folder)
        self.every, self.identity = every, json.loads(json.dumps(identity))
        self.history = History()
        if every < 1:
            raise ValueError(f"checkpoint_every must be at least 1, got {every}")
        if self.folder is None:
            return
        refuse_existing(self.folder, resume)

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: object) -> None:
        if self.history.file is not None:
            with contextlib.suppress(OSError):  # each line was written when it came
                self.history.file.close()
            self.history.file = None

    def start(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, best: Any
    ) -> tuple[int, History]:
        """The step to begin with and the history so far; the state of then, if there was one.

        `best` is the `Keeper` of the best weights.

        Raises:
            ValueError: a damaged checkpoint, or that of another run; the message says what differs.
        """
        self.model, self.optimizer, self.best = model, optimizer, best
        if self.folder is None:
            return 0, self.history
        step = size = 0
        if (self.folder / FILE).exists():
            about, tensors = read(self.folder / FILE)
            refuse_other(about["identity"], self.identity, self.folder)
            self.restore(tensors)
            best.in_place, step, size = about["in_place"], about["step"], about["history_size"]
            self.history = History.read(self.folder / HISTORY, size)
            self.history.seconds = about["seconds"]
        if rank_and_size()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.history.file = open(self.folder / HISTORY, "a", encoding="utf-8", newline="\n")  # noqa: SIM115
            self.history.file.truncate(size)  # what came after the checkpoint comes again
        return step, self.history

    def write(self, step: int) -> None:
        """Keep the state after so many steps; in several processes the first one does.

        Raises:
            OSError: it could not be written; the one before is as it was.
        """
        if self.folder is None:
            return
        random_states = gathered(torch.get_rng_state())  # dropout is another in each process
        if rank_and_size()[0] > 0:
            return
        about = {
            "identity": self.identity, "step": step, "in_place": self.best.in_place,
            "seconds": self.history.seconds, "history_size": self.history.saved_size(),
        }  # fmt: skip
        tensors = {key: t.detach().contiguous() for key, t in self.state()}
        tensors["random"] = random_states
        raw = safetensors.torch.save(tensors, {"run": json.dumps(about)})
        path = self.folder / FILE
        before = "the one before is as it was" if path.exists() else "there is none before it"
        try:
            write_whole(path, raw)
        except OSError as error:
            raise OSError(
                f"{path} of {len(raw) / 2**20:,.1f} MiB could not be written "
                f"({error.strerror or error}); {before}: make room, and go on with resume=True (on the "
                "command line --resume)"
            ) from error

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the run, by kind and name."""
        for name, tensor in weights_of(self.model).items():
            yield f"model/{name}", tensor
        for name, tensor in self.best.copies.items():
            yield f"best/{name}", tensor
        for name, parameter in self.model.named_parameters():
            for kind, tensor in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer/{kind}/{name}", tensor

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The opposite of `state`, and the random numbers."""
        weights = weights_of(self.model)
        mine = tensors.pop("random")[rank_and_size()[0]]
        torch.set_rng_state(mine.clone())  # torch reads a row of a larger tensor at the wrong place
        for key, tensor in tensors.items():
            kind, name = key.split("/", 1)
            if kind == "model":
                weights[name].copy_(tensor)
            elif kind == "best":
                self.best.copies[name] = tensor
            else:
                moment, name = name.split("/", 1)
                self.optimizer.state[self.model.get_parameter(name)][moment] = tensor


def refuse_existing(folder: Path, resume: bool) -> None:
    """Do not overwrite a run. The first process looks: a slower one would find what that has begun.

    Raises:
        FileExistsError: there is one, and `resume` is not said.
    """
    found = [name for name in (FILE, HISTORY) if (folder / name).exists()]
    if found and not resume and rank_and_size()[0] == 0:
        raise FileExistsError(
            f"{folder} holds a run already ({', '.join(found)}); go on with it (resume=True; on the "
            "command line --resume), or choose another folder"
        )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's header and tensors.

    Raises:
        ValueError: not a checkpoint, or a damaged one.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["run"])
            return about, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error!r}); remove it and {HISTORY} to start afresh"
        ) from error


def identity_of(model: nn.Module, recipe: Any, **others: Any) -> dict[str, Any]:
    """What decides a run's result, by names for messages: a run goes on only as what it was."""
    config = getattr(model, "config", None)
    switches = asdict(config) if is_dataclass(config) else {}  # type: ignore[arg-type]
    return {
        **{f"the model's {name}": value for name, value in switches.items()},
        **{f"the shape of {name}": list(t.shape) for name, t in weights_of(model).items()},
        **asdict(recipe),
        **others,
        "processes": rank_and_size()[1],
    }


def digest(data: Any) -> str:
    """How many examples there are and a hash of all of them."""
    sha = hashlib.sha256()
    for batch in data.batches(64):
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                sha.update(value.contiguous().numpy().tobytes())
    return f"{len(data)} examples, hash {sha.hexdigest()[:12]}"


def refuse_other(then: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Do not go on with another run.

    Raises:
        ValueError: they differ; the message says in what.
    """
    names = [name for name in then | now if then.get(name) != now.get(name)]
    if names:
        shown = [f"{name} {then.get(name)}, now {now.get(name)}" for name in names[:6]]
        shown += [f"and {len(names) - 6} more"] * (len(names) > 6)
        raise ValueError(
            f"{where} is the checkpoint of another run: it had {'; '.join(shown)}. Give what it had, "
            "or choose another folder"
        )
