"""A run that can be stopped at any moment: its state in one file, from which it resumes bit for bit.

The next steps depend on the weights (present and best), AdamW's moments and step counts, the random
numbers of dropout, the history, and the number of the step, which gives the learning rate and the
position in the data.

A checkpoint is written beside the previous one and then takes its name, so one whole checkpoint
exists whenever the process dies. It is a safetensors file, not a pickle, which could run code. The
history is a separate file that only grows.
"""

import hashlib
import json
from collections.abc import Mapping
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
from .strategies import check_at_least_1

FILE, HISTORY = "checkpoint.safetensors", "history.jsonl"


class Checkpoint:
    """The checkpoint of one run, in a folder.

    It is written every `every` steps. With `resume` the run continues from the checkpoint in the
    folder, if there is one and it belongs to the same `run`, as `described` tells.
    """

    def __init__(self, folder: str | Path, every: int, resume: bool, run: Mapping[str, Any]):
        self.folder, self.every, self.run, self.history = Path(folder), every, run, History()
        check_at_least_1(checkpoint_every=every)
        refuse_existing(self.folder, resume)

    def start(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, best: Any
    ) -> tuple[int, History]:
        """Restore the state, if there is one; (first step, history). `best` keeps the best weights."""
        self.model, self.optimizer, self.best = model, optimizer, best
        run = identity_of(model) | dict(self.run)
        self.identity = json.loads(json.dumps(run))  # as a file has it
        step = size = 0
        if (self.folder / FILE).exists():
            about, tensors = read(self.folder / FILE)
            refuse_other(about["identity"], self.identity, self.folder)
            best.in_place, step, size = about["in_place"], about["step"], about["history_size"]
            self.history = History.read(self.folder / HISTORY, size, about.get("history_hash"))
            self.history.seconds = about["seconds"]
            self.restore(tensors)
        if rank_and_size()[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.history.open(self.folder / HISTORY, size)  # what came after it will come again
        return step, self.history

    def write(self, step: int) -> None:
        """Save the state after this many steps; of several processes the first one writes."""
        random_states = gathered(torch.get_rng_state())  # each process draws its own dropout
        if rank_and_size()[0] > 0:
            return
        about = {
            "identity": self.identity, "step": step, "in_place": self.best.in_place,
            "seconds": self.history.seconds, "history_size": self.history.saved_size(),
            "history_hash": self.history.hash.hexdigest(),
        }  # fmt: skip
        tensors = {key: t.detach().contiguous() for key, t in self.state().items()}
        tensors["random"] = random_states
        about["checksum"] = checksum(about, tensors)
        raw = safetensors.torch.save(tensors, {"run": json.dumps(about)})
        path = self.folder / FILE
        before = "the previous one is unchanged" if path.exists() else "there was none before it"
        try:
            write_whole(path, raw)
        except OSError as error:
            raise OSError(
                f"{path} of {len(raw) / 2**20:,.1f} MiB could not be written "
                f"({error.strerror or error}); {before}: make room, then continue with resume=True "
                "(on the command line --resume)"
            ) from error

    def state(self) -> dict[str, Tensor]:
        """The tensors of the run, by kind and name."""
        tensors = {f"model/{name}": tensor for name, tensor in weights_of(self.model).items()}
        tensors |= {f"best/{name}": copy for name, copy in self.best.copies.items()}
        for name, parameter in self.model.named_parameters():
            for kind, moment in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{kind}/{name}"] = moment
        return tensors

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
    """Do not overwrite a run. Only the first process looks: a later one would see its new files."""
    found = [name for name in (FILE, HISTORY) if (folder / name).exists()]
    if found and not resume and rank_and_size()[0] == 0:
        raise FileExistsError(
            f"{folder} holds a run already ({', '.join(found)}); continue it (resume=True; on the "
            "command line --resume), or choose another folder"
        )


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A checkpoint's header and tensors."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["run"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if about.pop("checksum") != checksum(about, tensors):
            raise ValueError("its content has changed")
        return about, tensors
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({error!r}); remove it and {HISTORY} to start afresh"
        ) from error


def checksum(about: Any, tensors: Mapping[str, Tensor]) -> str:
    """A hash of tensors, and of what is written beside them."""
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for key in sorted(tensors):
        raw = tensors[key].detach().contiguous().reshape(-1).view(torch.uint8)
        sha.update(key.encode() + raw.numpy().tobytes())
    return sha.hexdigest()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def identity_of(model: nn.Module) -> dict[str, Any]:
    """The model's part in what a run is: its switches and shapes, by names for messages."""
    config = getattr(model, "config", None)
    switches = asdict(config) if is_dataclass(config) else {}  # type: ignore[arg-type]
    shapes: dict[str, Any] = {
        f"the shape of {name}": list(t.shape) for name, t in weights_of(model).items()
    }
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    shapes |= {"the frozen parameters": frozen} if frozen else {}
    return {f"the model's {name}": value for name, value in switches.items()} | shapes


def described(recipe: Any, strategy: Any, objective: Any, train: Any, valid: Any) -> dict[str, Any]:
    """Everything besides the model that decides a run's result, by names for messages."""
    return asdict(recipe) | {
        "strategy": repr(strategy),
        "objective": getattr(objective, "__name__", type(objective).__name__),
        "train": digest(train),
        "valid": digest(valid),
        "processes": rank_and_size()[1],
    }


def digest(data: Any) -> str:
    """The number of examples, and a hash of all of them."""
    sha = hashlib.sha256()
    for batch in data.batches(64):
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                sha.update(value.contiguous().numpy().tobytes())
    return f"{len(data)} examples, hash {sha.hexdigest()[:12]}"


def refuse_other(then: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """Do not resume from another run's checkpoint; the message says what differs."""
    if names := [name for name in then | now if then.get(name) != now.get(name)]:
        shown = [f"{name} {then.get(name)}, now {now.get(name)}" for name in names[:6]]
        shown += [f"and {len(names) - 6} more"] * (len(names) > 6)
        raise ValueError(
            f"{where} is the checkpoint of another run: it had {'; '.join(shown)}. Use the same "
            "settings, or choose another folder"
        )
