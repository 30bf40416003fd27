"""What is minimised."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..formulas import ops
from ..model.heads import SequenceClassifier
from .prefix import FrozenPrefix


def classification_loss(
    model: SequenceClassifier, batch: Batch, prefix: FrozenPrefix | None = None
) -> Float[Tensor, ""]:
    r"""Cross-entropy of the classes: $-\frac1N \sum_n \log \mathrm{softmax}(\text{logits}_n)_{y_n}$.

    Args:
        prefix: knows the outputs of the frozen layers.

    Source: article, section 3.2.
    """
    logits = prefix.logits(batch) if prefix else model(batch.ids, batch.keep)
    if logits.dtype is torch.bfloat16:  # autocast; the sum of exponentials wants more digits
        logits = logits.float()
    return ops.OPS[model.encoder.config.ops].cross_entropy(logits, batch.labels)
