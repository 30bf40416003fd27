"""Fine-tuning: the article's five steps in one call."""

from ..data.batches import EncodedTexts
from ..model.heads import SequenceClassifier
from ..options import Precision
from .evaluate import evaluate
from .frozen_cache import prefixes
from .history import Entry, History
from .loop import Recipe, fit
from .objectives import classification_loss
from .optim import WEIGHT_DECAY
from .rows_in_use import RowsInUse
from .strategies import Full, Strategy


def finetune(
    model: SequenceClassifier, train: EncodedTexts, valid: EncodedTexts,
    strategy: Strategy | None = None, *,
    epochs: int = 3, steps: int | None = None, validate_every: int | None = None,
    lr: float | None = None, batch_size: int = 32, warmup: float = 0.1,
    weight_decay: float = WEIGHT_DECAY, clip: float = 1.0, seed: int = 0,
    precision: Precision = "auto", cache_mib: int = 1024, progress: bool = True,
) -> History:  # fmt: skip
    """Train a classifier on labelled texts; on return it is in evaluation mode with its best weights.

    Parameters that you froze before (`requires_grad=False`) stay as they are in every strategy.

    Args:
        train, valid: encoded with one tokenizer and one set of labels; `valid` decides what is best.
        strategy: which layers learn, at which rate; `Full()` when not given.
        epochs: passes over the training data.
        steps: train on this many batches instead, over as many epochs as they take.
        validate_every: steps from one validation to the next; when not given, an epoch, and at least
            a tenth of `steps`.
        lr: base learning rate; the strategy's own when not given.
        warmup: the fraction of the steps over which the rate rises; then it falls linearly to zero.
        weight_decay: AdamW's decay, of weight matrices and embeddings only.
        clip: the largest norm of the gradient.
        seed: of the order of the examples and of dropout; a new head has its own.
        precision: of matrix products in training: "highest", "medium", "bfloat16", or "auto", which
            is bfloat16 where the CPU has it. Validation and prediction use "medium".
        cache_mib: memory for the outputs of frozen layers, which are then computed once per text; 0
            computes them every epoch. The result is the same to rounding.
        progress: show a bar with the loss and the examples per second.

    Returns: the history; `history.plot()` draws it.

    Raises:
        ValueError: data without labels, labels that the model has no classes for, a validation set
            with other label numbers, or a strategy that does not fit the model.
        FloatingPointError: the loss is no longer finite.

    Source: article, section 3.2; Devlin et al. 2019, section 4.1.
    """
    for name, data in (("train", train), ("valid", valid)):
        if data.labels is None:
            raise ValueError(f"{name} has no labels; encode LabelledTexts, not bare texts")
        if max(data.labels) >= model.n_classes:
            raise ValueError(
                f"{name} has label {max(data.labels)}, the model only {model.n_classes} classes "
                f"(counted from 0): SequenceClassifier(encoder, n_classes={max(data.labels) + 1})"
            )
    if train.label_names != valid.label_names:
        raise ValueError(
            f"train has the labels {train.label_names}, valid {valid.label_names}; split one table, "
            "or read the second with the labels of the first: read_table(path, label_names=...)"
        )
    if len(train.label_names) == model.n_classes:
        model.labels = train.label_names  # what `predict` will call the classes
    strategy = Full() if strategy is None else strategy
    recipe = Recipe.of(
        train, epochs, steps, validate_every, by_epoch=True, batch_size=batch_size,
        lr=strategy.learning_rate if lr is None else lr, warmup=warmup, weight_decay=weight_decay,
        clip=clip, seed=seed, precision=precision,
    )  # fmt: skip
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
            model, train, lambda batch: classification_loss(model, batch, train_prefix), validate,
            strategy, recipe, progress=progress, on_freeze=on_freeze, n_targets=len,
        )  # fmt: skip
