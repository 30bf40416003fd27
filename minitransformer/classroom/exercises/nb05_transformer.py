r"""The exercises of the notebook on the whole Transformer: what the decoder reads, the loss, the masks.

The known mistakes are, as in `mistakes.py`, the formula written once with switches.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...formulas import ops
from ...proofs.draws import BATCH, D_MODEL, HEADS, KEYS, QUERIES, matrix
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, Mistake, distance
from .mistakes import LOG_MISTAKES, averaged, multi_head_attention, token_losses

VOCAB = 11
LENGTHS = (QUERIES, QUERIES - 3, 2)
"""Real tokens of each target, the end token included."""

# --- What the decoder reads -------------------------------------------------------------------


def draw_target(rng: np.random.Generator, case: str) -> Inputs:
    """Targets that end with token 3, then padding 0."""
    target = rng.permutation(np.arange(4, 4 + BATCH * QUERIES)).reshape(BATCH, QUERIES)
    for row, length in zip(target, LENGTHS, strict=True):
        row[length - 1 :] = [3] + [0] * (QUERIES - length)
    return {"target": target[:, :1] if case == "one token" else target, "start_id": 2}


def shift_right_variant(
    target: Tensor, start_id: int, shift: str = "right", first: str = "start"
) -> Tensor:
    """The decoder's input with a switch for the way and for the first token."""
    front = torch.full_like(target[:, :1], start_id if first == "start" else 0)
    return {
        "right": torch.cat([front, target[:, :-1]], 1),
        "twice": torch.cat([front, front, target], 1)[:, : target.shape[1]],
        "left": torch.cat([target[:, 1:], front], 1),
        "none": target.clone(),
        "around": target.roll(1, 1),
        "over the first": torch.cat([front, target[:, 1:]], 1),
        "batch": torch.cat([front.expand_as(target)[:1], target[:-1]], 0),
    }[shift]


def reads_what_it_is_asked_for(f: Callable, inputs: Inputs) -> str | None:
    """Whether the input at t changes with the target at t or later."""
    target, start_id = inputs["target"], inputs["start_id"]
    for t in range(target.shape[1]):
        other = target.clone()
        other[:, t:] += 100
        moved = (f(target, start_id) != f(other, start_id)).any(0).nonzero().flatten()
        if len(moved) and int(moved[0]) <= t:
            return (
                f"Changing the target from position {t} on changed your input at position "
                f"{int(moved[0])}: there the decoder can copy."
            )
    return None


shift_right = Exercise(
    title="what the decoder reads",
    formula="start, y_1, y_2, ..., y_(T-1)",
    reference=lambda target, start_id: F.pad(target[:, :-1], (1, 0), value=start_id),
    variant=shift_right_variant,
    draw=draw_target,
    cases=("ended and padded", "one token"),
    axes="batch length",
    mistakes=(
        Mistake(
            "without the shift",
            "y_(t-1) at position t",
            "At every position the decoder reads the very token that it is asked for. The loss "
            "falls to nothing, and nothing is learned.",
            {"shift": "none"},
        ),
        Mistake(
            "shifted to the left",
            "y_(t-1) at position t",
            "Now it reads the token after the one it is asked for. Position 0 comes before the "
            "first token, so what is read moves to the right.",
            {"shift": "left"},
        ),
        Mistake(
            "shifted around, with the last token in front and no start token",
            "the start token at position 0",
            "torch.roll puts what falls off the end in front again. In front belongs start_id.",
            {"shift": "around"},
        ),
        Mistake(
            "with the start token written over the first token",
            "y_1 at position 1",
            "The start token is put before the first, not in its place; all others move by one.",
            {"shift": "over the first"},
        ),
        Mistake(
            "shifted twice",
            "y_(t-1) at position t",
            "Two start tokens: the decoder never reads what stands right before. Perhaps another "
            "place shifts too.",
            {"shift": "twice"},
        ),
        Mistake(
            "shifted along the batch, so that each example reads the one before it",
            "the axis of the shift",
            "Positions are the last axis of (batch, length).",
            {"shift": "batch"},
        ),
        Mistake(
            "with 0, the padding, for the start token",
            "the start token at position 0",
            "start_id is given and never used. (T5 does start with its padding token; then start_id "
            "is 0.)",
            {"first": "zero"},
        ),
    ),
    properties={"what is read at t is known before t is written": reads_what_it_is_asked_for},
    next="Next: the end token. Your input never holds the last token of the longest target, since "
    "after it there is nothing to write.",
)

# --- The loss ---------------------------------------------------------------------------------


def draw_loss(rng: np.random.Generator, case: str) -> Inputs:
    target = rng.integers(0, VOCAB, (BATCH, QUERIES))
    target[:, 0] = 0  # a real token may have any id
    lengths = (QUERIES,) * BATCH if case == "no padding" else LENGTHS
    keep = np.arange(QUERIES) < np.array(lengths)[:, None]
    logits = 2 * rng.standard_normal((BATCH, QUERIES, VOCAB))
    return {"logits": logits, "target": target * keep, "keep": keep}


