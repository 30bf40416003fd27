"""Task layers on top of an encoder."""

from typing import Literal

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from .attention import padding_mask
from .layers import Dropout
from .transformer import Encoder, init_weights


def mean_pool(
    hidden: Float[Tensor, "batch length d_model"], real: Bool[Tensor, "batch length"]
) -> Float[Tensor, "batch d_model"]:
    r"""The mean over the real positions: $\frac{1}{|\text{real}|} \sum_{t \in \text{real}} h_t$.

    Padding must not count: with it the same text would get another vector in another batch.

    Shapes: (batch, length, d_model), (batch, length) -> (batch, d_model).
    Source: Reimers and Gurevych 2019, section 3.
    """
    weight = real.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


class SequenceClassifier(nn.Module):
    r"""An encoder, one vector for the sequence, one linear map to the classes.

    $$\text{logits} = \mathrm{pool}(\mathrm{Encoder}(ids))\,W + b$$

    Args:
        encoder: any `Encoder`.
        n_classes: number of classes.
        pooling: "cls" (tanh of the first position, needs `config.pooler`) or "mean" (over the real
            positions).
        dropout: on the pooled vector; the encoder's when not given.

    Shapes: ids (batch, length) -> logits (batch, n_classes).
    Raises: ValueError for an unknown pooling, or "cls" with an encoder that has no pooler.
    Source: article, section 3.2; Devlin et al. 2019, section 4.1.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        pooling: Literal["cls", "mean"] = "cls",
        dropout: float | None = None,
    ):
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"pooling={pooling!r} is not known; choose 'cls' or 'mean'")
        if pooling == "cls" and encoder.pooler is None:
            raise ValueError(
                "pooling='cls' needs an encoder with a pooler: TransformerConfig(pooler=True); "
                "or use pooling='mean'"
            )
        if n_classes < 2:
            raise ValueError(f"a classifier needs at least 2 classes, got {n_classes}")
        self.encoder, self.pooling, self.n_classes = encoder, pooling, n_classes
        self.first = 1 if pooling == "cls" else None
        """How many positions it reads: the last block computes no others, a seventh of the work
        with 6 layers."""
        self.labels: tuple[str, ...] = tuple(str(c) for c in range(n_classes))
        """The names of the classes, in the order of the logits."""
        self.dropout = Dropout(encoder.config.dropout if dropout is None else dropout)
        self.classifier = nn.Linear(encoder.config.d_model, n_classes)
        init_weights(self.classifier, encoder.config)

    def forward(
        self,
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None = None,
        segments: Int[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits for each sequence; `keep` as `padding_mask` gives it, by default from `pad_id`."""
        return self.classify(self.encoder(ids, keep, segments, self.first), ids, keep)

    def classify(
        self,
        hidden: Float[Tensor, "batch positions d_model"],
        ids: Int[Tensor, "batch length"],
        keep: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch n_classes"]:
        """Logits from the encoder's output: what stands above it."""
        return self.classifier(self.dropout(self.pool(hidden, ids, keep)))

    def pool(
        self, hidden: Tensor, ids: Tensor, keep: Tensor | None
    ) -> Float[Tensor, "batch d_model"]:
        """One vector for each sequence."""
        if self.pooling == "cls":
            return self.encoder.pooler(hidden)
        if keep is None:
            pad_id = self.encoder.config.pad_id
            keep = padding_mask(ids, -1 if pad_id is None else pad_id)
        if keep.shape != (len(ids), 1, 1, ids.shape[1]):
            raise ValueError(
                f"pooling='mean' reads from keep which tokens are real and needs (batch, 1, 1, length)"
                f" = {(len(ids), 1, 1, ids.shape[1])}, as padding_mask(ids, pad_id) gives; got "
                f"{tuple(keep.shape)}"
            )
        return mean_pool(hidden, keep[:, 0, 0, :])
