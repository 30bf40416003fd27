"""What a model attends to."""

import copy

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..model.attention import MultiHeadAttention
from ..model.transformer import Decoder, Encoder


@torch.no_grad()
def attention_maps(
    encoder: Encoder | Decoder,
    ids: Int[Tensor, "batch length"],
    keep: Shaped[Tensor, "..."] | None = None,
) -> list[Float[Tensor, "batch heads length length"]]:
    r"""The attention weights $\mathrm{softmax}(QK^\top/\sqrt{d_k})$ of every layer of an encoder or decoder.

    Shapes: ids (batch, length) -> (batch, heads, queries, keys) per layer.
    Source: Vaswani et al. 2017, equation 1 and figures 3 to 5.
    """
    maps: list[Tensor] = []

    def record(module: MultiHeadAttention, args: tuple, kwargs: dict) -> None:
        maps.append(module.weights(*args, **kwargs))

    # A copy that shares the weights: hooks in the model itself would see other threads' texts.
    shared = {id(t): t for t in (*encoder.parameters(), *encoder.buffers())}
    encoder = copy.deepcopy(encoder, shared).eval()
    for module in encoder.modules():
        if isinstance(module, MultiHeadAttention):
            module.register_forward_pre_hook(record, with_kwargs=True)
    encoder(ids, keep)
    return maps