def target_loss_variant(
    logits: Tensor,
    target: Tensor,
    keep: Tensor,
    counted: str = "real",
    mean: str = "tokens",
    shift: str = "none",
    p: str = "softmax",
) -> Tensor:
    """The loss with a switch for what is counted, how it is averaged, and what is compared."""
    if shift == "again":
        logits, target, keep = logits[:, :-1], target[:, 1:], keep[:, 1:]
    if counted == "zeroed":
        logits = logits * keep[..., None]
    losses = token_losses(logits, target, p)
    if counted == "without the end":
        keep = keep & (keep.cumsum(1) < keep.sum(1, keepdim=True))
    if counted == "by id":
        keep = target != 0
    if counted in ("all", "zeroed"):
        keep = torch.ones_like(keep)
    return averaged(losses, keep, mean)


N = "the mean over the N real tokens"
target_loss = Exercise(
    title="the loss of a batch of targets",
    formula="-1/N Σ log p(y_t | y_<t, x) over the N real tokens of the batch",
    reference=lambda logits, target, keep: ops.cross_entropy(logits[keep], target[keep]),
    variant=target_loss_variant,
    draw=draw_loss,
    cases=("padding", "no padding"),
    axes="",
    mistakes=(
        Mistake(
            "with padding counted",
            N,
            "The model is taught to write padding after padding, which is easy: the more of it, the "
            "smaller the loss.",
            {"counted": "all"},
        ),
        Mistake(
            "with the logits at padding set to zero, and padding counted all the same",
            N,
            "Logits of zero are a uniform guess, which costs log V. Leave those positions out.",
            {"counted": "zeroed"},
        ),
        Mistake(
            "with id 0 taken for padding",
            N,
            "keep says what is real. Where the padding id is also a token, as in GPT-2 and T5, real "
            "tokens would be left out.",
            {"counted": "by id"},
        ),
        Mistake(
            "without each target's last token, its end",
            N,
            "keep is True at the end token, which has to be learned: else the model never stops.",
            {"counted": "without the end"},
        ),
        Mistake(
            "as the mean of the examples' means",
            N,
            "So a token of a short target counts more than one of a long target, and the same "
            "tokens batched otherwise have another loss. Add up all, divide once.",
            {"mean": "texts"},
        ),
        Mistake(
            "divided by the number of positions, padding included",
            N,
            "The sum leaves padding out, the divisor must too. So it goes with (losses * keep).mean().",
            {"mean": "positions"},
        ),
        Mistake(
            "divided by the number of examples",
            N,
            "Divide by the number of tokens: else long batches take larger steps.",
            {"mean": "batch"},
        ),
        Mistake("summed, not averaged", N, "Divide by the number of tokens.", {"mean": "sum"}),
        Mistake(
            "with another shift",
            "log p(y_t | ...) at position t",
            "The decoder's input was shifted already: logits and target belong together as they are.",
            {"shift": "again"},
        ),
        *LOG_MISTAKES,
    ),
    next="Next: the two halves together, and which mask goes where.",
)

# --- Both halves ------------------------------------------------------------------------------


def draw_encoder_decoder(rng: np.random.Generator, case: str) -> Inputs:
    """Embedded source and target, and an encoder and a decoder with random weights."""

    def attention() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        W_Q, W_K, W_V, W_O = (torch.from_numpy(matrix(rng, D_MODEL, D_MODEL)) for _ in range(4))
        return lambda x, z, keep: x + multi_head_attention(x, z, W_Q, W_K, W_V, W_O, HEADS, keep)

    reads, writes, looks = attention(), attention(), attention()
    padding = {"no padding": (0, 0, 0), "padding on the right": (0, 2, 4)}.get(case, (3, 0, 1))
    keep = np.arange(KEYS) < KEYS - np.array(padding)[:, None]
    if case == "padding on the left":
        keep = keep[:, ::-1].copy()
    return {
        "source": rng.standard_normal((BATCH, KEYS, D_MODEL)),
        "target": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "source_keep": keep[:, None, None],
        "encoder": lambda x, keep=None: reads(x, x, keep),
        "decoder": lambda y, z, keep=None, memory_keep=None: looks(
            writes(y, y, keep), z, memory_keep
        ),
    }


def triangle(queries: int, keys: int, diagonal: int = 0) -> Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).tril(diagonal)


