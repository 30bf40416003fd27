"""Training a language model on text, and how well it predicts."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.layers import eval_mode
from ..options import Precision, Schedule
from .checkpointing import Checkpoint, digest, identity_of
from .history import Entry, History
from .layers import layers_of
from .loop import Data, Recipe, fit
from .objectives import Objective, cross_entropy, masked_lm_loss, masked_predictions, objective_of
from .precision import matmul_precision
from .strategies import Full, Strategy


def pretrain(
    model: nn.Module,
    train: Data,
    valid: Data,
    objective: Objective | None = None,
    *,
    strategy: Strategy | None = None,
    epochs: int = 1,
    steps: int | None = None,
    validate_every: int | None = None,
    lr: float = 1e-3,
    batch_size: int = 32,
    warmup: float = 0.1,
    schedule: Schedule = "linear",
    weight_decay: float = 0.01,
    clip: float = 1.0,
    seed: int = 0,
    precision: Precision = "auto",
    accumulate: int = 1,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train a whole language model and leave it, in evaluation mode, as it was at its best.

    From scratch, or on from weights that there are: on another domain's text that is fine-tuning.
    AdamW, a warm-up, a decay and clipping, as in `finetune`, and the same loop. With a checkpoint
    the run may be stopped at any moment, by a power cut too: the same call with `resume=True` goes
    on, and ends as if nothing had happened, bit for bit.

    Several processes share the work when `torch.distributed` is initialised in each, as `torchrun`
    and the command line do: each takes its part of every batch, with random numbers of its own for
    dropout, and the first shows the progress and writes the files.

    Args:
        train, valid: packed blocks (`data.pack`) or texts for a `CausalLM`, `EncodedPairs` for a
            `Seq2SeqLM`, or `CorruptedSpans` for T5's objective; `MaskedTexts` for a `MaskedLM`. The
            smallest validation loss decides whose weights are kept.
        objective: what is minimised, by default what the model is for: `causal_lm_loss`,
            `seq2seq_loss` or `masked_lm_loss`, which reports `valid_masked_accuracy` too. A function
            of the model and a batch: the mean loss over the batch's `n_targets`.
        strategy: which layers learn; `Full()` when not given. `lr` is the base rate of any.
        epochs: passes over the training data.
        steps: batches to train on instead, over as many epochs as they take.
        validate_every: steps from one validation to the next; a tenth of all when not given.
        lr: the highest learning rate: about 1e-3 for a small new model, less for a larger one or
            for one that has learned already.
        schedule: how the rate falls after the warm-up, "linear" or "cosine".
        accumulate: work through each batch in so many parts, for less memory; the result is the
            same to rounding.
        checkpoint: a folder for the state of the run and its history; none is kept when not given.
        checkpoint_every: steps from one to the next; those of `validate_every` when not given.
        resume: go on from the checkpoint that there is; start where there is none.

    The other arguments are those of `finetune`.

    Returns: the history; `history.plot()` draws it.

    Raises:
        TypeError: a model without an objective of its own, and none given.
        ValueError: data with ids that the model's vocabulary does not have, or the checkpoint of
            another run; the message says what differs.
        FileExistsError: a checkpoint that there is already, without `resume`.
        OSError: a checkpoint could not be written; the one before is as it was.
        FloatingPointError: the loss is no longer a number.

    Source: Radford et al. 2018, sections 3.1 and 4.1; Vaswani et al. 2017, section 5.
    """
    loss = objective_of(model) if objective is None else objective
    strategy = Full() if strategy is None else strategy
    if steps is None:
        steps = epochs * -(-len(train) // batch_size)

    validate_every = validate_every or -(-steps // 10)
    recipe = Recipe(
        steps, validate_every, lr, batch_size, warmup, weight_decay, clip, seed, precision,
        schedule, accumulate,
    )  # fmt: skip
    for name, data in (("train", train), ("valid", valid)):
        refuse_unknown_ids(model, data, name)

    def validate() -> Entry:
        if loss is masked_lm_loss and isinstance(model, MaskedLM):
            return masked_scores(model, valid)
        return {"loss": mean_loss(model, valid, loss)}

    def saved() -> Checkpoint | None:
        if checkpoint is None:
            return None
        identity = identity_of(
            model, recipe, strategy=repr(strategy),
            objective=getattr(loss, "__name__", type(loss).__name__),
            train=digest(train), valid=digest(valid),
        )  # fmt: skip
        return Checkpoint(checkpoint, checkpoint_every or validate_every, resume, identity)

    with strategy.applied(model, seed):
        return fit(
            model,
            train,
            layers_of(model),
            lambda batch: loss(model, batch),
            validate,
            strategy,
            recipe,
            progress=progress,
            checkpoint=saved(),
        )


def refuse_unknown_ids(model: nn.Module, data: Data, name: str) -> None:
    """A tokenizer of another model, before the first step.

    Raises:
        ValueError: an id that the model's vocabulary does not have.
    """
    config = getattr(model, "config", None)
    if config is None:
        return
    for batch in data.batches(64):
        for value in vars(batch).values():
            if isinstance(value, Tensor) and not value.is_floating_point() and len(value):
                largest = int(value.max())
                if largest >= config.vocab_size:
                    raise ValueError(
                        f"{name} has the id {largest}, the model only {config.vocab_size} tokens "
                        "(counted from 0): the tokenizer does not belong to it; "
                        "TransformerConfig(vocab_size=tokenizer.vocab_size)"
                    )


@torch.no_grad()
def mean_loss(
    model: nn.Module,
    data: Data,
    objective: Objective | None = None,
    batch_size: int = 64,
    precision: Precision = "medium",
) -> float:
    r"""The loss of a token, over all of the data: $\frac{\sum_b N_b L_b}{\sum_b N_b}$.

    Batches have different numbers $N_b$ of tokens, so the mean of their losses $L_b$ would be
    another number, and a different one for every batch size. The model's mode is left as it was.

    Raises:
        TypeError: as `pretrain`.
    """
    loss = objective_of(model) if objective is None else objective
    total, tokens = 0.0, 0
    with eval_mode(model), matmul_precision(precision):
        for batch in data.batches(batch_size):
            n = batch.n_targets
            total, tokens = total + loss(model, batch).item() * n, tokens + n
    return total / tokens


def masked_accuracy(
    model: MaskedLM, data: Data, batch_size: int = 64, precision: Precision = "medium"
) -> float:
    """Which share of the chosen tokens the model guesses right, over all of the data.

    Of these 10 % stand there to be read (see `MaskedTexts`), so copying alone gives about 0.1.
    """
    return masked_scores(model, data, batch_size, precision)["masked_accuracy"]


@torch.no_grad()
def masked_scores(
    model: MaskedLM, data: Data, batch_size: int = 64, precision: Precision = "medium"
) -> Entry:
    """`mean_loss` and `masked_accuracy` in one pass; the accuracy does not decide what is best."""
    total, right, tokens = 0.0, 0, 0
    with eval_mode(model), matmul_precision(precision):
        for batch in data.batches(batch_size):
            logits, targets = masked_predictions(model, batch)
            total += cross_entropy(model.config, logits, targets).item() * len(targets)
            right, tokens = right + int((logits.argmax(-1) == targets).sum()), tokens + len(targets)
    return {"loss": total / tokens, "masked_accuracy": right / tokens}


def perplexity(
    model: CausalLM | Seq2SeqLM | MaskedLM,
    data: Data,
    batch_size: int = 64,
    precision: Precision = "medium",
) -> float:
    r"""How many equally likely tokens would be as hard to guess: $\exp\!\left(-\frac1N \sum_n \log p(x_n \mid x_{<n})\right)$.

    1 is certainty, the size of the vocabulary is blind guessing. $N$ counts all predicted tokens of
    the data. It compares models on the same tokens only: another tokenizer cuts other tokens, and
    blocks of another length give less or more to look back at. For a `MaskedLM` the $n$ are the
    chosen tokens, each given all that is not hidden: another number than a causal model's.

    Source: Jurafsky and Martin, Speech and Language Processing, chapter on n-gram language models.
    """
    return math.exp(mean_loss(model, data, None, batch_size, precision))
