"""What training minimises."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.masking import MaskedBatch
from ..data.sequences import PairBatch
from ..formulas import ops
from ..model.config import TransformerConfig
from ..model.heads import CausalLM, MaskedLM, Seq2SeqLM, SequenceClassifier
from .frozen_cache import FrozenPrefix

Objective = Callable[[Any, Any], Tensor]
"""The mean loss of a model on a batch, over the batch's `n_targets`."""


def classification_loss(
    model: SequenceClassifier, batch: Batch, prefix: FrozenPrefix | None = None,
    weights: Float[Tensor, "classes"] | None = None,
) -> Float[Tensor, ""]:  # fmt: skip
    r"""Cross-entropy of the classes: $-\frac1N \sum_n w_{y_n} \log \mathrm{softmax}(\text{logits}_n)_{y_n}$.

    A `prefix` looks up the outputs of the frozen layers; the `weights` are 1 if not given. Source:
    article, section 3.2.
    """
    logits = prefix.logits(batch) if prefix else model(batch.ids, batch.keep)
    assert batch.labels is not None
    if weights is None:
        return cross_entropy(model.encoder.config, logits, batch.labels)
    exact = logits.float() if logits.dtype is torch.bfloat16 else logits
    losses = nn.functional.cross_entropy(exact, batch.labels, reduction="none")
    return (weights.to(losses)[batch.labels] * losses).mean()


def causal_lm_loss(model: CausalLM, batch: Batch) -> Float[Tensor, ""]:
    r"""Cross-entropy of every next token: $-\frac1N \sum_{n,t} \log p(x_{n,t+1} \mid x_{n,\le t})$.

    The shift is here and nowhere else: position t predicts the token at t + 1, so the last position
    predicts nothing, and nothing predicts the first token. $N$ counts the real next tokens; the head
    computes logits for these only.

    Raises: ValueError: no text of the batch has a second token.
    Source: Radford et al. 2018, equation 1.
    """
    if not (asked := batch.predicted).any():
        raise ValueError("no text of this batch has two tokens, so there is no next one to predict")
    keep = None if batch.keep.all() else batch.keep[..., :-1]
    hidden = model.decoder(batch.ids[:, :-1], keep)
    logits = model.logits(hidden[asked][None])[0]
    return cross_entropy(model.config, logits, batch.ids[:, 1:][asked])


def seq2seq_loss(model: Seq2SeqLM, batch: PairBatch) -> Float[Tensor, ""]:
    r"""Cross-entropy of the target, given the source: $-\frac1N \sum_{n,t} \log p(y_{n,t} \mid y_{n,<t}, x_n)$.

    Teacher forcing: the decoder reads the right target, not its own output, shifted by one: the start
    token, then $y_1, y_2, \dots$, so that at $t$ it knows everything before $y_t$. The end token is
    predicted like any other (otherwise the model would never stop); padding never is.

    Raises: ValueError: the config has no `start_id`.
    Source: Vaswani et al. 2017, section 3.1; Sutskever, Vinyals and Le 2014, section 2.
    """
    if (start := model.config.start_id) is None:
        raise ValueError("the decoder reads a start token first: TransformerConfig(start_id=...)")
    given = shift_right(batch.target, start)
    # The target's padding comes after its tokens, where causality hides it.
    hidden = model.encoder_decoder(batch.source, given, batch.source_keep)
    asked = batch.target_keep[:, 0, 0]
    logits = model.logits(hidden[asked][None])[0]
    return cross_entropy(model.config, logits, batch.target[asked])


def masked_lm_loss(model: MaskedLM, batch: MaskedBatch) -> Float[Tensor, ""]:
    r"""Cross-entropy of the chosen tokens: $-\frac1{|M|} \sum_{(n,t) \in M} \log p(x_{n,t} \mid \tilde x_n)$.

    $M$ are the chosen positions, $\tilde x$ is the text with most of them hidden. Every token may
    attend to all of $\tilde x$, so without hiding there would be nothing to predict. The head, with
    its product over the whole vocabulary, computes logits at the chosen positions only.

    Raises: ValueError: the batch has no chosen token.
    Source: Devlin et al. 2019, section 3.1, Task 1.
    """
    return cross_entropy(model.config, *masked_predictions(model, batch))


def masked_predictions(
    model: MaskedLM, batch: MaskedBatch
) -> tuple[Float[Tensor, "chosen vocab"], Int[Tensor, "chosen"]]:
    """The logits at the chosen positions, and the tokens that stood there."""
    if not batch.chosen.any():
        raise ValueError("no token of this batch is chosen, so there is nothing to predict")
    hidden = model.encoder(batch.ids, batch.keep)
    return model.logits(hidden[batch.chosen][None])[0], batch.targets[batch.chosen]


def shift_right(target: Int[Tensor, "batch length"], start_id: int) -> Int[Tensor, "batch length"]:
    """What the decoder reads while it predicts the target: the start token, then all but the last."""
    start = torch.full_like(target[:, :1], start_id)
    return torch.cat([start, target[:, :-1]], 1)


def cross_entropy(
    config: TransformerConfig, logits: Float[Tensor, "n classes"], targets: Int[Tensor, "n"]
) -> Float[Tensor, ""]:
    """The mean over the targets, with the operations of the config."""
    if logits.dtype is torch.bfloat16:  # autocast; the sum of exponentials needs more digits
        logits = logits.float()
    return ops.OPS[config.ops].cross_entropy(logits, targets)


def objective_of(model: nn.Module) -> Objective:
    """The loss that a language model is trained with, by its kind."""
    known: list[tuple[type, Objective]] = [
        (CausalLM, causal_lm_loss), (Seq2SeqLM, seq2seq_loss), (MaskedLM, masked_lm_loss)
    ]  # fmt: skip
    for kind, objective in known:
        if isinstance(model, kind):
            return objective
    raise TypeError(
        f"{type(model).__name__} has no objective of its own; give one, or a CausalLM, Seq2SeqLM or "
        "MaskedLM"
    )
