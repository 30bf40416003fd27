"""Embeddings and a stack of blocks: the encoder."""

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from .attention import padding_mask
from .blocks import EncoderBlock
from .config import TransformerConfig
from .layers import Embeddings, make_norm


def init_weights(module: nn.Module, std: float) -> None:
    r"""Start as BERT does: matrices and embeddings $\sim N(0, \text{std}^2)$, biases 0.

    Source: Devlin et al. 2019's code; norms keep their gain 1 and shift 0.
    """
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Embedding):
            nn.init.normal_(m.weight, std=std)
        if isinstance(m, nn.Linear) and m.bias is not None:
            nn.init.zeros_(m.bias)


class Pooler(nn.Module):
    r"""One vector for a sequence: $\tanh(h_{\text{[CLS]}} W + b)$, from its first position.

    Shapes: (batch, length, d_model) -> (batch, d_model).
    Source: Devlin et al. 2019's code (pre-trained with next-sentence prediction).
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.dense = nn.Linear(d_model, d_model)

    def forward(
        self, hidden: Float[Tensor, "batch length d_model"]
    ) -> Float[Tensor, "batch d_model"]:
        """Pool the first position."""
        return torch.tanh(self.dense(hidden[:, 0]))


class Encoder(nn.Module):
    r"""A stack of $N$ encoder blocks on top of embeddings.

    $$x_0 = \mathrm{Embed}(ids), \qquad x_l = \mathrm{EncoderBlock}_l(x_{l-1})$$

    A pre-LN stack ends with one more norm. `pooler` is there when the config asks for it; it does
    not take part in `forward`, a classifier uses it.

    Shapes: ids (batch, length) -> (batch, length, d_model).
    Source: Vaswani et al. 2017, section 3.1; Devlin et al. 2019.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.n_layers))
        self.norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.pooler = Pooler(config.d_model) if config.pooler else None
        init_weights(self, config.init_std)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None = None,
        segments: Int[Tensor, "batch length"] | None = None,
        first: int | None = None,
    ) -> Float[Tensor, "batch first d_model"]:
        """Encode token ids.

        Args:
            keep: which keys may be attended to; by default all but `config.pad_id`.
            segments: segment of each token (BERT's sentences A and B), all 0 by default.
            first: how many positions, from the left, are wanted; all by default. The others are
                then left out of the last block, where nothing reads them any more.

        Raises:
            ValueError, TypeError: as `Embeddings` and `check_keep`.
        """
        if keep is None and self.config.pad_id is not None:
            keep = padding_mask(ids, self.config.pad_id)
        x = self.embeddings(ids, segments)
        for block in self.blocks:
            x = block(x, keep, first if block is self.blocks[-1] else None)
        return self.norm(x)
