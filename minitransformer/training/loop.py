"""One loop: batches train a model, validation keeps the best."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .layers import Layer
from .optim import make_adamw, warmup_then_linear
from .precision import Precision, matmul_precision
from .strategies import Progress, Strategy

Entry = dict[str, int | float]


@runtime_checkable
class Data(Protocol):
    """What can be trained on: `EncodedTexts`, `EncodedPairs`, and whatever else makes batches."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, seed: int | None = None) -> Iterator[Any]:
        """All examples once, in an order that follows the seed; a batch has a length."""
        ...


@dataclass
class History:
    """What happened: one entry a step, one a validation."""

    steps: list[Entry] = field(default_factory=list)
    validations: list[Entry] = field(default_factory=list)
    best: Entry = field(default_factory=dict)
    """The validation whose weights were kept."""
    seconds: float = 0.0

    def __repr__(self) -> str:
        return "\n".join(
            f"epoch {round(e['epoch'], 2):g}: training loss {e['loss']:.3f}, validation loss "
            f"{e['valid_loss']:.3f}"
            + (f", accuracy {e['valid_accuracy']:.3f}" if "valid_accuracy" in e else "")
            + "  <- kept" * (e is self.best)
            for e in self.validations
        )

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


def fit(
    model: nn.Module,
    train: Data,
    layers: list[Layer],
    loss_of: Callable[[Any], Tensor],
    validate: Callable[[], Entry],
    strategy: Strategy,
    *,
    steps: int,
    validate_every: int,
    lr: float,
    batch_size: int,
    warmup: float,
    weight_decay: float,
    clip: float,
    seed: int,
    precision: Precision,
    progress: bool,
    on_freeze: Callable[[int], None] = lambda n_layers: None,
) -> History:
    """Train for so many steps, validate now and then, and leave the model as it was at its best.

    Args:
        loss_of: the loss of a batch, a tensor with a gradient.
        validate: the loss on unseen data, and the accuracy if there is one, which then decides
            what is best.
        on_freeze: told how many layers at the bottom are frozen, whenever that changes.

    The other arguments are explained at `finetune`, which calls this with its defaults.

    Raises:
        FloatingPointError: the loss is no longer a number.
        ValueError: the strategy trains nothing.
    """
    history, best, rates, losses = History(), Keeper(model), None, []
    optimizer, start = make_adamw(layers, weight_decay), time.perf_counter()
    per_epoch = -(-len(train) // batch_size)
    bar = tqdm(total=steps * batch_size, unit=" examples", disable=not progress)
    try:
        with bar, reproducible(seed):
            for step, epoch, batch in endless(train, batch_size, steps, seed):
                now = strategy.rates(len(layers), Progress(step, steps, epoch))
                if now != rates:
                    set_trainable(model, layers, now, strategy)
                    if rates is None or leading_zeros(now) != leading_zeros(rates):
                        on_freeze(leading_zeros(now))
                    best.watch()
                    rates = now
                factor = lr * warmup_then_linear(step, steps, warmup)
                for group in optimizer.param_groups:
                    group["lr"] = factor * rates[group["layer"]]
                with matmul_precision(precision):
                    loss = loss_of(batch)
                    loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()

                losses.append(loss.item())
                refuse_nan(losses[-1], step, factor)
                history.steps.append({"step": step, "loss": losses[-1], "lr": factor})
                bar.update(len(batch))
                bar.set_postfix_str(f"step {step + 1}/{steps}, loss {losses[-1]:.3f}")
                if (step + 1) % validate_every and step + 1 < steps:
                    continue
                entry: Entry = {"step": step + 1, "epoch": (step + 1) / per_epoch}
                entry["loss"] = sum(losses) / len(losses)
                entry |= {f"valid_{name}": value for name, value in validate().items()}
                losses = []
                refuse_nan(entry["valid_loss"], step + 1, factor)  # the last step may have done it
                history.validations.append(entry)
                if not history.best or score(entry) > score(history.best):
                    history.best = entry
                    best.keep(last=step + 1 == steps)
        best.put_back()
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.eval()
    history.seconds = time.perf_counter() - start
    return history


def endless(data: Data, batch_size: int, steps: int, seed: int) -> Iterator[tuple[int, int, Any]]:
    """(step, epoch, batch) for so many steps, each epoch in an order of its own."""
    epochs = ((e, b) for e in count() for b in data.batches(batch_size, seed=seed * 1000 + e))
    for step, (epoch, batch) in zip(range(steps), epochs, strict=False):
        yield step, epoch, batch


def leading_zeros(rates: list[float]) -> int:
    """The number of frozen layers at the bottom."""
    return next(i for i, rate in enumerate([*rates, 1.0]) if rate)


def set_trainable(
    model: nn.Module, layers: list[Layer], rates: list[float], strategy: Strategy
) -> None:
    """Frozen layers get no gradients and stay in evaluation mode: no dropout on fixed features.

    Raises:
        ValueError: nothing is left to train.
    """
    if not any(rates):
        raise ValueError(f"{strategy} freezes every layer: nothing would learn")
    names = {parameter: name for name, parameter in model.named_parameters()}
    model.train().requires_grad_(False)
    for layer, rate in zip(layers, rates, strict=True):
        for module in layer.modules:
            module.train(rate > 0)
            for parameter in module.parameters():
                chosen = layer is layers[-1] or strategy.learns(names[parameter])
                parameter.requires_grad_(rate > 0 and chosen)


class Keeper:
    """A copy of the best weights, of what learns only: the rest is where it was."""

    def __init__(self, model: nn.Module):
        self.model, self.copies = model, dict[str, Tensor]()
        self.in_place = True
        """The best weights are those that the model has."""

    def watch(self) -> None:
        """Copy what is about to learn for the first time: at the best so far it had this value."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and name not in self.copies:
                self.copies[name] = parameter.detach().clone()

    @torch.no_grad()
    def keep(self, last: bool = False) -> None:
        """The weights of now are the best; those of the last step need no copy."""
        self.in_place = last
        if not last:
            for name, copy in self.copies.items():
                copy.copy_(self.model.get_parameter(name))

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the model its best weights."""
        if not self.in_place:
            for name, copy in self.copies.items():
                self.model.get_parameter(name).copy_(copy)


def score(entry: Entry) -> tuple[float, float]:
    """What is better: accuracy first, of equal ones the smaller loss."""
    return entry.get("valid_accuracy", 0.0), -entry["valid_loss"]


def refuse_nan(loss: float, step: int, rate: float) -> None:
    """Stop when there is nothing left to train."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step} (learning rate {rate:.1e}); try a lower learning rate "
            "or a longer warm-up"
        )


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Random numbers from this seed inside, and the caller's untouched outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
