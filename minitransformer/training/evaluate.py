"""A classifier's predictions, and how good they are."""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batches import EncodedTexts
from ..formulas import ops
from ..model.heads import SequenceClassifier
from ..model.layers import eval_mode
from ..options import check_numbers
from ..progress import progress_bar
from .frozen_cache import FrozenPrefix
from .precision import Precision, matmul_precision

SHOWN = 20
"""Classes that a report shows one by one."""


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
        most = np.bincount(self.targets).max() / len(self.targets)
        return (
            f"accuracy {self.accuracy:.3f} (always the most frequent class: {most:.3f}), loss "
            f"{self.loss:.3f}, {len(self.targets)} examples"
        )

    def report(self) -> str:
        """The confusion matrix, and precision, recall and F1 of each class, as text.

        With more than `SHOWN` classes there is no matrix, and only the most frequent are shown. A class
        without examples does not count in the averages.
        """
        from sklearn.metrics import precision_recall_fscore_support

        table, names = self.confusion, [shortened(name, 20) for name in self.label_names]
        few, width = len(names) <= SHOWN, max(9, *map(len, names)) + 1
        text = f"the most frequent {SHOWN} of {len(names)} classes\n"
        if few:
            text = " " * (width + 8) + "predicted\n" + " " * (width + 7)
            text += "".join(f"{n:>{width}}" for n in names) + "\n"
            for i, row in enumerate(table):
                cells = "".join(f"{n:>{width}}" for n in (names[i], *row))
                text += ("actual " if i == 0 else "       ") + cells + "\n"
        actual, classes = table.sum(1), list(range(len(names)))
        scores = np.stack(precision_recall_fscore_support(
            self.targets, self.predictions, labels=classes, zero_division=0
        )[:3])  # fmt: skip
        order = classes if few else np.argsort(-actual, kind="stable")[:SHOWN]
        rows = [(names[i], scores[:, i], actual[i]) for i in order]
        rows += [
            ("macro avg", scores[:, actual > 0].mean(1), actual.sum()),
            ("weighted avg", (scores * actual).sum(1) / actual.sum(), actual.sum()),
        ]
        width = max(len(name) for name, *_ in rows)
        text += f"\n{'':{width}}  precision  recall  f1-score  support\n"
        for name, (precision, recall, f1), n in rows:
            text += f"{name:>{width}}  {precision:9.3f}  {recall:6.3f}  {f1:8.3f}  {n:7}\n"
        return text + self.warning()

    def warning(self) -> str:
        """What is wrong with a model that gives one answer to everything; otherwise nothing."""
        only = np.unique(self.predictions)
        if len(only) > 1 or len(np.unique(self.targets)) < 2:
            return ""
        share = float((self.targets == only[0]).mean())
        name = shortened(self.label_names[only[0]], 40)
        text = f"\nThe model says {name!r} to everything: it has collapsed to one class. "
        if share > 1.5 / len(np.unique(self.targets)):
            text += (
                f"The classes are imbalanced: {share:.0%} of the examples have this one, so its share "
                "looks like accuracy. Compare the macro avg of f1-score, and weight the classes: "
                'class_weights="balanced" (on the command line --balance).\n'
            )
        return text + "Try a lower learning rate, more epochs, or another seed.\n"


def shortened(text: str, width: int) -> str:
    """A text on one line of at most this width, without what would steer a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


@torch.no_grad()
def predict(
    model: nn.Module, data: EncodedTexts, batch_size: int = 64,
    precision: Precision = "medium", progress: bool = False, prefix: FrozenPrefix | None = None,
) -> Float[Tensor, "examples classes"]:  # fmt: skip
    """The logits of every example, in the order of the data, without dropout.

    The model's mode is left as it was. During training, `prefix` looks up the frozen layers' outputs.

    Raises: TypeError: a model that is no classifier. ValueError: no data.
    """
    model = a_classifier(model, "predict")
    check_numbers(batch_size=batch_size)
    if not len(data):
        raise ValueError("the data has no texts; give at least one")
    rows = torch.zeros(len(data), model.n_classes)
    bar = progress_bar(len(data), " texts", progress)
    with eval_mode(model), matmul_precision(precision), bar:
        for batch in data.batches(batch_size):
            logits = prefix.logits(batch) if prefix else model(batch.ids, batch.keep)
            rows[list(batch.indices)] = logits.float()
            bar.update(len(batch))
    return rows


def evaluate(
    model: nn.Module, data: EncodedTexts, batch_size: int = 64,
    precision: Precision = "medium", progress: bool = False, prefix: FrozenPrefix | None = None,
) -> Metrics:  # fmt: skip
    """Loss and accuracy over all of the data; the options are those of `predict`.

    Raises: TypeError: a model that is no classifier. ValueError: no data, data without labels, or
        with other names for its labels than the model's.
    Source: article, section 3.2, step 5.
    """
    model = a_classifier(model, "evaluate")
    if isinstance(data, EncodedTexts) and data.labels is None:
        raise ValueError("the data has no labels to evaluate against; use predict for new texts")
    refuse_unlike("the data", data, model.n_classes)
    theirs, known = data.label_names, model.labels
    if theirs != known[: len(theirs)] and known != tuple(map(str, range(model.n_classes))):
        raise ValueError(
            f"the data names its labels {theirs}, the model {known}: equal numbers would mean "
            "different labels; read the data with read_table(path, label_names=model.labels)"
        )
    logits = predict(model, data, batch_size, precision, progress, prefix)
    targets = torch.tensor(data.labels)
    loss = ops.FUSED.cross_entropy(logits, targets).item()
    accuracy = (logits.argmax(-1) == targets).double().mean().item()
    return Metrics(loss, accuracy, logits, targets.numpy(), theirs + known[len(theirs) :])


def a_classifier(model: nn.Module, use: str) -> SequenceClassifier:
    """The model, if it is a classifier; otherwise TypeError."""
    if isinstance(model, SequenceClassifier):
        return model
    raise TypeError(
        f"{use} takes a SequenceClassifier, got a {type(model).__name__}; put a classifier on an "
        "encoder: SequenceClassifier(encoder, n_classes=2, pooling='mean'); a language model is "
        "trained with pretrain and measured with perplexity"
    )


def refuse_unlike(name: str, data: EncodedTexts, n_classes: int) -> None:
    """Reject data that no classifier with this many classes can learn from or be measured on."""
    if not isinstance(data, EncodedTexts):
        raise TypeError(
            f"{name} is a {type(data).__name__}; give EncodedTexts, one text per example: "
            "mt.data.encode(labelled_texts, tokenizer)"
        )
    if not len(data):
        raise ValueError(f"{name} has no texts; give at least one")
    if data.labels is None:
        raise ValueError(f"{name} has no labels; encode LabelledTexts, not bare texts")
    if odd := [
        y for y in data.labels if isinstance(y, bool) or not isinstance(y, Integral) or y < 0
    ]:
        raise ValueError(
            f"{name} has the label {odd[0]!r}; labels are whole numbers, counted from 0"
        )
    if (largest := max(data.labels)) >= n_classes:
        raise ValueError(
            f"{name} has label {largest}, the model only {n_classes} classes "
            f"(counted from 0): SequenceClassifier(encoder, n_classes={largest + 1})"
        )
    if len(data.label_names) > n_classes:
        raise ValueError(
            f"{name} has {len(data.label_names)} labels, the model only {n_classes} classes: "
            f"SequenceClassifier(encoder, n_classes={len(data.label_names)}), or read the data with "
            "read_table(path, label_names=model.labels)"
        )
