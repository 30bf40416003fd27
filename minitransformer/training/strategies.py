r"""Which layers learn, when, and how fast: the heart of fine-tuning.

A model is a list of layers, bottom to top: embeddings, blocks, head. A strategy gives each a
learning rate as a multiple of the base rate, at every step anew; 0 means frozen. The loop does the
rest: frozen layers get no gradient and stay in evaluation mode, so their dropout is off. Two
strategies also choose *within* a layer what learns (`BiasOnly`, `LoRA`), and one adds something to
it (`LoRA`).

Source: article, sections 3.1 and 3.2.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

from torch import nn

from .. import options
from . import lora


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    steps: int
    epoch: int

    @property
    def share(self) -> float:
        """The part of the steps that is done, in [0, 1)."""
        return self.step / self.steps


@dataclass(frozen=True)
class Strategy:
    """The interface: override `rates`, and the others where the usual does not fit."""

    learning_rate: ClassVar[float] = 5e-5
    """The base rate when the user gives none."""

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """For each layer, bottom to top, the multiple of the base rate at this point of the run.

        Raises:
            ValueError: the strategy asks for more layers than there are.
        """
        raise NotImplementedError

    def learns(self, name: str) -> bool:
        """Whether the parameter of this name learns when its layer does; not asked of the head."""
        return True

    @contextlib.contextmanager
    def applied(self, model: nn.Module, seed: int = 0) -> Iterator[None]:
        """The model as it is trained inside, a plain model again outside.

        `seed` is for what the strategy adds, where that starts at random.
        """
        yield


@dataclass(frozen=True)
class Full(Strategy):
    """Every layer learns at the same rate (article, section 3.1: full fine-tuning)."""

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """1 everywhere."""
        return [1.0] * n_layers


@dataclass(frozen=True)
class LastLayers(Strategy):
    """The last `n` blocks and the head learn (article, section 3.1: partial fine-tuning).

    Source: Lee, Tang and Lin 2019, who find most of the quality in the last quarter of the layers.
    """

    n: int = 2
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        at_least("n", self.n, 1)

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 below, 1 for the last n blocks and the head."""
        if self.n > n_layers - 2:
            raise ValueError(
                f"LastLayers({self.n}): the model has {n_layers - 2} blocks; give at most as many, "
                "or train the embeddings too with Full()"
            )
        return [0.0] * (n_layers - 1 - self.n) + [1.0] * (self.n + 1)


@dataclass(frozen=True)
class HeadOnly(Strategy):
    """Only the head learns, the encoder is frozen (article, section 3.1: frozen fine-tuning)."""

    learning_rate: ClassVar[float] = 3e-3

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 everywhere but on top."""
        return [0.0] * (n_layers - 1) + [1.0]


@dataclass(frozen=True)
class GradualUnfreezing(Strategy):
    """First the head alone, then one layer more at a time, from the top (article, section 3.2).

    One layer every so many epochs or steps; with `every=None` evenly over the run, so that the
    embeddings thaw for its last part.

    Source: Howard and Ruder 2018, section 3.3, one layer an epoch.
    """

    every: int | None = 1
    unit: Literal["epoch", "step"] = "epoch"
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        if self.every is not None:
            at_least("every", self.every, 1)
        if self.unit not in ("epoch", "step"):
            raise ValueError(f"unit={self.unit!r} is not known; choose 'epoch' or 'step'")

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 for the layers that are still frozen, 1 above."""
        if self.every is None:
            thawed = 1 + int(at.share * n_layers)
        else:
            thawed = 1 + (at.epoch if self.unit == "epoch" else at.step) // self.every
        return [0.0] * (n_layers - thawed) + [1.0] * min(thawed, n_layers)


@dataclass(frozen=True)
class LayerwiseDecay(Strategy):
    r"""Every layer learns, the lower the slower: $\eta_l = \eta \cdot \xi^{L - l}$.

    Source: Sun et al. 2019, section 3.3 ($\xi = 0.95$); Howard and Ruder 2018 divide by 2.6.
    """

    factor: float | int = 0.8
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1], got {self.factor}; 1 is Full()")

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """1 for the head, factor times less for each layer below."""
        return [self.factor ** (n_layers - 1 - i) for i in range(n_layers)]


