"""What a model attends to."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ..model.attention import MultiHeadAttention
from ..model.layers import eval_mode
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

    attentions = [m for m in encoder.modules() if isinstance(m, MultiHeadAttention)]
    hooks = [m.register_forward_pre_hook(record, with_kwargs=True) for m in attentions]
    try:
        with eval_mode(encoder):
            encoder(ids, keep)
    finally:
        for hook in hooks:
            hook.remove()
    return maps
