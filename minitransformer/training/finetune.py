"""Fine-tuning: the article's five steps in one call."""

from ..data.batches import EncodedTexts
from ..model.heads import SequenceClassifier
from .loop import History, fit
from .objectives import classification_loss
from .precision import Precision
from .strategies import Full, Strategy, layers_of


def finetune(
    model: SequenceClassifier,
    train: EncodedTexts,
    valid: EncodedTexts,
    strategy: Strategy | None = None,
    *,
    epochs: int = 3,
    lr: float | None = None,
    batch_size: int = 32,
    warmup: float = 0.1,
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    precision: Precision = "auto",
    progress: bool = True,
) -> History:
    """Train a classifier on labelled texts and leave it, in evaluation mode, at its best epoch.

    Args:
        train, valid: encoded with the same tokenizer and the same labels; the validation set
            chooses the epoch that is kept.
        strategy: which layers learn, at which rate; `Full()` when not given.
        lr: base learning rate; the strategy's own when not given.
        warmup: the share of the steps over which the rate rises; then it falls linearly to zero.
        weight_decay: AdamW's decay, of weight matrices and embeddings only.
        clip: the largest norm of the gradient.
        seed: of the order of the examples and of dropout.
        precision: of matrix products in training: "highest", "medium", "bfloat16", or "auto", which
            is bfloat16 where the CPU has it. Validation and prediction stay in float32.
        progress: show a bar with the loss and the examples per second.

    Returns: the history; `history.plot()` draws it.

    Raises:
        ValueError: data without labels, labels that the model has no classes for, or a validation
            set that numbers its labels otherwise.
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
    return fit(
        model,
        train,
        valid,
        layers_of(model),
        classification_loss,
        strategy,
        epochs=epochs,
        lr=strategy.learning_rate if lr is None else lr,
        batch_size=batch_size,
        warmup=warmup,
        weight_decay=weight_decay,
        clip=clip,
        seed=seed,
        precision=precision,
        progress=progress,
    )
