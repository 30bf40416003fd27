r"""The exercises of the notebook on pretraining objectives: what is hidden, and where there is a loss.

The known mistakes are, as in `mistakes.py`, the formula written once with switches.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...proofs.draws import BATCH
from ...proofs.formula import Inputs
from ..engine.diagnosis import Exercise, Mistake
from .mistakes import LOG_MISTAKES, averaged, token_losses

VOCAB, LENGTH = 31, 67

# --- Which tokens are hidden, and by what -----------------------------------------------------


def draw_tokens(rng: np.random.Generator, case: str) -> Inputs:
    """Many tokens are chosen, so that each of the three ways occurs often."""
    size = (BATCH, LENGTH)
    return {
        "ids": rng.integers(5, VOCAB, size),
        "special": rng.random(size) < (0.3 if case == "special tokens" else 0),
        "u": 0.3 * rng.random(size),
        "v": rng.random(size),
        "drawn": rng.integers(5, VOCAB, size),
        "mask_id": 4,
    }


def mask_tokens_reference(
    ids: Tensor, special: Tensor, u: Tensor, v: Tensor, drawn: Tensor, mask_id: int
) -> Tensor:
    """The rule word for word, token by token."""
    seen = ids.clone()
    for place in (~special & (u < 0.15)).nonzero().tolist():
        at = tuple(place)
        if v[at] < 0.8:
            seen[at] = mask_id
        elif v[at] < 0.9:
            seen[at] = drawn[at]
    return seen


def mask_tokens_variant(
    ids: Tensor,
    special: Tensor,
    u: Tensor,
    v: Tensor,
    drawn: Tensor,
    mask_id: int,
    choice: str = "15 %",
    may: str = "ordinary",
    masked: str = "80 %",
    replaced: str = "10 %",
) -> Tensor:
    """Masking with a switch for the choice and for each share."""
    chosen = {"15 %": u < 0.15, "the others": u >= 0.15, "all": torch.ones_like(special)}[choice]
    if may == "ordinary":
        chosen = chosen & ~special
    hide = v < {"80 %": 0.8, "90 %": 0.9, "all": 2.0}[masked]
    draw = {
        "10 %": ~hide & (v < 0.9),
        "the last 10 %": v >= 0.9,
        "all the rest": ~hide,
        "none": torch.zeros_like(hide),
        "over the masks": v < 0.9,
        "under 0.1": v < 0.1,
    }[replaced]
    seen = torch.where(chosen & hide, mask_id, ids)
    return torch.where(chosen & draw, drawn, seen)


SHARES = "the shares of 80, 10 and 10 %"
mask_tokens = Exercise(
    title="masking tokens",
    formula="chosen: not special and u < 0.15; of these [MASK] if v < 0.8, the drawn token if "
    "0.8 <= v < 0.9, else as it was",
    reference=mask_tokens_reference,
    variant=mask_tokens_variant,
    draw=draw_tokens,
    cases=("special tokens", "no special tokens"),
    axes="batch length",
    mistakes=(
        Mistake(
            "with special tokens chosen like others",
            "not special",
            "[CLS], [SEP] and the padding are in every text: there is nothing to learn from them.",
            {"may": "all"},
        ),
        Mistake(
            "with [MASK] at every chosen token",
            SHARES,
            "Was it decided with the same random number as the choice? Under 0.15 it is always "
            "under 0.8. The second question needs a number of its own, v.",
            {"masked": "all"},
        ),
        Mistake(
            "with 90 % masked and none drawn",
            SHARES,
            "What is under 0.8 is under 0.9 too: in a chain of if and elif the smaller bound comes first.",
            {"masked": "90 %"},
        ),
        Mistake(
            "with no token drawn at random",
            SHARES,
            "The bounds add up: 0.8 to 0.9 is drawn, not v < 0.1 after v < 0.8 has been asked.",
            {"replaced": "none"},
        ),
        Mistake(
            "with every chosen token drawn that is not masked",
            SHARES,
            "Where v >= 0.9 the token stays as it was, and is asked for all the same.",
            {"replaced": "all the rest"},
        ),
        Mistake(
            "with the drawn tokens written over the masks",
            SHARES,
            "v < 0.9 holds where v < 0.8 does. Ask for both bounds, or write the masks last.",
            {"replaced": "over the masks"},
        ),
        Mistake(
            "with the first eighth of the masked tokens drawn, not masked",
            SHARES,
            "The tokens with v < 0.1 are among the 80 %: the drawn ones lie from 0.8 to 0.9.",
            {"replaced": "under 0.1"},
        ),
        Mistake(
            "with the drawn ones and those that stay exchanged",
            "0.8 <= v < 0.9",
            "As shares that is just as good; the check wants the drawn ones first, to compare.",
            {"replaced": "the last 10 %"},
        ),
        Mistake(
            "with all ordinary tokens chosen",
            "u < 0.15",
            "80 % of the chosen are masked, not 80 % of all.",
            {"choice": "all"},
        ),
        Mistake(
            "with the chosen and the other tokens exchanged",
            "u < 0.15",
            "A token is chosen where its u is below the share.",
            {"choice": "the others"},
        ),
    ),
    next="Next: the loss, which must know what was chosen, since it can't be seen in the ids.",
)

# --- The loss at the chosen places ------------------------------------------------------------


def draw_predictions(rng: np.random.Generator, case: str) -> Inputs:
    """Some of the tokens are chosen in every text; token 0 is asked for too."""
    length = 13
    keep = np.ones((BATCH, length), bool)
    if case == "padding":
        keep = np.arange(length) < np.array([[13], [8], [10]])
    chosen = keep & (rng.random((BATCH, length)) < 0.4)
    chosen[:, 1], chosen[0, 5], chosen[:, 2] = True, True, False
    targets = rng.integers(0, 11, (BATCH, length))
    targets[0, 1] = 0
    return {
        "logits": 2 * rng.standard_normal((BATCH, length, 11)),
        "targets": targets,
        "chosen": chosen,
        "keep": keep,
    }


def masked_loss_variant(
    logits: Tensor,
    targets: Tensor,
    chosen: Tensor,
    keep: Tensor,
    counted: str = "chosen",
    mean: str = "tokens",
    p: str = "softmax",
    shift: str = "none",
) -> Tensor:
    """The loss with a switch for what is counted, how it is averaged, and what is compared."""
    if shift == "next":
        logits, targets, chosen, keep = logits[:, :-1], targets[:, 1:], chosen[:, 1:], keep[:, 1:]
    where = {
        "chosen": chosen,
        "all": torch.ones_like(keep),
        "real": keep,
        "not chosen": keep & ~chosen,
        "not token 0": chosen & (targets != 0),
    }[counted]
    losses = token_losses(logits, targets, p)
    if mean == "real":
        return averaged(losses, where, "sum") / keep.sum()
    return averaged(losses, where, mean)


M = "the mean over M, the chosen places"
masked_loss = Exercise(
    title="the loss of a masked language model",
    formula="-1/|M| Σ log p(x_nt) over the chosen places (n, t) in M",
    reference=lambda logits, targets, chosen, keep: ops.cross_entropy(
        logits[chosen], targets[chosen]
    ),
    variant=masked_loss_variant,
    draw=draw_predictions,
    cases=("padding", "no padding"),
    axes="",
    mistakes=(
        Mistake(
            "with every position counted, padding too",
            M,
            "Most tokens stand there to be read, and padding is not even text. Only what was chosen is "
            "asked for.",
            {"counted": "all"},
        ),
        Mistake(
            "with every real token counted",
            M,
            "A token that is not hidden is copied, not predicted: the loss falls fast, and little is "
            "learned.",
            {"counted": "real"},
        ),
        Mistake(
            "with the tokens counted that are not chosen",
            M,
            "The mask is the other way round.",
            {"counted": "not chosen"},
        ),
        Mistake(
            "with token 0 never counted",
            M,
            "ignore_index=0 takes the token with that id for a place without a question. Take "
            "logits[chosen], or an index that is no token's, as -100.",
            {"counted": "not token 0"},
        ),
        Mistake(
            "divided by the number of positions",
            M,
            "The sum has |M| terms. So it goes with (losses * chosen).mean().",
            {"mean": "positions"},
        ),
        Mistake(
            "divided by the number of real tokens",
            M,
            "The sum has |M| terms: with 15 % chosen this is a seventh of the loss.",
            {"mean": "real"},
        ),
        Mistake(
            "as the mean of the texts' means",
            M,
            "A token of a text with few chosen ones would count more. Add up all, divide once.",
            {"mean": "texts"},
        ),
        Mistake("divided by the number of texts", M, "The mean is over tokens.", {"mean": "batch"}),
        Mistake("summed, not averaged", M, "Divide by |M|.", {"mean": "sum"}),
        Mistake(
            "with a shift, as for a causal model",
            "log p(x_nt) at place t",
            "The hidden token is asked for at its own place.",
            {"shift": "next"},
        ),
        *LOG_MISTAKES,
    ),
    next="Next: the head needs to be computed at those places only, which saves six sevenths of it.",
)

# --- Spans ------------------------------------------------------------------------------------


def draw_spans(rng: np.random.Generator, case: str) -> Inputs:
    """Spans of different lengths; at both ends of the text in one case."""
    lengths = [2, 3, 4, 1, 5, 2] if case == "ends with text" else [0, 2, 4, 1, 5, 3]
    noise = np.concatenate([np.full(n, i % 2 == 1) for i, n in enumerate(lengths)])
    if case == "ends with text":  # a third span, and text behind it
        noise = np.concatenate([noise, [False]])
    ids = rng.integers(5, VOCAB, len(noise))
    return {
        "ids": ids, "noise": noise, "sentinels": 100 + rng.permutation(len(noise)), "pad_id": 0,
    }  # fmt: skip


def corrupt_spans_variant(
    ids: Tensor,
    noise: Tensor,
    sentinels: Tensor,
    pad_id: int,
    cut: str = "noise",
    which: str = "next",
    put: str = "one a span",
    span: str = "goes",
    starts: str = "not before",
    end: str = "open",
) -> Tensor:
    """The source with a switch for each of its parts."""
    hidden = (noise if cut == "noise" else ~noise).tolist()
    source: list[Any] = []
    used = 0
    for t, token in enumerate(ids.tolist()):
        before = hidden[t - 1] if t or starts == "wraps" else False
        if hidden[t] and put != "none":
            first = not before
            if first or put != "one a span":
                new = first or put == "one a token"
                used += new
                place = {"next": used - 1, "the first": 0, "from the last": len(sentinels) - used}
                source.append(int(sentinels[place[which]]))
        if not hidden[t] or span == "stays":
            source.append(token)
    if end == "closed":
        source.append(int(sentinels[used]))
    padded = (source + [pad_id] * len(ids))[: len(ids)]
    return torch.tensor(padded)


SENTINEL = "one sentinel for each span"
corrupt_spans = Exercise(
    title="cutting spans out of a text",
    formula="source: the text with each span of noise replaced by the next sentinel, filled with pad_id",
    reference=corrupt_spans_variant,
    variant=corrupt_spans_variant,
    draw=draw_spans,
    cases=("ends with text", "spans at both ends"),
    axes="length",
    mistakes=(
        Mistake(
            "with a sentinel of its own for each token",
            SENTINEL,
            "The model is to find out how long the span is. A sentinel stands where noise[t] is True and "
            "noise[t - 1] is not.",
            {"put": "one a token"},
        ),
        Mistake(
            "with the span's sentinel at each of its tokens",
            SENTINEL,
            "That tells the model how long the span is, and makes the source no shorter.",
            {"put": "the same at each"},
        ),
        Mistake(
            "with the same sentinel for all spans",
            SENTINEL,
            "The target must be able to say which hole it fills: use the next one for each span.",
            {"which": "the first"},
        ),
        Mistake(
            "with the sentinels taken from the end",
            SENTINEL,
            "The first span gets the first of the list. (T5's own ids count down, its list does not.)",
            {"which": "from the last"},
        ),
        Mistake(
            "without sentinels",
            SENTINEL,
            "Nothing says where something is missing.",
            {"put": "none"},
        ),
        Mistake(
            "with the spans left in the text",
            "replaced",
            "The answer is still there to be read.",
            {"span": "stays"},
        ),
        Mistake(
            "with noise and text exchanged",
            "noise",
            "noise is True at what goes.",
            {"cut": "text"},
        ),
        Mistake(
            "with the first token compared with the last",
            "the start of a span",
            "roll(1) and the index -1 wrap around: nothing stands before the first token.",
            {"starts": "wraps"},
        ),
        Mistake(
            "with the closing sentinel in the source",
            "source",
            "It belongs to the target, where it says that no span follows.",
            {"end": "closed"},
        ),
    ),
    next="Next: the target, which has the same sentinels, each with its span behind it.",
)
