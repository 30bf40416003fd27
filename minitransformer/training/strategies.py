r"""Which layers learn, when, and how fast: the heart of fine-tuning.

A model is a list of layers, bottom to top: embeddings, blocks, head. At every step a strategy gives
each layer a learning rate, as a multiple of the base rate; 0 means frozen, without dropout. `BiasOnly`
and `LoRA` also choose what learns *within* a layer. Source: article, sections 3.1 and 3.2.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from .. import options
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from ..model.transformer import Decoder, Encoder
from . import lora


class Layer(NamedTuple):
    """A part of the model that is trained or frozen as a whole."""

    name: str
    modules: tuple[nn.Module, ...]


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers from bottom to top, with every parameter that is used in exactly one of them.

    The head is what a task adds: a classifier with its pooler, or a language model's last maps. In
    an encoder-decoder the encoder lies below the decoder. A model without a head is a TypeError.
    """
    if isinstance(model, SequenceClassifier):
        encoder = model.encoder
        pooler = (encoder.pooler,) if model.pooling == "cls" and encoder.pooler is not None else ()
        return layers_of_stack(encoder, *pooler, model.dropout, model.classifier)
    if isinstance(model, MaskedLM):
        return layers_of_stack(model.encoder, model.dense, model.norm, model.head)
    if isinstance(model, CausalLM):
        return layers_of_stack(model.decoder, model.head)
    if isinstance(model, Seq2SeqLM):
        encoder, decoder = model.encoder_decoder.encoder, model.encoder_decoder.decoder
        *lower, end = layers_of_stack(encoder, of="encoder ")
        bottom, *upper = layers_of_stack(decoder, model.head, of="decoder ")
        # the encoder's last norm goes with its last block, the decoder's embeddings with the encoder's
        lower[0] = Layer("embeddings", (*lower[0].modules, *bottom.modules))
        lower[-1] = Layer(lower[-1].name, (*lower[-1].modules, *end.modules))
        return lower + upper
    raise TypeError(
        f"{type(model).__name__} has no head to train; SequenceClassifier, CausalLM, MaskedLM and "
        "Seq2SeqLM do"
    )


def layers_of_stack(stack: Encoder | Decoder, *head: nn.Module, of: str = "") -> list[Layer]:
    """Embeddings, blocks, and the head together with whatever follows the last block."""
    bottom = (stack.embeddings, stack.relative_positions)
    layers = [Layer("embeddings", tuple(m for m in bottom if m is not None))]
    layers += [Layer(f"{of}block {i}", (block,)) for i, block in enumerate(stack.blocks)]
    return [*layers, Layer("head", (stack.norm, stack.dropout, *head))]


class Progress(NamedTuple):
    """How far a run has come."""

    step: int
    steps: int
    epoch: int

    @property
    def share(self) -> float:
        """The fraction of the steps already taken, in [0, 1)."""
        return self.step / self.steps


@dataclass(frozen=True)
class Strategy:
    """The interface, which by default trains everything; a strategy overrides what differs."""

    learning_rate: ClassVar[float] = 5e-5
    """The base rate when the user gives none."""

    @classmethod
    def parse(cls, argument: str) -> "Strategy":
        """The strategy with its first field read from text; the field's default gives the type."""
        if not fields(cls):
            raise ValueError(f"{cls.__name__} takes no argument")
        first, kind = fields(cls)[0].name, type(fields(cls)[0].default)
        try:
            value: Any = kind(argument)
        except ValueError:
            raise ValueError(f"{argument!r} is not {kind.__name__}") from None
        return cls(**{first: value})

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """For each layer, bottom to top, the multiple of the base rate at this point of the run."""
        return [1.0] * n_layers

    def learns(self, name: str) -> bool:
        """Whether the parameter with this name learns when its layer does; never asked of the head."""
        return True

    @contextlib.contextmanager
    def applied(self, model: nn.Module, seed: int = 0) -> Iterator[None]:
        """Inside, the model as trained; outside, a plain one. `seed` initialises weights it adds."""
        yield


@dataclass(frozen=True)
class Full(Strategy):
    """Every layer learns at the same rate (article, section 3.1: full fine-tuning)."""


@dataclass(frozen=True)
class LastLayers(Strategy):
    """The last `n` blocks and the head learn (article, section 3.1: partial fine-tuning).

    Source: Lee, Tang and Lin 2019, who find most of the quality in the last quarter of the layers.
    """

    n: int = 2
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        check_at_least_1(n=self.n)

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
        """0 below, 1 for the head."""
        return [0.0] * (n_layers - 1) + [1.0]