@dataclass(frozen=True)
class LinearProbeThenFull(Strategy):
    """First the head alone, at the head's own rate, for a share of the steps; then everything.

    A new random head sends wrong gradients into good features; a trained one does not.

    Source: Kumar et al. 2022 (LP-FT).
    """

    probe: float = 0.5

    def __post_init__(self):
        if not 0 < self.probe < 1:
            raise ValueError(f"probe is a share of the steps, between 0 and 1, got {self.probe}")

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """HeadOnly's rate for the head alone, then 1 everywhere."""
        if at.share < self.probe:
            ratio = HeadOnly.learning_rate / self.learning_rate
            return [0.0] * (n_layers - 1) + [ratio]
        return [1.0] * n_layers


@dataclass(frozen=True)
class BiasOnly(Strategy):
    """Of every layer only the biases learn, and the head whole.

    Source: Ben Zaken, Goldberg and Ravfogel 2022 (BitFit).
    """

    learning_rate: ClassVar[float] = 1e-3

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """1 everywhere; `learns` chooses."""
        return [1.0] * n_layers

    def learns(self, name: str) -> bool:
        """Biases, those of the norms too."""
        return name.endswith("bias")


@dataclass(frozen=True)
class LoRA(Strategy):
    r"""A low-rank change of some matrices learns, and the head: $W = W_0 + \frac{\alpha}{r} BA$.

    It starts at no change ($B = 0$). After training it is added into the matrices, so the model is
    a plain one again, of the same size and speed.

    Args:
        rank: $r$; a matrix of d x d has 2 d r numbers to learn instead of d^2.
        alpha: the change counts alpha / rank times; 2 rank when not given.
        targets: the last part of the names of the linear maps that get one.

    Source: Hu et al. 2021, section 4.1.
    """

    rank: int = 8
    alpha: float | int | None = None
    targets: tuple[str, ...] = ("W_Q", "W_V")
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self):
        at_least("rank", self.rank, 1)

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 for the embeddings, which are looked up and not multiplied; 1 above."""
        return [0.0] + [1.0] * (n_layers - 1)

    def learns(self, name: str) -> bool:
        """Only A and B."""
        return name.endswith((".A", ".B"))

    @contextlib.contextmanager
    def applied(self, model: nn.Module, seed: int = 0) -> Iterator[None]:
        """With the low-rank maps inside, with them merged into the matrices outside."""
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        lora.insert(model, self.rank, alpha, self.targets, seed)
        try:
            yield
        finally:
            lora.merge(model)


CLASSES = (Full, LastLayers, HeadOnly, GradualUnfreezing, LayerwiseDecay, LinearProbeThenFull, BiasOnly, LoRA)  # fmt: skip
STRATEGIES: dict[str, type[Strategy]] = dict(zip(options.STRATEGIES, CLASSES, strict=True))
"""By the names of the command line."""


def named(text: str) -> Strategy:
    """A strategy by its name on the command line, with its first argument after a colon.

    Raises:
        ValueError: an unknown name, or an argument that does not fit.

    >>> named("last-layers:3"), named("gradual:even")
    (LastLayers(n=3), GradualUnfreezing(every=None, unit='epoch'))
    """
    name, _, argument = text.partition(":")
    if name not in STRATEGIES:
        raise ValueError(f"no strategy {name!r}; there are: {', '.join(STRATEGIES)}")
    cls = STRATEGIES[name]
    if not argument:
        return cls()
    if not fields(cls):
        raise ValueError(f"{name} takes no argument, got {text!r}")
    if cls is GradualUnfreezing and argument == "even":
        return cls(every=None)  # type: ignore[call-arg]
    kind = float if cls in (LayerwiseDecay, LinearProbeThenFull) else int
    try:
        value = kind(argument)
    except ValueError:
        raise ValueError(f"{text!r}: {argument!r} is not {kind.__name__}; e.g. lora:8") from None
    return cls(value)  # type: ignore[call-arg]


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a count that is too small."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
