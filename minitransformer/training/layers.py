"""A model as a list of layers, bottom to top: what a strategy speaks of."""

from typing import NamedTuple

from torch import nn

from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from ..model.transformer import Decoder, Encoder


class Layer(NamedTuple):
    """A part of the model that is trained or frozen as one."""

    name: str
    modules: tuple[nn.Module, ...]


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers from bottom to top; every parameter that is used is in one of them.

    The head is what is new for a task: a classifier with its pooler, or a language model's last
    maps. In an encoder-decoder the encoder lies below the decoder.

    Raises:
        TypeError: a model without a head.
    """
    if isinstance(model, SequenceClassifier):
        encoder = model.encoder
        pooler = (encoder.pooler,) if model.pooling == "cls" and encoder.pooler is not None else ()
        return stack_of(encoder, (*pooler, model.dropout, model.classifier))
    if isinstance(model, MaskedLM):
        return stack_of(model.encoder, (model.dense, model.norm, model.head))
    if isinstance(model, CausalLM):
        return stack_of(model.decoder, (model.head,))
    if isinstance(model, Seq2SeqLM):
        encoder, decoder = model.encoder_decoder.encoder, model.encoder_decoder.decoder
        *lower, end = stack_of(encoder, ())
        bottom, *upper = stack_of(decoder, (model.head,))
        # the encoder's last norm goes with its last block, the decoder's positions with the rest
        lower[0] = Layer("embeddings", (*lower[0].modules, *bottom.modules))
        lower[-1] = Layer(lower[-1].name, (*lower[-1].modules, *end.modules))
        lower = [lower[0]] + [Layer(f"encoder {x.name}", x.modules) for x in lower[1:]]
        return lower + [Layer(f"decoder {x.name}", x.modules) for x in upper[:-1]] + upper[-1:]
    raise TypeError(
        f"{type(model).__name__} has no head to train; SequenceClassifier, CausalLM, MaskedLM and "
        "Seq2SeqLM do"
    )


def stack_of(stack: Encoder | Decoder, head: tuple[nn.Module, ...]) -> list[Layer]:
    """Embeddings, blocks, and a head with what stands above the last block."""
    bottom = (stack.embeddings, stack.relative_positions)
    layers = [Layer("embeddings", tuple(m for m in bottom if m is not None))]
    layers += [Layer(f"block {i}", (block,)) for i, block in enumerate(stack.blocks)]
    return [*layers, Layer("head", (stack.norm, stack.dropout, *head))]
