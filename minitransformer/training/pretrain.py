"""Training a language model on text, and how well it predicts."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM
from ..model.layers import eval_mode
from ..options import Precision, Schedule
from .checkpointing import Checkpoint, described
from .history import Entry, History
from .loop import Data, Recipe, fit
from .objectives import Objective, cross_entropy, masked_lm_loss, masked_predictions, objective_of
from .optim import WEIGHT_DECAY
from .precision import matmul_precision
from .strategies import Full, Strategy


def pretrain(
    model: nn.Module, train: Data, valid: Data, objective: Objective | None = None, *,
    strategy: Strategy | None = None,
    epochs: int = 1, steps: int | None = None, validate_every: int | None = None,
    lr: float = 1e-3, batch_size: int = 32, warmup: float = 0.1, schedule: Schedule = "linear",
    weight_decay: float = WEIGHT_DECAY, clip: float = 1.0, seed: int = 0,
    precision: Precision = "auto", accumulate: int = 1,
    checkpoint: str | Path | None = None, checkpoint_every: int | None = None,
    resume: bool = False, progress: bool = True,
) -> History:  # fmt: skip
    """Train a language model; on return it is in evaluation mode with its best weights restored.

    From scratch, or from weights that it already has: on another domain's text that is fine-tuning.
    With a checkpoint the run may be stopped at any moment, even by a power cut: the same call with
    `resume=True` continues, and ends bit for bit as if nothing had happened.

    Several processes share every batch if `torch.distributed` is initialised in each, as `torchrun`
    and the command line do; the first shows the progress and writes the files.

    Args:
        train, valid: packed blocks (`data.pack`) or texts for a `CausalLM`, `EncodedPairs` for a
            `Seq2SeqLM`, or `CorruptedSpans` for T5's objective; `MaskedTexts` for a `MaskedLM`. The
            smallest validation loss decides which weights are the best.
        objective: the loss, as a function of the model and a batch: the mean over the batch's
            `n_targets`. By default that of the model's kind: `causal_lm_loss`, `seq2seq_loss` or
            `masked_lm_loss`, which reports `valid_masked_accuracy` too.
        validate_every: steps from one validation to the next; a tenth of all when not given.
        lr: the highest learning rate, for any strategy: about 1e-3 for a small new model, less for a
            larger one or for one that has learned already.
        schedule: how the rate falls after the warm-up, "linear" or "cosine".
        accumulate: work through each batch in this many parts, which takes less memory; the result
            is the same to rounding.
        checkpoint: a folder for the state of the run and its history; nothing is saved by default.
        checkpoint_every: steps from one checkpoint to the next; `validate_every` when not given.
        resume: resume from the checkpoint if there is one, otherwise start a new run.

    The other arguments, the optimizer and the result are those of `finetune`.

    Raises:
        TypeError: a model without an objective of its own, and none given.
        ValueError: data with ids that the model's vocabulary does not have, or the checkpoint of
            another run; the message says what differs.
        FileExistsError: the folder already holds a run and `resume` is false.
        OSError: a checkpoint could not be written; the previous one is unchanged.
        FloatingPointError: the loss is no longer finite.

    Source: Radford et al. 2018, sections 3.1 and 4.1; Vaswani et al. 2017, section 5.
    """
    loss = objective_of(model) if objective is None else objective
    for name, data in (("train", train), ("valid", valid)):
        refuse_unknown_ids(model, data, name)
    strategy = Full() if strategy is None else strategy
    recipe = Recipe.of(
        train, epochs, steps, validate_every, by_epoch=False, batch_size=batch_size, lr=lr,
        warmup=warmup, weight_decay=weight_decay, clip=clip, seed=seed, precision=precision,
        schedule=schedule, accumulate=accumulate,
    )  # fmt: skip
    saved = None
    if checkpoint is not None:
        run = described(recipe, strategy, loss, train, valid)
        every = recipe.validate_every if checkpoint_every is None else checkpoint_every
        saved = Checkpoint(checkpoint, every, resume, run)
    return fit(
        model, train, lambda batch: loss(model, batch), lambda: scores(model, valid, loss), strategy,
        recipe, progress=progress, checkpoint=saved,
    )  # fmt: skip


def refuse_unknown_ids(model: nn.Module, data: Data, name: str) -> None:
    """Reject no data, and the ids of another model's tokenizer, before the first step."""
    if not len(data):
        raise ValueError(f"{name} has no texts; give at least one")
    config: Any = getattr(model, "config", None)
    for batch in data.batches(64) if config else ():
        tensors = [t for t in vars(batch).values() if isinstance(t, Tensor) and len(t)]
        largest = max((int(t.max()) for t in tensors if not t.is_floating_point()), default=-1)
        if largest >= config.vocab_size:
            raise ValueError(
                f"{name} has the id {largest}, the model only {config.vocab_size} tokens (counted from "
                "0): the tokenizer does not belong to it; "
                "TransformerConfig(vocab_size=tokenizer.vocab_size)"
            )


