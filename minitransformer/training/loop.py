"""One loop: batches train a model, validation keeps the best."""

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import count, islice
from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..options import Number, Precision, check_numbers
from ..progress import progress_bar
from . import lora
from .checkpointing import Checkpoint
from .history import Entry, History
from .optim import SCHEDULES, make_adamw
from .parallel import LossOfPart, backward, rank_and_size, shared
from .precision import matmul_precision
from .strategies import Layer, Progress, Strategy, layers_of


@runtime_checkable
class Data(Protocol):
    """Anything to train on: `EncodedTexts`, `EncodedPairs`, and whatever else makes batches."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Any]:
        """All examples once, in ceil(len / batch_size) batches that depend on the seed alone."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of a run; `finetune` and `pretrain` explain them."""

    steps: int
    validate_every: int
    lr: Number
    batch_size: int
    warmup: Number
    weight_decay: Number
    clip: Number
    seed: int
    precision: Precision
    schedule: str = "linear"
    accumulate: int = 1

    def __post_init__(self):
        check_numbers(**vars(self))
        if self.warmup > max(1, self.steps):
            raise ValueError(
                f"warmup={self.warmup:g} steps are more than the run's {self.steps}; give fewer, or a "
                "share of the steps such as 0.1"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule={self.schedule!r} is not known; choose one of {', '.join(SCHEDULES)}"
            )

    @classmethod
    def of(
        cls, train: Data, epochs: Number, steps: int | None, validate_every: int | None,
        by_epoch: bool, **numbers: Any,
    ) -> "Recipe":  # fmt: skip
        """Count the steps, and validate ten times when not told; `by_epoch`, at most once an epoch."""
        check_numbers(epochs=epochs, steps=steps, validate_every=validate_every, **numbers)
        per_epoch = steps_per_epoch(train, numbers["batch_size"])
        total = max(1, round(epochs * per_epoch)) if steps is None else steps
        every = -(-total // 10)
        if by_epoch:
            every = per_epoch if steps is None else max(per_epoch, every)
        return cls(steps=total, validate_every=validate_every or every, **numbers)

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        # a warm-up in steps becomes a share, which the schedule rounds up to steps again
        share = float(self.warmup if self.warmup < 1 else (self.warmup - 0.5) / self.steps)
        return self.lr * SCHEDULES[self.schedule](step, self.steps, share)


def steps_per_epoch(data: Data, batch_size: int) -> int:
    """The number of batches that hold all examples once."""
    return -(-len(data) // batch_size)


def fit(
    model: nn.Module, train: Data, loss_of: Callable[[Any], Tensor], validate: Callable[[], Entry],
    strategy: Strategy, recipe: Recipe, *, progress: bool,
    on_freeze: Callable[[int], None] = lambda n_layers: None,
    n_targets: Callable[[Any], int] = attrgetter("n_targets"),
    checkpoint: Checkpoint | None = None,
) -> History:  # fmt: skip
    """Train as the strategy and the recipe say; on return the model has its best weights.

    Of several processes (`parallel`) each works on its part of every batch; the rest they all do.

    Args:
        loss_of: the mean loss of a batch over its targets, a tensor with a gradient.
        validate: the loss on unseen data; if it gives an accuracy too, that decides what is best.
        on_freeze: called with the number of frozen layers at the bottom in each phase.
        n_targets: the number of targets over which a batch's loss is the mean.
        checkpoint: where the run is saved and resumes.

    Parameters that the caller froze (`requires_grad=False`) stay as they are, whatever the strategy.

    Raises: as `pretrain`; ValueError for a strategy that trains nothing, or weights of 16 bits.
    """
    steps, (rank, _) = recipe.steps, rank_and_size()
    fixed = {p for p in model.parameters() if not p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(
                f"{name} is {parameter.dtype}, too coarse for the small changes of a step; call "
                'model.float() first: precision="bfloat16" multiplies in 16 bits all the same'
            )
    silent = not progress or rank > 0
    with (
        strategy.applied(model, recipe.seed),
        contextlib.ExitStack() as afterwards,
        progress_bar(steps * recipe.batch_size, " examples", not silent) as bar,
        reproducible(recipe.seed + rank),
    ):
        afterwards.callback(give_back, model, fixed)  # however training ends
        fixed |= lora.of_frozen(model, fixed)
        layers, best = layers_of(model), Keeper(model)
        optimizer = make_adamw(layers, recipe.weight_decay)
        weights = list(model.parameters())  # to find them in every step takes longer than clipping
        first, history = checkpoint.start(model, optimizer, best) if checkpoint else (0, History())
        afterwards.enter_context(best_after_nan(best, history))
        afterwards.callback(history.close)
        start = time.perf_counter() - history.seconds
        bar.n = bar.initial = first * recipe.batch_size

        def phase(rates: list[float]) -> nn.Module:
            """Freeze and thaw; then, in this order, tell everything that depends on it."""
            rates = set_trainable(model, layers, rates, strategy, fixed)
            on_freeze([*map(bool, rates), True].index(True))
            best.watch()
            return shared(LossOfPart(model, loss_of, n_targets))

        rates: list[float] = []
        for step, epoch, batch in endless(train, recipe, first):
            if (now := strategy.rates(len(layers), Progress(step, steps, epoch))) != rates:
                rates, loss_of_part = now, phase(now)
            lr = recipe.rate(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * rates[group["layer"]]
            with matmul_precision(recipe.precision):
                loss = backward(loss_of_part, batch, n_targets, recipe.accumulate)
            refuse_nan(loss, step, lr)
            nn.utils.clip_grad_norm_(weights, recipe.clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()

            done, last = step + 1, step + 1 == steps
            history.add({"step": step, "loss": loss, "lr": lr})
            if last:
                bar.total = bar.n + len(batch)  # an epoch's last batch may be smaller
            bar.set_postfix_str(f"step {done}/{steps}, loss {loss:.3f}", refresh=False)
            bar.update(len(batch))
            if last or done % recipe.validate_every == 0:
                passed = done / steps_per_epoch(train, recipe.batch_size)
                entry = {"step": done, "epoch": passed, "loss": history.recent_loss()}
                entry |= {f"valid_{name}": value for name, value in validate().items()}
                refuse_nan(entry["valid_loss"], done, lr)  # the last step may have caused it
                if history.add(entry):
                    best.keep(last)
            history.seconds = time.perf_counter() - start
            if checkpoint and (last or done % checkpoint.every == 0):
                checkpoint.write(done)
        best.put_back()
    return history


def endless(data: Data, recipe: Recipe, first: int = 0) -> Iterator[tuple[int, int, Any]]:
    """(step, epoch, batch) from the `first` step to the last; each epoch has its own order."""
    epoch, passed = divmod(first, steps_per_epoch(data, recipe.batch_size))
    epochs = (
        (e, b)
        for e in count(epoch)
        for b in data.batches(recipe.batch_size, seed=recipe.seed * 1000 + e)
    )
    todo = islice(epochs, passed, passed + recipe.steps - first)
    for step, (e, batch) in enumerate(todo, first):
        yield step, e, batch


def set_trainable(
    model: nn.Module, layers: list[Layer], rates: list[float], strategy: Strategy,
    fixed: Collection[nn.Parameter] = (),
) -> list[float]:  # fmt: skip
    """Freeze and thaw; returns the rates, 0 for a layer that is `fixed` as a whole.

    Frozen layers get no gradients and stay in evaluation mode: no dropout on fixed features.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    model.train().requires_grad_(False)
    learning = []
    for layer, rate in zip(layers, rates, strict=True):
        free = [p for module in layer.modules for p in module.parameters() if p not in fixed]
        learning.append(rate if free else 0.0)
        for module in layer.modules:
            module.train(learning[-1] > 0)
        for parameter in free:
            chosen = layer is layers[-1] or strategy.learns(names[parameter])
            parameter.requires_grad_(rate > 0 and chosen)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(
            f"nothing would learn: {strategy} freezes it, or you did (requires_grad=False); thaw it with "
            "requires_grad_(True)"
        )
    return learning


def give_back(model: nn.Module, fixed: Collection[nn.Parameter]) -> None:
    """Leave the model in evaluation mode, and frozen where it was before."""
    model.requires_grad_(True).eval()
    for parameter in fixed:
        parameter.requires_grad_(False)


class Keeper:
    """Copies of the best weights, for trainable parameters only; the others never change."""

    def __init__(self, model: nn.Module):
        self.model, self.copies = model, dict[str, Tensor]()
        self.in_place = True
        """The best weights are those that the model has now."""

    def watch(self) -> None:
        """Copy what is about to learn for the first time: at the best so far it had this value."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in self.copies:
                self.copies[name] = parameter.detach().clone()

    @torch.no_grad()
    def keep(self, last: bool) -> None:
        """The present weights are the best; those of the last step need no copy."""
        self.in_place = last
        if not last:
            for name, copy in self.copies.items():
                copy.copy_(self.model.get_parameter(name))

    @torch.no_grad()
    def put_back(self, failed: bool = False) -> None:
        """Give the model its best weights; if training `failed`, none of the present ones are."""
        if failed or not self.in_place:
            for name, copy in self.copies.items():
                self.model.get_parameter(name).copy_(copy)


def refuse_nan(loss: float, step: int, rate: float) -> None:
    """Stop when the loss is no longer finite."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step} (learning rate {rate:.1e}); try a lower learning rate "
            "or a longer warm-up"
        )


@contextlib.contextmanager
def best_after_nan(best: Keeper, history: History) -> Iterator[None]:
    """When the loss is no longer finite, the model gets its best weights so far, and is said to."""
    try:
        yield
    except FloatingPointError as error:
        best.put_back(failed=True)
        which = f"those of step {history.best['step']}" if history.best else "those it began with"
        message = f"{error}; the model has its best weights so far again, {which}"
        raise FloatingPointError(message) from None


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Inside, random numbers follow from this seed; outside, the caller's are untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
