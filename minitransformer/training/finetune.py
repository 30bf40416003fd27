"""Fine-tuning: the article's five steps in one call."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.batches import EncodedTexts
from ..options import Number, Precision, check_numbers
from .evaluate import a_classifier, evaluate, refuse_unlike
from .frozen_cache import prefixes
from .history import Entry, History
from .loop import Recipe, fit
from .objectives import classification_loss
from .optim import WEIGHT_DECAY
from .rows_in_use import RowsInUse
from .strategies import Full, Strategy, named


def finetune(
    model: nn.Module, train: EncodedTexts, valid: EncodedTexts,
    strategy: Strategy | str | None = None, *,
    epochs: Number = 3, steps: int | None = None, validate_every: int | None = None,
    lr: Number | None = None, batch_size: int = 32, warmup: Number = 0.1,
    weight_decay: Number = WEIGHT_DECAY, clip: Number = 1.0, seed: int = 0,
    precision: Precision = "auto", cache_mib: int = 1024, progress: bool = True,
    class_weights: Literal["balanced"] | Sequence[Number] | None = None,
) -> History:  # fmt: skip
    """Train a classifier on labelled texts; on return it is in evaluation mode with its best weights.

    Parameters that you froze before (`requires_grad=False`) stay as they are in every strategy.

    Args:
        model: a `SequenceClassifier` with one class per label.
        train, valid: encoded with one tokenizer and one set of labels; `valid` decides what is best.
        strategy: which layers learn, at which rate, perhaps by its name on the command line; `Full()`
            when not given.
        epochs: passes over the training data; 1.5 is one and a half.
        steps: train on this many batches instead, over as many epochs as they take.
        validate_every: steps from one validation to the next; when not given, an epoch, and at least
            a tenth of `steps`.
        lr: base learning rate; the strategy's own when not given.
        warmup: the fraction of the steps over which the rate rises, or their number if it is whole;
            then the rate falls linearly to zero.
        weight_decay: AdamW's decay, of weight matrices and embeddings only.
        clip: the largest norm of the gradient; 0 clips nothing.
        seed: of the order of the examples and of dropout; a new head has its own.
        precision: of matrix products in training: "highest", "medium", "bfloat16", or "auto", which
            is bfloat16 where the CPU has it. Validation and prediction use "medium".
        cache_mib: memory for the outputs of frozen layers, which are then computed once per text; 0
            computes them every epoch. The result is the same to rounding.
        progress: show a bar with the loss and the examples per second.
        class_weights: the weight of each class in the training loss; "balanced" weights each one
            inversely to its number of texts, which helps where one class has most of them.

    Returns: the history; `history.plot()` draws it.

    Raises:
        TypeError: a model that is no classifier, or data that is not encoded.
        ValueError: a number that its option cannot be, no data, data without labels, labels that the
            model has no classes for, a validation set with other label numbers, or a strategy that
            does not fit the model.
        FloatingPointError: the loss is no longer finite.

    Source: article, section 3.2; Devlin et al. 2019, section 4.1.
    """
    model = a_classifier(model, "finetune")
    for name, data in (("train", train), ("valid", valid)):
        refuse_unlike(name, data, model.n_classes)
    if train.label_names != valid.label_names:
        raise ValueError(
            f"train has the labels {train.label_names}, valid {valid.label_names}; split one table, "
            "or read the second with the labels of the first: read_table(path, label_names=...)"
        )
    check_numbers(cache_mib=cache_mib)
    weights = weights_of_classes(class_weights, train, model.n_classes)
    strategy = named(strategy) if isinstance(strategy, str) else strategy or Full()
    recipe = Recipe.of(
        train, epochs, steps, validate_every, by_epoch=True, batch_size=batch_size,
        lr=strategy.learning_rate if lr is None else lr, warmup=warmup, weight_decay=weight_decay,
        clip=clip, seed=seed, precision=precision,
    )  # fmt: skip
    model.labels = names_of_classes(train.label_names, model.labels)
    valid_prefix, train_prefix = prefixes(model, (valid, train), cache_mib)
    rows = RowsInUse(model.encoder.embeddings, train)

    def validate() -> Entry:
        with rows.outside():  # the validation texts have words that no training text has
            metrics = evaluate(model, valid, prefix=valid_prefix)
        return {"loss": metrics.loss, "accuracy": metrics.accuracy}

    def on_freeze(n_layers: int) -> None:
        valid_prefix.freeze(n_layers)
        train_prefix.freeze(n_layers)

    with rows.inside():  # the embedding table has only these rows while the model trains
        return fit(
            model, train, lambda batch: classification_loss(model, batch, train_prefix, weights), validate,
            strategy, recipe, progress=progress, on_freeze=on_freeze, n_targets=len,
        )  # fmt: skip


def names_of_classes(names: tuple[str, ...], before: tuple[str, ...]) -> tuple[str, ...]:
    """What `predict` will call the classes: the labels of the data, and numbers for any others."""
    if names and len(names) < len(before):
        warnings.warn(
            f"the model has {len(before)} classes, the data only the labels {names}", stacklevel=3
        )
    rest = range(len(names), len(before))
    kept = [str(i) if before[i] in names else before[i] for i in rest]
    return (*names, *kept)


def weights_of_classes(
    given: Literal["balanced"] | Sequence[Number] | None, data: EncodedTexts, n_classes: int
) -> Float[Tensor, "classes"] | None:
    r"""One weight per class, as given or balanced: $w_c = N / (C N_c)$."""
    if given is None:
        return None
    if isinstance(given, str) and given == "balanced":
        n = Counter(data.labels)
        return torch.tensor(
            [len(data) / (len(n) * n[c]) if n[c] else 0.0 for c in range(n_classes)]
        )
    if isinstance(given, str) or len(given) != n_classes or not all(0 <= w < 1e6 for w in given):
        wanted = f"'balanced' or {n_classes} numbers that are not negative, one per class"
        raise ValueError(f"class_weights must be {wanted}, got {given!r}")
    return torch.tensor([float(w) for w in given])