@dataclass(frozen=True)
class GradualUnfreezing(Strategy):
    """First the head alone, then one more layer at a time, from the top (article, section 3.2).

    A layer thaws every `every` epochs or steps; with `every=None` the layers thaw evenly over the run.

    Source: Howard and Ruder 2018, section 3.3, one layer per epoch.
    """

    every: int | None = 1
    unit: Literal["epoch", "step"] = "epoch"
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        if self.every is not None:
            check_at_least_1(every=self.every)
        if self.unit not in ("epoch", "step"):
            raise ValueError(f"unit={self.unit!r} is not known; choose 'epoch' or 'step'")

    @classmethod
    def parse(cls, argument: str) -> Strategy:
        """As for any strategy, or "even"."""
        return cls(every=None) if argument == "even" else super().parse(argument)

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 for the layers that are still frozen, 1 above."""
        if self.every is None:
            thawed = 1 + int(at.share * n_layers)
        else:
            thawed = 1 + (at.epoch if self.unit == "epoch" else at.step) // self.every
        return [0.0] * (n_layers - thawed) + [1.0] * min(thawed, n_layers)


@dataclass(frozen=True)
class LayerwiseDecay(Strategy):
    r"""Every layer learns, lower layers more slowly: $\eta_l = \eta \cdot \xi^{L - l}$.

    Source: Sun et al. 2019, section 3.3 ($\xi = 0.95$); Howard and Ruder 2018 divide by 2.6.
    """

    factor: float | int = 0.8
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self):
        if not 0 < self.factor <= 1:
            raise ValueError(f"factor must be in (0, 1], got {self.factor}; 1 is Full()")

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """1 for the head, multiplied by the factor once for each layer below."""
        return [self.factor ** (n_layers - 1 - i) for i in range(n_layers)]


@dataclass(frozen=True)
class LinearProbeThenFull(Strategy):
    """First the head alone, at its own rate, for a fraction of the steps; then everything.

    A new random head sends wrong gradients into good features; a trained one does not.

    Source: Kumar et al. 2022 (LP-FT).
    """

    probe: float = 0.5

    def __post_init__(self):
        if not 0 < self.probe < 1:
            raise ValueError(f"probe is a share of the steps, between 0 and 1, got {self.probe}")

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """At first HeadOnly's rate for the head alone, then 1 everywhere."""
        if at.share < self.probe:
            return [0.0] * (n_layers - 1) + [HeadOnly.learning_rate / self.learning_rate]
        return [1.0] * n_layers


@dataclass(frozen=True)
class BiasOnly(Strategy):
    """The biases of every layer learn, and the whole head.

    Source: Ben Zaken, Goldberg and Ravfogel 2022 (BitFit).
    """

    learning_rate: ClassVar[float] = 1e-3

    def learns(self, name: str) -> bool:
        """Biases, including those of the norms."""
        return name.endswith("bias")


@dataclass(frozen=True)
class LoRA(Strategy):
    r"""The head learns, and a low-rank change of some matrices: $W = W_0 + \frac{\alpha}{r} BA$.

    It starts at no change ($B = 0$). After training the change is added into the matrices, which
    leaves a plain model of the former size and speed.

    Args:
        rank: $r$; a d x d matrix has 2 d r numbers to learn instead of d^2.
        alpha: the change is scaled by alpha / rank; 2 rank when not given.
        targets: the linear maps to change, by the last part of their names.

    Source: Hu et al. 2021, section 4.1.
    """

    rank: int = 8
    alpha: float | int | None = None
    targets: tuple[str, ...] = ("W_Q", "W_V")
    learning_rate: ClassVar[float] = 1e-3

    def __post_init__(self):
        check_at_least_1(rank=self.rank)

    def rates(self, n_layers: int, at: Progress) -> list[float]:
        """0 for the embeddings, which have no linear map to change; 1 above."""
        return [0.0] + [1.0] * (n_layers - 1)

    def learns(self, name: str) -> bool:
        """Only A and B."""
        return name.endswith((".A", ".B"))

    @contextlib.contextmanager
    def applied(self, model: nn.Module, seed: int = 0) -> Iterator[None]:
        """Inside, with the low-rank maps; outside, with them merged into the matrices."""
        alpha = 2 * self.rank if self.alpha is None else self.alpha
        lora.insert(model, self.rank, alpha, self.targets, seed)
        try:
            yield
        finally:
            lora.merge(model)


CLASSES = (Full, LastLayers, HeadOnly, GradualUnfreezing, LayerwiseDecay, LinearProbeThenFull, BiasOnly, LoRA)  # fmt: skip
STRATEGIES: dict[str, type[Strategy]] = dict(zip(options.STRATEGIES, CLASSES, strict=True))
"""By their names on the command line."""


def named(text: str) -> Strategy:
    """A strategy by its name on the command line, with its first argument after a colon.

    >>> named("last-layers:3"), named("gradual:even")
    (LastLayers(n=3), GradualUnfreezing(every=None, unit='epoch'))
    """
    name, colon, argument = text.partition(":")
    if name not in STRATEGIES:
        raise ValueError(f"no strategy {name!r}; choose one of {', '.join(STRATEGIES)}")
    try:
        return STRATEGIES[name].parse(argument) if colon else STRATEGIES[name]()
    except ValueError as error:
        raise ValueError(f"strategy {text!r}: {error}") from None


def check_at_least_1(**counts: int) -> None:
    """Reject counts that are too small."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
