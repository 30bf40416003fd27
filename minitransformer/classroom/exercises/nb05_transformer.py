r"""The exercises of the notebook on the whole Transformer: the decoder's input, the loss, the masks."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...formulas import ops
from ...model.attention import causal_mask
from ...model.transformer import EncoderDecoder
from ...proofs.draws import SIZES, Sizes
from ...proofs.formula import Inputs
from ...training import objectives
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise
from ..engine.patches import known
from .shared import LOG, moved, random_attention


def lengths_of(sizes: Sizes) -> list[int]:
    """How many real tokens each target has, including the end token."""
    return [sizes["queries"], sizes["queries"] - 3, 2][: sizes["batch"]]


def draw_target(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Targets that end with token 3, followed by padding 0."""
    shape = batch, length = sizes["batch"], sizes["queries"]
    target = rng.permutation(np.arange(4, 4 + batch * length)).reshape(shape)
    for row, real in zip(target, lengths_of(sizes), strict=True):
        row[real - 1 :] = [3] + [0] * (length - real)
    start_id = 2 if sizes is SIZES else 1
    return {"target": target[:, :1] if case == "one token" else target, "start_id": start_id}


def reads_what_it_is_asked_for(f: Callable, inputs: Inputs) -> str | None:
    """Whether the input at t changes with the target at t or later."""
    target, start_id = inputs["target"], inputs["start_id"]
    for t in range(target.shape[1]):
        other = target.clone()
        other[:, t:] += 100
        changed = (f(target, start_id) != f(other, start_id)).any(0).tolist()
        if True in changed[: t + 1]:
            said = f"Changing the target from position {t} on changed your input at position"
            return f"{said} {changed.index(True)}: there the decoder can copy."
    return None


SHIFTED = "torch.cat([start, target[:, :-1]], 1)"
shift_right = Exercise(
    title="what the decoder reads",
    formula="start, y_1, y_2, ..., y_(T-1)",
    right=objectives.shift_right, package=lambda target, start_id: F.pad(target[:, :-1], (1, 0), value=start_id),
    draw=draw_target, cases=("ended and padded", "one token", OTHER_SIZES), axes="batch length",
    mistakes=known(
        "y_(t-1) at position t",
        ("without the shift", "The decoder reads the very token it should predict. The loss falls to zero; nothing is learned.", SHIFTED, "target.clone()"),
        ("shifted to the left", "Now it reads the token after the one it should predict. The start token comes before the first token, so everything moves to the right.",
         SHIFTED, "torch.cat([target[:, 1:], start], 1)"),
        ("shifted twice", "With two start tokens the decoder never reads the token right before. Perhaps you also shift somewhere else.",
         SHIFTED, "torch.cat([start, start, target], 1)[:, : target.shape[1]]"),
        "the start token at position 0",
        ("shifted around, with the last token in front and no start token", "torch.roll moves what falls off the end to the front. start_id belongs there.",
         SHIFTED, "target.roll(1, 1)"),
        ("with 0, the padding, for the start token", "start_id is given but never used. (T5 does start with its padding token; its start_id is 0.)",
         "(target[:, :1], start_id)", "(target[:, :1], 0)"),
        "y_1 at position 1",
        ("with the start token written over the first token", "It goes before the first token; all others move by one.", "target[:, :-1]", "target[:, 1:]"),
        "the axis of the shift",
        ("shifted along the batch, so that each example reads the one before it", "Positions are the last axis of (batch, length).",
         SHIFTED, "torch.cat([start.expand_as(target)[:1], target[:-1]])"),
    ),
    properties={"what is read at t is known before t is written": reads_what_it_is_asked_for},
    next="Next: the end token. Your input never holds the last token of the longest target, since nothing is written after it.",
)  # fmt: skip


