"""Fine-tuning: the article's five steps in one call."""

from ..data.batches import EncodedTexts
from ..model.heads import SequenceClassifier
from ..options import Precision
from .evaluate import evaluate
from .frozen_cache import prefixes
from .history import Entry, History
from .layers import layers_of
from .loop import Recipe, fit
from .objectives import classification_loss
from .rows_in_use import RowsInUse
from .strategies import Full, Strategy


def finetune(
    model: SequenceClassifier,
    train: EncodedTexts,
    valid: EncodedTexts,
    strategy: Strategy | None = None,
    *,
    epochs: int = 3,
    steps: int | None = None,
    validate_every: int | None = None,
    lr: float | None = None,
    batch_size: int = 32,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    precision: Precision = "auto",
    cache_mib: int = 1024,
    progress: bool = True,
) -> History:
    """Train a classifier on labelled texts and leave it, in evaluation mode, as it was at its best.

    Args:
        train, valid: encoded with the same tokenizer and the same labels; the validation set
            chooses the moment whose weights are kept.
        strategy: which layers learn, at which rate; `Full()` when not given.
        epochs: passes over the training data.
        steps: batches to train on instead, over as many epochs as they take.
        validate_every: steps from one validation to the next; an epoch when not given, and at least
            a tenth of `steps`.
        lr: base learning rate; the strategy's own when not given.
        warmup: the share of the steps over which the rate rises; then it falls linearly to zero.
        weight_decay: AdamW's decay, of weight matrices and embeddings only.
        clip: the largest norm of the gradient.
        seed: of the order of the examples and of dropout.
        precision: of matrix products in training: "highest", "medium", "bfloat16", or "auto", which
            is bfloat16 where the CPU has it. Validation and prediction stay in float32.
        cache_mib: memory for the outputs of frozen layers, which are computed once for each text;
            0 computes them every epoch. The result is the same to rounding.
        progress: show a bar with the loss and the examples per second.

    Returns: the history; `history.plot()` draws it.

    Raises:
        ValueError: data without labels, labels that the model has no classes for, a validation set
            that numbers its labels otherwise, or a strategy that does not fit the model.
        FloatingPointError: the loss is no longer a number.

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
    if train.label_names and len(train.label_names) == model.n_classes:
        model.labels = train.label_names
    strategy = Full() if strategy is None else strategy
    per_epoch = -(-len(train) // batch_size)
    if steps is None:
        steps, validate_every = epochs * per_epoch, validate_every or per_epoch
    valid_prefix, train_prefix = prefixes(model, (valid, train), cache_mib)

    rows = RowsInUse(model.encoder.embeddings, train)

    def validate() -> Entry:
        with rows.outside():  # texts with words that no training text has
            metrics = evaluate(model, valid, prefix=valid_prefix)
        return {"loss": metrics.loss, "accuracy": metrics.accuracy}

    def on_freeze(n_layers: int) -> None:
        valid_prefix.freeze(n_layers)
        train_prefix.freeze(n_layers)

    recipe = Recipe(
        steps, validate_every or max(per_epoch, -(-steps // 10)),
        strategy.learning_rate if lr is None else lr, batch_size, warmup, weight_decay, clip, seed,
        precision,
    )  # fmt: skip
    with strategy.applied(model, seed), rows.inside():
        return fit(
            model,
            train,
            layers_of(model),
            lambda batch: classification_loss(model, batch, train_prefix),
            validate,
            strategy,
            recipe,
            progress=progress,
            on_freeze=on_freeze,
            n_targets=len,
        )