@torch.no_grad()
def scores(
    model: nn.Module, data: Data, objective: Objective | None = None, batch_size: int = 64,
    precision: Precision = "medium",
) -> Entry:  # fmt: skip
    """`mean_loss`, and for a `MaskedLM` trained as such `masked_accuracy`, in one pass."""
    loss = objective_of(model) if objective is None else objective
    masked = model if loss is masked_lm_loss and isinstance(model, MaskedLM) else None
    total, right, n = 0.0, 0, 0
    with eval_mode(model), matmul_precision(precision):
        for batch in data.batches(batch_size):
            if masked:
                logits, targets = masked_predictions(masked, batch)
                mean = cross_entropy(masked.config, logits, targets)
                right += int((logits.argmax(-1) == targets).sum())
            else:
                mean = loss(model, batch)
            total, n = total + mean.item() * batch.n_targets, n + batch.n_targets
    return {"loss": total / n} | ({"masked_accuracy": right / n} if masked else {})


def mean_loss(
    model: nn.Module, data: Data, objective: Objective | None = None, batch_size: int = 64,
    precision: Precision = "medium",
) -> float:  # fmt: skip
    r"""The loss per token, over all of the data: $\frac{\sum_b N_b L_b}{\sum_b N_b}$.

    Batches have different numbers $N_b$ of tokens, so the plain mean of their losses $L_b$ would
    differ, and depend on the batch size. The model's mode is left as it was.
    """
    return scores(model, data, objective, batch_size, precision)["loss"]


def masked_accuracy(
    model: MaskedLM, data: Data, batch_size: int = 64, precision: Precision = "medium"
) -> float:
    """The fraction of the chosen tokens that the model guesses right, over all of the data.

    10 % of them are visible (see `MaskedTexts`), so copying alone gives about 0.1.
    """
    return scores(model, data, masked_lm_loss, batch_size, precision)["masked_accuracy"]


def perplexity(
    model: CausalLM | Seq2SeqLM | MaskedLM, data: Data, batch_size: int = 64,
    precision: Precision = "medium",
) -> float:  # fmt: skip
    r"""How many equally likely tokens would be as hard to guess: $\exp\!\left(-\frac1N \sum_n \log p(x_n \mid x_{<n})\right)$.

    1 is certainty, the size of the vocabulary is blind guessing. $N$ counts all predicted tokens of
    the data. Compare models on the same tokens only: another tokenizer makes other tokens, and blocks
    of another length give less or more context. For a `MaskedLM` the $n$ are the chosen tokens, each
    predicted from everything visible, which is not comparable with a causal model.

    Source: Jurafsky and Martin, Speech and Language Processing, chapter on n-gram language models.
    """
    return math.exp(mean_loss(model, data, None, batch_size, precision))
