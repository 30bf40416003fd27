r"""The exercises of notebook 08, on pretraining objectives: what is hidden, and where there is a loss."""

from string import ascii_lowercase
from unittest.mock import Mock

import numpy as np
import torch
from torch import Tensor

from ...data import spans
from ...data.batches import EncodedTexts, pad
from ...data.masking import MaskedTexts
from ...data.vocabulary import train_tokenizer
from ...formulas import ops
from ...proofs.draws import SIZES, Sizes
from ...proofs.formula import Inputs
from ..engine.diagnosis import OTHER_SIZES, Exercise
from ..engine.patches import known
from .shared import LOG, filled

N_SPECIAL, VOCAB = 5, 31


def draw_tokens(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Many tokens are chosen, so that each of the three outcomes occurs often; borders are met."""
    size = (sizes["batch"], 6 * sizes["keys"])
    inputs: Inputs = {
        "ids": rng.integers(N_SPECIAL, VOCAB, size),
        "special": rng.random(size) < (0.3 if case == "special tokens" else 0),
        "u": 0.3 * rng.random(size), "v": rng.random(size),
        "drawn": rng.integers(N_SPECIAL, VOCAB, size), "mask_id": 4 if sizes is SIZES else 3,
    }  # fmt: skip
    inputs["special"][:, :6] = False
    inputs["u"][:, :2], inputs["u"][:, 2:6] = 0.15, 0.1
    inputs["v"][:, :6] = [0.5, 0.85, 0.8, 0.9, 0.8, 0.9]
    inputs["ids"][:, 2], inputs["drawn"][:, 2:6] = 7, [8, 9, 10, 11]
    return inputs


def right_mask_tokens(
    ids: Tensor, special: Tensor, u: Tensor, v: Tensor, drawn: Tensor, mask_id: int
) -> Tensor:
    chosen = ~special & (u < 0.15)
    seen = torch.where(chosen & (v < 0.8), mask_id, ids)
    return torch.where(chosen & (v >= 0.8) & (v < 0.9), drawn, seen)


def mask_by_package(
    ids: Tensor, special: Tensor, u: Tensor, v: Tensor, drawn: Tensor, mask_id: int
) -> Tensor:
    """`MaskedTexts` where its generator returns these numbers; a [CLS] for every special token."""
    tokenizer = train_tokenizer([ascii_lowercase], "characters", bert=True)
    rows = ids.where(~special, tokenizer.special["[CLS]"]).tolist()
    texts = MaskedTexts(EncodedTexts(tuple(map(tuple, rows)), None, tokenizer.pad_id), tokenizer)
    chosen = ~special & (u < 0.15)
    rng = Mock(np.random.Generator)
    rng.random.side_effect = [u.numpy(), v[chosen].numpy()]
    rng.integers.return_value = drawn[chosen].numpy() - N_SPECIAL
    seen = texts.mask(pad(rows, tokenizer.pad_id), rng).ids
    return seen.masked_fill(seen == tokenizer.special["[MASK]"], mask_id).where(~special, ids)


DRAWN = "(v >= 0.8) & (v < 0.9)"
mask_tokens = Exercise(
    title="masking tokens",
    formula="chosen: not special and u < 0.15; of these [MASK] if v < 0.8, the drawn token if 0.8 <= v < 0.9, otherwise unchanged",
    right=right_mask_tokens, twins=(MaskedTexts.mask,), numbers=True, differentiated=False, package=mask_by_package, draw=draw_tokens, cases=("special tokens", "no special tokens", OTHER_SIZES), axes="batch length",
    mistakes=known(
        "not special",
        ("with special tokens chosen like others", "[CLS], [SEP] and the padding are in every text: there is nothing to learn from them.", "~special & ", ""),
        ("with special tokens chosen, and no others", "special is True at the tokens to be left alone.", "~special & ", "special & "),
        "the shares of 80, 10 and 10 %",
        ("with u for both questions, below 0.12 and below 0.135", "The shares are right, but the second question has a number of its own, v.", "(v < 0.8)", "(u < 0.12)", DRAWN, "(u >= 0.12) & (u < 0.135)"),
        ("with ≤ for < at all borders", "0.15, 0.8 and 0.9 themselves belong to the upper part: <, and >= on the other side.",
         "u < 0.15", "u <= 0.15", "v < 0.8", "v <= 0.8", "v >= 0.8", "v > 0.8", "v < 0.9", "v <= 0.9"),
        ("with [MASK] at every chosen token", "A u below 0.15 is always below 0.8: the second question needs a number of its own, v.", "(v ", "(u "),
        ("with 90 % masked and none drawn", "In a chain of if and elif the smaller bound comes first.", "v < 0.8", "v < 0.9", "v >= 0.8", "v >= 0.9"),
        ("with no token drawn at random", "The bounds add up: 0.8 to 0.9 is drawn, not v < 0.1 after v < 0.8 has been asked.", DRAWN, "(v >= 0.8) & (v < 0.1)"),
        ("with every chosen token drawn that is not masked", "Where v >= 0.9 the token stays as it was, and must still be predicted.", DRAWN, "(v >= 0.8)"),
        ("with the drawn tokens written over the masks", "Where v < 0.8, v < 0.9 holds too. Test both bounds, or write the masks last.", DRAWN, "(v < 0.9)"),
        ("with the first eighth of the masked tokens drawn, not masked", "v < 0.1 is in the 80 %: the drawn ones lie from 0.8 to 0.9.", DRAWN, "(v < 0.1)"),
        "0.8 <= v < 0.9",
        ("with the drawn ones and those that stay exchanged", "The shares are just as good; the check puts the drawn ones first.", DRAWN, "(v >= 0.9)"),
        "u < 0.15",
        ("with all ordinary tokens chosen", "80 % of the chosen tokens are masked, not 80 % of all.", " & (u < 0.15)", ""),
        ("with the chosen and the other tokens exchanged", "A token is chosen where its u is below the share.", "u < 0.15", "u >= 0.15"),
    ),
    next="Next: the loss, which must be told what was chosen, since the ids do not show it.",
)  # fmt: skip


def draw_predictions(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Every text has chosen tokens, and token 0 is among the targets."""
    batch, length, vocab = sizes["batch"], sizes["keys"], sizes["vocab"] + 2
    real = [[length], [6], [8]][:batch] if case == "padding" else [[length]] * batch
    keep = np.arange(length) < np.array(real)
    chosen = keep & (rng.random((batch, length)) < 0.4)
    chosen[:, 1], chosen[0, 5], chosen[:, 2] = True, True, False
    targets = rng.integers(0, vocab, (batch, length))
    targets[0, 1] = 0
    logits = 2 * rng.standard_normal((batch, length, vocab))
    return {"logits": logits, "targets": targets, "chosen": chosen, "keep": keep}


def right_masked_loss(logits: Tensor, targets: Tensor, chosen: Tensor, keep: Tensor) -> Tensor:
    M = chosen
    losses = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (losses * M).sum() / M.sum()


masked_loss = Exercise(
    title="the loss of a masked language model",
    formula="-1/|M| Σ log p(x_nt) over the chosen places (n, t) in M",
    right=right_masked_loss, twins=(ops.cross_entropy,), package=lambda logits, targets, chosen, keep: ops.cross_entropy(logits[chosen], targets[chosen]),
    precise=False, draw=draw_predictions, cases=("padding", "no padding", OTHER_SIZES), axes="",
    mistakes=known(
        "the mean over M, the chosen places",
        ("with every position counted, padding too", "Most tokens are there to be read, and padding is not even text. Only chosen tokens are predicted.",
         "M = chosen", "M = torch.ones_like(keep)"),
        ("with every real token counted", "A token that is not hidden is copied: the loss falls fast, and little is learned.", "M = chosen", "M = keep"),
        ("with the tokens counted that are not chosen", "The mask is inverted.", "M = chosen", "M = keep & ~chosen"),
        ("with token 0 never counted", "ignore_index=0 skips every target that is token 0. Take logits[chosen], or an index that no token has: -100.",
         "M = chosen", "M = chosen & (targets != 0)"),
        ("divided by the number of positions", "The sum has |M| terms. (losses * chosen).mean() divides by more.", "/ M.sum()", "/ M.numel()"),
        ("divided by the number of real tokens", "The sum has |M| terms: with 15 % chosen this is a seventh of the loss.", "/ M.sum()", "/ keep.sum()"),
        ("as the mean of the texts' means", "A token of a text with few chosen ones would count more. Add up everything, then divide once.",
         "(losses * M).sum() / M.sum()", "((losses * M).sum(1) / M.sum(1)).mean()"),
        ("divided by the number of texts", "The mean is over tokens.", "/ M.sum()", "/ len(M)"),
        ("summed, not averaged", "Divide by |M|.", " / M.sum()", ""),
        ("with its exponential, the perplexity", "The loss is the mean itself.", "(losses * M).sum() / M.sum()", "torch.exp((losses * M).sum() / M.sum())"),
        "log p(x_nt) at place t",
        ("with a shift, as for a causal model", "A hidden token is predicted at its own position.",
         "losses = -", "logits, targets, M, keep = logits[:, :-1], targets[:, 1:], M[:, 1:], keep[:, 1:]; losses = -"),
    ) + LOG,
    next="Next: the head is needed at those places only, which saves six sevenths of its work.",
)  # fmt: skip


def draw_spans(rng: np.random.Generator, case: str) -> Inputs:
    """Spans of different lengths; in one case at both ends of the text."""
    lengths = [2, 3, 4, 1, 5, 2, 1] if case == "ends with text" else [0, 2, 4, 1, 5, 3]
    noise = np.concatenate([np.full(n, i % 2 == 1) for i, n in enumerate(lengths)])
    ids, sentinels = rng.integers(N_SPECIAL, VOCAB, len(noise)), 100 + rng.permutation(len(noise))
    return {"ids": ids, "noise": noise, "sentinels": sentinels, "pad_id": -1}


def right_corrupt_spans(ids: Tensor, noise: Tensor, sentinels: Tensor, pad_id: int) -> Tensor:
    hidden, source, used = noise.tolist(), [], 0
    for t, token in enumerate(ids.tolist()):
        before = t > 0 and hidden[t - 1]
        if hidden[t] and not before:
            source.append(int(sentinels[used]))
            used += 1
        if not hidden[t]:
            source.append(token)
    return filled(source, len(ids), pad_id)


def spans_by_package(ids: Tensor, noise: Tensor, sentinels: Tensor, pad_id: int) -> Tensor:
    source, _ = spans.corrupt_spans(ids.tolist(), noise.tolist(), sentinels.tolist())
    return filled(source, len(ids), pad_id)


corrupt_spans = Exercise(
    title="cutting spans out of a text",
    formula="source: the text with each span of noise replaced by the next sentinel, padded with pad_id",
    right=right_corrupt_spans, twins=(spans.corrupt_spans,), numbers=True, differentiated=False, package=spans_by_package, draw=draw_spans, cases=("ends with text", "spans at both ends"), axes="length",
    mistakes=known(
        "one sentinel for each span",
        ("with a sentinel of its own for each token", "The model has to find out the span's length. A span starts where noise[t] is True and noise[t - 1] is not.",
         "if hidden[t] and not before:", "if hidden[t]:"),
        ("with the span's sentinel at each of its tokens", "That tells the model how long the span is, and the source gets no shorter.",
         "if hidden[t] and not before:", "if hidden[t]:", "[used]", "[used - before]", "used += 1", "used += not before"),
        ("with the same sentinel for all spans", "The target must say which hole it fills: each span gets the next one.", "sentinels[used]", "sentinels[0]"),
        ("with the sentinels taken from the end", "The first span gets the first of the list. (T5's own ids count down, its list does not.)",
         "sentinels[used]", "sentinels[-1 - used]"),
        ("with the second sentinel for the first span", "Counting starts at sentinels[0].", "sentinels[used]", "sentinels[used + 1]"),
        ("without sentinels", "Nothing says where something is missing.", "source.append(int(sentinels[used]))", "pass"),
        "replaced", ("with the spans left in the text", "The answer is still there to be read.", "if not hidden[t]:", "if True:"),
        "noise", ("with noise and text exchanged", "noise is True at the tokens to be removed.", "noise.tolist()", "(~noise).tolist()"),
        "the start of a span",
        ("with the first token compared with the last", "roll(1) and the index -1 wrap around: nothing comes before the first token.",
         "t > 0 and hidden[t - 1]", "hidden[t - 1]"),
        "padded with pad_id", ("padded with 0", "pad_id is an argument.", "len(ids), pad_id)", "len(ids), 0)"),
        "source",
        ("with the closing sentinel in the source", "It belongs to the target, at its end.", "filled(source,", "filled([*source, int(sentinels[used])],"),
    ),
    next="Next: the target, which has the same sentinels, each followed by its span.",
)  # fmt: skip
