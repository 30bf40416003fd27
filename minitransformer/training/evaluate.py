"""A classifier's predictions, and how good they are."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from ..data.batches import EncodedTexts
from ..formulas import ops
from ..model.heads import SequenceClassifier
from ..model.layers import eval_mode
from .frozen_cache import FrozenPrefix
from .precision import Precision, matmul_precision


@dataclass(frozen=True)
class Metrics:
    """Loss, accuracy, and every prediction in the order of the data."""

    loss: float
    accuracy: float
    logits: Float[Tensor, "examples classes"]
    targets: Int[np.ndarray, "examples"]
    label_names: tuple[str, ...]

    @property
    def predictions(self) -> Int[np.ndarray, "examples"]:
        """The class with the largest logit."""
        return self.logits.argmax(-1).numpy()

    @property
    def confusion(self) -> Int[np.ndarray, "classes classes"]:
        """One row per actual class, one column per predicted class."""
        from sklearn.metrics import confusion_matrix  # here, since it takes a second to load

        classes = list(range(len(self.label_names)))
        return confusion_matrix(self.targets, self.predictions, labels=classes)

    def __repr__(self) -> str:
        return f"accuracy {self.accuracy:.3f}, loss {self.loss:.3f}, {len(self.targets)} examples"

    def report(self) -> str:
        """The confusion matrix, and precision, recall and F1 of each class, as text."""
        from sklearn.metrics import classification_report

        names, width = self.label_names, max(9, *map(len, self.label_names)) + 1
        text = " " * (width + 8) + "predicted\n" + " " * (width + 7)
        text += "".join(f"{n:>{width}}" for n in names) + "\n"
        for i, row in enumerate(self.confusion):
            cells = "".join(f"{n:>{width}}" for n in (names[i], *row))
            text += ("actual " if i == 0 else "       ") + cells + "\n"
        text += "\n" + classification_report(
            self.targets, self.predictions, labels=list(range(len(names))), target_names=names,
            digits=3, zero_division=0,
        )  # fmt: skip
        only = np.unique(self.predictions)
        if len(only) == 1 and len(np.unique(self.targets)) > 1:
            text += (
                f"\nThe model says {names[only[0]]!r} to everything: it has collapsed to one class. "
                "Try a lower learning rate, more epochs, or another seed.\n"
            )
        return text


@torch.no_grad()
def predict(
    model: SequenceClassifier, data: EncodedTexts, batch_size: int = 64,
    precision: Precision = "medium", progress: bool = False, prefix: FrozenPrefix | None = None,
) -> Float[Tensor, "examples classes"]:  # fmt: skip
    """The logits of every example, in the order of the data, without dropout.

    The model's mode is left as it was. During training, `prefix` looks up the frozen layers' outputs.
    """
    rows, bar = torch.zeros(len(data), model.n_classes), tqdm(total=len(data), disable=not progress)
    with eval_mode(model), matmul_precision(precision), bar:
        for batch in data.batches(batch_size):
            logits = prefix.logits(batch) if prefix else model(batch.ids, batch.keep)
            rows[list(batch.indices)] = logits.float()
            bar.update(len(batch))
    return rows


def evaluate(
    model: SequenceClassifier, data: EncodedTexts, batch_size: int = 64,
    precision: Precision = "medium", progress: bool = False, prefix: FrozenPrefix | None = None,
) -> Metrics:  # fmt: skip
    """Loss and accuracy over all of the data; the options are those of `predict`.

    Raises: ValueError: data without labels, or with other numbers for the model's labels.
    Source: article, section 3.2, step 5.
    """
    if data.labels is None:
        raise ValueError("the data has no labels to evaluate against; use predict for new texts")
    theirs, known = data.label_names, model.labels
    if theirs != known and set(theirs) & set(known):
        raise ValueError(
            f"the data numbers its labels {theirs}, the model {known}, so that equal numbers mean "
            "different labels; read the data with read_table(path, label_names=model.labels)"
        )
    logits = predict(model, data, batch_size, precision, progress, prefix)
    targets = torch.tensor(data.labels)
    loss = ops.FUSED.cross_entropy(logits, targets).item()
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    return Metrics(loss, accuracy, logits, targets.numpy(), data.label_names or model.labels)