def draw_loss(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Logits and targets; position 0 is always real, and its token has the id of padding."""
    batch, length, vocab = (sizes[axis] for axis in ("batch", "queries", "vocab"))
    target = rng.integers(0, vocab, (batch, length))
    target[:, 0] = 0
    lengths = [length] * batch if case == "no padding" else lengths_of(sizes)
    keep = np.arange(length) < np.array(lengths)[:, None]
    logits = 2 * rng.standard_normal((batch, length, vocab))
    return {"logits": logits, "target": target * keep, "keep": keep}


def mean_loss(logits: Tensor, target: Tensor, keep: Tensor) -> Tensor:
    """-log p of every real token, averaged."""
    log_p = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -(log_p * keep).sum() / keep.sum()


FIRST, MEAN = "log_p = logits", "(log_p * keep).sum() / keep.sum()"
target_loss = Exercise(
    title="the loss of a batch of targets",
    formula="-1/N Σ log p(y_t | y_<t, x) over the N real tokens of the batch",
    right=mean_loss, twins=(ops.cross_entropy,), package=lambda logits, target, keep: ops.cross_entropy(logits[keep], target[keep]),
    precise=False, draw=draw_loss, cases=("padding", "no padding", OTHER_SIZES), axes="",
    mistakes=known(
        "the mean over the N real tokens",
        ("with padding counted", "The model is taught to write padding after padding: the more padding, the smaller the loss.", MEAN, "log_p.mean()"),
        ("with the logits at padding set to zero, and padding counted all the same", "Logits of zero are a uniform guess, which costs log V. Leave those positions out.",
         FIRST, "log_p = (logits * keep[..., None])", MEAN, "log_p.mean()"),
        ("with id 0 taken for padding", "keep says which tokens are real. Where the padding id is also a token, as in GPT-2 and T5, this leaves out real tokens.",
         FIRST, f"keep = target != 0; {FIRST}"),
        ("without each target's last token, its end", "keep is True at the end token, which has to be learned: otherwise the model never stops.",
         FIRST, f"keep = keep & (keep.cumsum(1) < keep.sum(1, keepdim=True)); {FIRST}"),
        ("as the mean of the examples' means", "A token of a short target then counts more than one of a long target, and the loss depends on the batching. Sum over all tokens, divide once.",
         MEAN, "((log_p * keep).sum(1) / keep.sum(1)).mean()"),
        ("divided by the number of positions, padding included", "The sum leaves padding out, so the divisor must too. This is what (losses * keep).mean() does.",
         "/ keep.sum()", "/ keep.numel()"),
        ("divided by the number of examples", "Divide by the number of tokens: otherwise long batches take larger steps.", "/ keep.sum()", "/ len(keep)"),
        ("summed, not averaged", "Divide by the number of tokens.", " / keep.sum()", ""),
        ("with keep inverted", "keep is True where a token is real: keep those.", MEAN, "(log_p * ~keep).sum() / (~keep).sum()"),
        ("with its exponential, the perplexity", "The loss is the mean itself.", f"-{MEAN}", f"torch.exp(-{MEAN})"),
        "log p(y_t | ...) at position t",
        ("with another shift", "The decoder's input was shifted already: logits and target belong together as they are.",
         FIRST, f"logits, target, keep = logits[:, :-1], target[:, 1:], keep[:, 1:]; {FIRST}"),
    ) + LOG,
    next="Next: the two halves together, and which mask goes where.",
)  # fmt: skip


def draw_encoder_decoder(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Embedded source and target, and an encoder and a decoder with random weights."""
    reads, writes, looks = (random_attention(rng, sizes) for _ in range(3))
    batch, keys = sizes["batch"], sizes["keys"]
    padding = {"no padding": (0, 0, 0), "padding on the right": (0, 2, 4)}.get(case, (3, 0, 1))
    keep = np.arange(keys) < keys - np.array(padding)[:batch, None]
    if case == "padding on the left":
        keep = keep[:, ::-1].copy()

    def decoder(y: Tensor, z: Tensor, keep=None, memory_keep=None) -> Tensor:
        y = y + writes(y, y, keep)
        return y + looks(y, z, memory_keep)

    return {
        "source": rng.standard_normal((batch, keys, sizes["d_model"])),
        "target": rng.standard_normal((batch, sizes["queries"], sizes["d_model"])),
        "source_keep": keep[:, None, None],
        "encoder": lambda x, keep=None: x + reads(x, x, keep),
        "decoder": decoder,
    }


def whole_transformer(
    source: Tensor, target: Tensor, source_keep: Tensor, encoder: Callable, decoder: Callable
) -> Tensor:
    """Both halves: the source's mask is needed twice, the causal one in the decoder."""
    length = target.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    z = encoder(source, source_keep)
    return decoder(target, z, causal, source_keep)


def package_transformer(
    source: Tensor, target: Tensor, source_keep: Tensor, encoder: Callable, decoder: Callable
) -> Tensor:
    """`EncoderDecoder.forward` with these two halves; the package's own decoder is causal by itself."""
    halves = SimpleNamespace(
        source_keep=lambda source, keep: keep,
        encode=encoder,
        decode=lambda target, memory, memory_keep, keep: decoder(
            target, memory, causal_mask(target.shape[1]), memory_keep
        ),
    )
    # Unwrapped, since embedded tokens stand in for the ids that its annotations ask for.
    return inspect.unwrap(EncoderDecoder.forward)(halves, source, target, source_keep)


def sees_the_future(f: Callable, inputs: Inputs) -> str | None:
    """Whether a later token of the target changes an earlier output."""
    *off, _ = moved(f, inputs, "target", np.s_[:, -1]).amax((0, 2)).tolist()
    wrong = [t for t, by in enumerate(off) if by > EXACT]
    return f"Changing the target at {len(off)} changed your output at {wrong}." if wrong else None


def sees_padding(f: Callable, inputs: Inputs) -> str | None:
    """Whether the values in the source's padding change anything."""
    off = float(moved(f, inputs, "source", ~inputs["source_keep"][:, 0, 0]).max())
    return f"Different padding changed your output by {off:.2f}." if off > EXACT else None


READ, CROSS = "encoder(source, source_keep)", "causal, source_keep)"
PAIRS = "torch.ones(length, length, dtype=torch.bool)"
INVERTED = "Here True = may attend. (In nn.Transformer's masks True means hidden.)"
CAUSAL = f"{PAIRS}.tril()"
encoder_decoder = Exercise(
    title="encoder and decoder, with their masks",
    formula="z = encoder(source, source_keep), decoder(target, z, causal, source_keep)",
    right=whole_transformer, package=package_transformer, twins=(EncoderDecoder.forward,),
    draw=draw_encoder_decoder, cases=("no padding", "padding on the right", "padding on the left", OTHER_SIZES), axes="batch length d_model",
    mistakes=known(
        "memory_keep of the decoder",
        ("without the source's mask in cross-attention", "The encoder hid the padding from the words, but its own outputs at padding are still there, and the decoder sees them. The same mask is needed twice.",
         CROSS, "causal, None)"),
        ("with a causal mask in cross-attention", "To write the first token the decoder may look at the whole source.",
         CROSS, "causal, source_keep & torch.ones(length, source.shape[1], dtype=torch.bool).tril())"),
        "source_keep, wherever it is used",
        ("with the source's mask inverted", INVERTED, READ, "encoder(source, ~source_keep)", CROSS, "causal, ~source_keep)"),
        "keep of the encoder",
        ("without the source's mask in the encoder", "The source's words are mixed with padding before the decoder sees them.", READ, "encoder(source, None)"),
        ("with a causal mask in the encoder", "The whole source is given: none of it lies in the future. Only what is being written has a future.",
         READ, "encoder(source, source_keep & causal_mask(source.shape[1]))"),
        "keep of the decoder",
        ("without a causal mask in the decoder", "In training the whole target is given at once; without a mask, position t sees the token it should predict, one position further on.",
         CAUSAL, "None"),
        ("with a causal mask that sees one token ahead", "The input is shifted already: one ahead is the token to predict.", CAUSAL, f"{PAIRS}.tril(1)"),
        ("with a causal mask that hides a token from itself", "What is read at t is the token before. The diagonal is True.", CAUSAL, f"{PAIRS}.tril(-1)"),
        ("with a causal mask in which True means hidden", "nn.Transformer's masks are like this. Here True = may attend.", CAUSAL, f"{PAIRS}.triu(1)"),
        ("with the causal mask inverted", "True = may attend: query i sees key j where j <= i.", CAUSAL, f"{PAIRS}.triu()"),
        "z = encoder(source, ...)",
        ("with the source itself as memory, not the encoder's output", "The encoder's output is never used.", "decoder(target, z,", "decoder(target, source,"),
    ),
    properties={"no output depends on later tokens of the target": sees_the_future, "the source's padding changes nothing": sees_padding},
    next="Next: train it.",
)  # fmt: skip
