r"""Which layers learn, when, and how fast: the heart of fine-tuning.

A model is a list of layers, bottom to top: embeddings, blocks, head. A strategy gives each a
learning rate as a multiple of the base rate; 0 means frozen. The loop does the rest: frozen layers
get no gradient and stay in evaluation mode, so their dropout is off.

Source: article, section 3.1.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import nn

from ..model.heads import SequenceClassifier


class Layer(NamedTuple):
    """A part of the model that is trained or frozen as one."""

    name: str
    modules: tuple[nn.Module, ...]


def layers_of(model: SequenceClassifier) -> list[Layer]:
    """The layers from bottom to top; the pooler counts to the head, which is new for every task."""
    encoder = model.encoder
    layers = [Layer("embeddings", (encoder.embeddings,))]
    layers += [Layer(f"block {i}", (block,)) for i, block in enumerate(encoder.blocks)]
    pooler = (encoder.pooler,) if model.pooling == "cls" and encoder.pooler is not None else ()
    layers.append(Layer("head", (encoder.norm, *pooler, model.dropout, model.classifier)))
    return layers


@dataclass(frozen=True)
class Strategy:
    """The interface: override `rates`, and `learning_rate` where the usual one does not fit."""

    learning_rate: ClassVar[float] = 2e-5
    """The base rate when the user gives none."""

    def rates(self, n_layers: int, epoch: int) -> list[float]:
        """For each layer, bottom to top, the multiple of the base rate in this epoch (from 0)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Strategy):
    """Every layer learns at the same rate (article, section 3.1: full fine-tuning)."""

    learning_rate: ClassVar[float] = 5e-5

    def rates(self, n_layers: int, epoch: int) -> list[float]:
        """1 everywhere."""
        return [1.0] * n_layers


@dataclass(frozen=True)
class HeadOnly(Strategy):
    """Only the head learns, the encoder is frozen (article, section 3.1: frozen fine-tuning)."""

    learning_rate: ClassVar[float] = 3e-3

    def rates(self, n_layers: int, epoch: int) -> list[float]:
        """0 everywhere but on top."""
        return [0.0] * (n_layers - 1) + [1.0]


STRATEGIES: dict[str, type[Strategy]] = {"full": Full, "head-only": HeadOnly}
"""By the names of the command line."""
