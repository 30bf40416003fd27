"""One loop: batches train a model, validation keeps the best."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.batches import Batch, EncodedTexts
from ..model.heads import SequenceClassifier
from .evaluate import Metrics, evaluate
from .optim import make_adamw, warmup_then_linear
from .precision import Precision, matmul_precision
from .strategies import Layer, Strategy

Entry = dict[str, int | float]


@dataclass
class History:
    """What happened: one entry a step, one an epoch."""

    steps: list[Entry] = field(default_factory=list)
    epochs: list[Entry] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0

    def __repr__(self) -> str:
        lines = [
            f"epoch {e['epoch']:.0f}: training loss {e['loss']:.3f}, validation loss "
            f"{e['valid_loss']:.3f}, accuracy {e['valid_accuracy']:.3f}"
            + "  <- kept"
            * (e["epoch"] == self.best_epoch)
            for e in self.epochs
        ]
        return "\n".join(lines)

    def plot(self, ax: Any = None) -> Any:
        """Loss by step (smoothed over its neighbours), and validation loss by epoch."""
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
        ends = [e["step"] for e in self.epochs]
        ax.plot(
            ends, [e["valid_loss"] for e in self.epochs], "o-", color="C1", label="validation loss"
        )
        for e in self.epochs:
            ax.annotate(
                f"{e['valid_accuracy']:.1%}", (e["step"], e["valid_loss"]),
                textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8, color="C1",
            )  # fmt: skip
        ax.set(xlabel="step", ylabel="cross-entropy (nats)", ylim=(0, None))
        ax.legend(frameon=False)
        return ax


def fit(
    model: SequenceClassifier,
    train: EncodedTexts,
    valid: EncodedTexts,
    layers: list[Layer],
    loss_of: Callable[[SequenceClassifier, Batch], Tensor],
    strategy: Strategy,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    warmup: float,
    weight_decay: float,
    clip: float,
    seed: int,
    precision: Precision,
    progress: bool,
) -> History:
    """Train, validate after every epoch, and leave the model at its best epoch.

    The arguments are explained at `finetune`, which calls this with its defaults.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    history, best, best_state = History(), (-1.0, -math.inf), {}
    optimizer = make_adamw(layers, weight_decay)
    n_steps, step, start = epochs * -(-len(train) // batch_size), 0, time.perf_counter()
    bar = tqdm(total=epochs * len(train), unit=" examples", disable=not progress)
    with bar, reproducible(seed):
        for epoch in range(epochs):
            rates = strategy.rates(len(layers), epoch)
            set_trainable(model, layers, rates)
            losses = []
            for batch in train.batches(batch_size, seed=seed * 1000 + epoch):
                factor = lr * warmup_then_linear(step, n_steps, warmup)
                for group in optimizer.param_groups:
                    group["lr"] = factor * rates[group["layer"]]
                with matmul_precision(precision):
                    loss = loss_of(model, batch)
                    loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()

                losses.append(loss.item())
                refuse_nan(losses[-1], step, factor)
                history.steps.append({"step": step, "loss": losses[-1], "lr": factor})
                step += 1
                bar.update(len(batch))
                bar.set_postfix_str(f"epoch {epoch + 1}/{epochs}, loss {losses[-1]:.3f}")
            metrics = evaluate(model, valid)
            refuse_nan(metrics.loss, step, factor)  # the last step may have done it
            history.epochs.append(summary(epoch, step, losses, metrics))
            if (metrics.accuracy, -metrics.loss) > best:
                best, history.best_epoch = (metrics.accuracy, -metrics.loss), epoch + 1
                if epoch + 1 < epochs:  # the last epoch's weights are in the model already
                    best_state = copy.deepcopy(model.state_dict())
    if history.best_epoch < epochs:
        model.load_state_dict(best_state)
    history.seconds = time.perf_counter() - start
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.eval()
    return history


def set_trainable(model: nn.Module, layers: list[Layer], rates: list[float]) -> None:
    """Frozen layers get no gradients and stay in evaluation mode: no dropout on fixed features."""
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for layer, rate in zip(layers, rates, strict=True):
        for module in layer.modules:
            module.train(rate > 0).requires_grad_(rate > 0)


def refuse_nan(loss: float, step: int, rate: float) -> None:
    """Stop when there is nothing left to train."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step} (learning rate {rate:.1e}); try a lower learning rate "
            "or a longer warm-up"
        )


def summary(epoch: int, step: int, losses: list[float], metrics: Metrics) -> Entry:
    """One epoch's line in the history."""
    return {
        "epoch": epoch + 1,
        "step": step,
        "loss": sum(losses) / len(losses),
        "valid_loss": metrics.loss,
        "valid_accuracy": metrics.accuracy,
    }


@contextlib.contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Random numbers from this seed inside, and the caller's untouched outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