def encoder_decoder_variant(
    source: Tensor,
    target: Tensor,
    source_keep: Tensor,
    encoder: Callable,
    decoder: Callable,
    reading: str = "source_keep",
    writing: str = "causal",
    looking: str = "source_keep",
    memory: str = "z",
) -> Tensor:
    """Both halves, with a switch for each of the three masks and for the memory."""
    S, T = source.shape[1], target.shape[1]
    of_encoder = {
        "source_keep": source_keep,
        "none": None,
        "causal": source_keep & triangle(S, S),
    }[reading]
    of_decoder = {
        "causal": triangle(T, T),
        "none": None,
        "one ahead": triangle(T, T, 1),
        "without itself": triangle(T, T, -1),
        "inverted": ~triangle(T, T, -1),
        "only the future": ~triangle(T, T),
    }[writing]
    of_cross = {
        "source_keep": source_keep,
        "none": None,
        "causal": source_keep & triangle(T, S),
    }[looking]
    z = source if memory == "source" else encoder(source, of_encoder)
    return decoder(target, z, of_decoder, of_cross)


def sees_the_future(f: Callable, inputs: Inputs) -> str | None:
    """Whether a later token of the target changes what is said at an earlier one."""
    source, target, *rest = inputs.values()
    other = target.clone()
    other[:, -1] += torch.randn(target.shape[-1], dtype=target.dtype)
    moved = (f(source, target, *rest) - f(source, other, *rest)).abs().amax((0, 2))[:-1]
    wrong = (moved > EXACT).nonzero().flatten().tolist()
    last = target.shape[1] - 1
    return f"Changing the target at {last} changed your output at {wrong}." if wrong else None


def sees_padding(f: Callable, inputs: Inputs) -> str | None:
    """Whether what stands in the source's padding changes anything."""
    source, target, keep, *rest = inputs.values()
    hidden = ~keep[:, 0, 0]
    other = source.clone()
    other[hidden] += torch.randn(int(hidden.sum()), source.shape[-1], dtype=source.dtype)
    off = distance(f(source, target, keep, *rest), f(other, target, keep, *rest))
    return f"Other padding changed your output by {off:.2f}." if off > EXACT else None


CROSS = "memory_keep of the decoder"
CAUSAL = "keep of the decoder"
encoder_decoder = Exercise(
    title="encoder and decoder, with their masks",
    formula="z = encoder(source, source_keep), decoder(target, z, causal, source_keep)",
    reference=lambda source, target, source_keep, encoder, decoder: decoder(
        target,
        encoder(source, source_keep),
        torch.arange(target.shape[1])[:, None] >= torch.arange(target.shape[1]),
        source_keep,
    ),
    variant=encoder_decoder_variant,
    draw=draw_encoder_decoder,
    cases=("no padding", "padding on the right", "padding on the left"),
    axes="batch length d_model",
    mistakes=(
        Mistake(
            "without the source's mask in cross-attention",
            CROSS,
            "The encoder hid the padding from the words, but its own outputs at padding are still "
            "there, and the decoder looks at them. The same mask is needed twice.",
            {"looking": "none"},
        ),
        Mistake(
            "without the source's mask in the encoder",
            "keep of the encoder",
            "The words of the source are mixed with padding before the decoder sees them.",
            {"reading": "none"},
        ),
        Mistake(
            "with a causal mask in the encoder",
            "keep of the encoder",
            "The source is there as a whole: nothing of it is in the future. Only what is written "
            "has a future.",
            {"reading": "causal"},
        ),
        Mistake(
            "with a causal mask in cross-attention",
            CROSS,
            "To write the first token the decoder may look at all of the source.",
            {"looking": "causal"},
        ),
        Mistake(
            "without a causal mask in the decoder",
            CAUSAL,
            "In training the whole target is given at once; unmasked, position t sees the token it "
            "is asked for, one place further on.",
            {"writing": "none"},
        ),
        Mistake(
            "with a causal mask that sees one token ahead",
            CAUSAL,
            "The input is shifted already: one ahead is the token that is asked for.",
            {"writing": "one ahead"},
        ),
        Mistake(
            "with a causal mask that hides a token from itself",
            CAUSAL,
            "At t the decoder may use what it read at t, which is the token before. The diagonal is "
            "True.",
            {"writing": "without itself"},
        ),
        Mistake(
            "with a causal mask in which True means hidden",
            CAUSAL,
            "nn.Transformer's masks are so: triu(1) marks what is hidden. Here True = may attend.",
            {"writing": "only the future"},
        ),
        Mistake(
            "with the causal mask inverted",
            CAUSAL,
            "True = may attend: query i sees key j where j <= i.",
            {"writing": "inverted"},
        ),
        Mistake(
            "with the source itself as memory, not the encoder's output",
            "z = encoder(source, ...)",
            "What is computed must also be used.",
            {"memory": "source"},
        ),
    ),
    properties={
        "no output depends on later tokens of the target": sees_the_future,
        "the source's padding changes nothing": sees_padding,
    },
    next="Next: train it.",
)
