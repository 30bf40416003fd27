r"""The exercises of the notebook on the decoder block: the causal mask, cross-attention, the block.

The known mistakes are, as in `mistakes.py`, the formula written once with switches.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formulas import ops
from ...model.attention import causal_mask
from ...proofs.draws import BATCH, D_FF, D_K, D_MODEL, HEADS, HUGE, KEYS, QUERIES, matrix
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, Exercise, Mistake
from . import mistakes

# --- The causal mask --------------------------------------------------------------------------

SQUARE, CACHE, ONE = "all at once", "a cache", "one query"


def draw_causal(rng: np.random.Generator, case: str) -> Inputs:
    queries, keys = {CACHE: (2, KEYS), ONE: (1, KEYS)}.get(case, (QUERIES, QUERIES))
    scores = 2 * rng.standard_normal((BATCH, HEADS, queries, keys))
    if case == HUGE:  # rows far apart: some far below zero
        scores += 3e4 * rng.uniform(-1, 1, (BATCH, HEADS, queries, 1))
    return {"scores": scores}


def causal_variant(scores: Tensor, seen: str = "past", **softmax: Any) -> Tensor:
    """Causal weights with a switch for what is seen; the others are `masked_softmax`'s."""
    queries, keys = scores.shape[-2:]
    i, j = torch.arange(queries)[:, None], torch.arange(keys)
    now = i + keys - queries
    keep = {
        "past": j <= now,
        "before": j < now,
        "next": j <= now + 1,
        "future": j >= now,
        "only the future": j > now,
        "triu": j >= i,
        "from the start": j <= i,
    }[seen]
    return mistakes.masked_softmax(scores, keep, **({"nothing": "nan"} | softmax))


def no_future(f: Callable, inputs: Inputs) -> str | None:
    """Whether a query's weights change with the scores of later keys."""
    scores = inputs["scores"]
    late = ~causal_mask(*scores.shape[-2:])
    other = scores + late * torch.randn(scores.shape, dtype=scores.dtype)
    moved = (f(scores) - f(other)).abs().amax((0, 1, 3))
    wrong = [i for i, off in enumerate(moved.tolist()) if off > EXACT]
    if not wrong:
        return None
    return f"Changing the scores of later keys moved the weights of your queries {wrong}."


SEEN = "which keys a query sees: j ≤ i + (keys - queries)"
HIDE = "-inf before the softmax"
causal_weights = Exercise(
    title="causal attention weights",
    formula="softmax(s)_ij over the keys j ≤ i + (keys - queries)",
    reference=lambda scores: ops.softmax(scores, causal_mask(*scores.shape[-2:])),
    variant=causal_variant,
    draw=draw_causal,
    cases=(SQUARE, CACHE, ONE, HUGE),
    axes="batch heads queries keys",
    mistakes=(
        Mistake(
            "with the mask transposed, so that it shows the future and hides the past",
            SEEN,
            "A query is a row: row i holds ones up to column i. torch.tril keeps that half, "
            "torch.triu the other one.",
            {"seen": "triu"},
        ),
        Mistake(
            "with the mask inverted: each query sees itself and what comes after",
            SEEN,
            "Earlier keys are to be seen, later ones hidden.",
            {"seen": "future"},
        ),
        Mistake(
            "with the past and the present hidden, and the future left",
            SEEN,
            "What the triangle marks has to be kept, not filled: perhaps a ~ is missing. The last "
            "query has nothing left to look at, and 0/0 follows.",
            {"seen": "only the future"},
        ),
        Mistake(
            "with the diagonal hidden",
            SEEN,
            "A token may look at itself: equal is allowed. Without it the first row has nothing "
            "to look at, and 0/0 follows. (tril's argument is 0 then, not -1.)",
            {"seen": "before"},
        ),
        Mistake(
            "with the next token visible",
            SEEN,
            "One diagonal too many. In training that token is the very answer: the loss falls to "
            "nothing, and nothing was learned.",
            {"seen": "next"},
        ),
        Mistake(
            "with a mask that takes the first query for the first token, though a cache comes before",
            SEEN,
            "With fewer queries than keys the queries are the last positions: shift the diagonal by "
            "keys - queries. The last query sees all keys.",
            {"seen": "from the start"},
        ),
        # -1e9 is not among them: every query sees itself, so no row is hidden throughout.
        *(m for m in mistakes.MASK_MISTAKES if m.change.get("hide", -1e9) != -1e9),
        *(m for m in mistakes.MASK_MISTAKES if "axis" in m.change),
        *(m for m in mistakes.MASK_MISTAKES if m.change.get("mask") in ("after", "ignored")),
    ),
    properties={"what comes later changes nothing": no_future},
    next="Next: the same weights average the values, and a decoder can be trained on all positions "
    "of a text at once.",
)

# --- Cross-attention --------------------------------------------------------------------------

EQUAL, LONGER, PADDED = "as many queries as keys, padded", "a longer source", "longer and padded"


def draw_cross(rng: np.random.Generator, case: str) -> Inputs:
    keys = QUERIES if case == EQUAL else KEYS
    keep = np.ones((BATCH, 1, keys), dtype=bool)
    if case != LONGER:
        keep[0, :, -4:] = keep[1, :, :2] = False
    return {
        "y": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "z": rng.standard_normal((BATCH, keys, D_MODEL)),
        **{W: matrix(rng, D_MODEL, D_K) for W in ("W_Q", "W_K", "W_V")},
        "keep": keep,
    }


def cross_variant(
    y: Tensor,
    z: Tensor,
    W_Q: Tensor,
    W_K: Tensor,
    W_V: Tensor,
    keep: Tensor,
    sources: str = "yzz",
    causal: bool = False,
    hidden: str = "keys",
    scale: str = "1/sqrt(d_k)",
    **softmax: Any,
) -> Tensor:
    """One head with a switch for where queries, keys and values come from."""
    Q, K, V = ({"y": y, "z": z}[s] @ W for s, W in zip(sources, (W_Q, W_K, W_V), strict=True))
    if causal:
        keep = keep & torch.ones(Q.shape[1], K.shape[1], dtype=torch.bool).tril()
    if hidden == "queries":
        keep, softmax = keep.mT, {"nothing": "nan"} | softmax
    return mistakes.attention(Q, K, V, keep, scale, **softmax)


def hears_the_source(f: Callable, inputs: Inputs) -> str | None:
    """Whether every kept position of z matters to every query."""
    z, keep = inputs["z"], inputs["keep"]
    before = f(*inputs.values())
    for s in range(z.shape[1]):
        other = z.clone()
        other[:, s] += torch.randn(z.shape[-1], dtype=z.dtype)
        moved = (f(*(inputs | {"z": other}).values()) - before).abs().amax(-1)
        for b in range(len(z)):
            if keep[b, 0, s] and not float(moved[b].min()) > 0:
                deaf = int(moved[b].argmin())
                return f"Changing z at position {s} did not move your query {deaf} (batch {b})."
            if not keep[b, 0, s] and float(moved[b].max()) > EXACT:
                return f"Changing z at position {s}, which is padding, moved your output."
    return None


ROLES = "y W_Q, z W_K, z W_V"
cross_attention = Exercise(
    title="cross-attention, one head",
    formula="softmax((y W_Q)(z W_K)ᵀ/√d_k) (z W_V)",
    reference=lambda y, z, W_Q, W_K, W_V, keep: ops.attention(y @ W_Q, z @ W_K, z @ W_V, keep),
    variant=cross_variant,
    draw=draw_cross,
    cases=(EQUAL, LONGER, PADDED),
    axes="batch queries d_k",
    mistakes=(
        Mistake(
            "with keys and values from y, which is self-attention",
            ROLES,
            "The decoder asks, the encoder answers: z is never read.",
            {"sources": "yyy"},
        ),
        Mistake(
            "with the keys from y",
            ROLES,
            "A key says what can be found at a place of the source. The places are z's.",
            {"sources": "yyz"},
        ),
        Mistake(
            "with the values from y",
            ROLES,
            "What is handed over is the source's content. This way the decoder picks places of the "
            "source and then reads its own text there.",
            {"sources": "yzy"},
        ),
        Mistake(
            "with y and z exchanged",
            ROLES,
            "Here the encoder asks. There must be one output for each position of y.",
            {"sources": "zyy"},
        ),
        Mistake(
            "with the queries from z",
            ROLES,
            "Only keys and values come from the encoder; the decoder asks.",
            {"sources": "zzz"},
        ),
        Mistake(
            "with a causal mask over the source",
            "the mask: keep, and nothing else",
            "The source is there from the beginning to the end. Only the decoder's own text has a "
            "future.",
            {"causal": True},
        ),
        Mistake(
            "with padding hidden as a query, not as a key",
            "the axis of keep that is the source's",
            "keep is (batch, 1, source): its last axis stands under the keys, the columns of the "
            "scores. A padded row has nothing to look at, and padding is still looked at.",
            {"hidden": "queries"},
        ),
        *(m for m in mistakes.SCALE_MISTAKES if m.change["scale"] in ("1", "1/d_k")),
        *(m for m in mistakes.MASK_MISTAKES if m.change.keys() & {"mask", "axis"}),
    ),
    properties={"every query hears the whole source, padding excepted": hears_the_source},
    next="Next: the block, where this stands between self-attention and feed-forward.",
)

# --- The block --------------------------------------------------------------------------------


def draw_block(rng: np.random.Generator, case: str) -> Inputs:
    """y, z and six functions with random weights; z is as long as y, so that they could be mixed up."""

    def random(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    def mha() -> Callable[..., Tensor]:
        Q, K, V, O = (torch.from_numpy(matrix(rng, D_MODEL, D_MODEL)) for _ in range(4))  # noqa: E741
        return lambda y, z, keep: mistakes.multi_head_attention(y, z, Q, K, V, O, HEADS, keep)

    def norm() -> Callable[[Tensor], Tensor]:
        gamma, beta = random(D_MODEL), random(D_MODEL)
        return lambda x: ops.layer_norm(x, gamma, beta, 0.1)

    own, others, b_1, b_2 = mha(), mha(), random(D_FF), random(D_MODEL)
    W_1, W_2 = (torch.from_numpy(matrix(rng, *s)) for s in ((D_MODEL, D_FF), (D_FF, D_MODEL)))
    return {
        "y": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "z": rng.standard_normal((BATCH, QUERIES, D_MODEL)),
        "attention": lambda y: own(y, y, causal_mask(y.shape[1])),
        "cross_attention": lambda y, z: others(y, z, None),
        "feed_forward": lambda y: ops.relu(y @ W_1 + b_1) @ W_2 + b_2,
        "norm_1": norm(),
        "norm_cross": norm(),
        "norm_2": norm(),
        "norm_position": case,
    }


def block_reference(
    y: Tensor,
    z: Tensor,
    attention: Callable,
    cross_attention: Callable,
    feed_forward: Callable,
    norm_1: Callable,
    norm_cross: Callable,
    norm_2: Callable,
    norm_position: str,
) -> Tensor:
    """The six formulas of the two blocks, line by line."""
    if norm_position == "post":
        a = norm_1(y + attention(y))
        c = norm_cross(a + cross_attention(a, z))
        return norm_2(c + feed_forward(c))
    a = y + attention(norm_1(y))
    c = a + cross_attention(norm_cross(a), z)
    return c + feed_forward(norm_2(c))


def block_variant(
    y: Tensor,
    z: Tensor,
    attention: Callable,
    cross_attention: Callable,
    feed_forward: Callable,
    norm_1: Callable,
    norm_cross: Callable,
    norm_2: Callable,
    norm_position: str,
    position: str = "as asked",
    order: str = "self, cross",
    residual: str = "stream",
    norms: str = "three",
    asks: str = "stream",
    memory: str = "z",
) -> Tensor:
    """The block with a switch for its order, its residuals, its norms and who asks whom."""
    plain = lambda a: a  # noqa: E731
    norm_1 = plain if norms == "no norm_1" else norm_1
    norm_2 = plain if norms == "no norm_2" else norm_2
    norm_cross = {"no norm_cross": plain, "norm_1 twice": norm_1}.get(norms, norm_cross)
    if norms == "exchanged":
        norm_cross, norm_2 = norm_2, norm_cross
    if position != "as asked":
        norm_position = {"post": "pre", "pre": "post"}[norm_position] if position == "exchanged" \
            else position  # fmt: skip
    first = y

    def read(a: Tensor) -> Tensor:
        asked = first if asks == "y" else z if asks == "z" else a
        normed = memory == "normed" and norm_position == "pre"
        return cross_attention(asked, norm_cross(z) if normed else
                               a if memory == "own" else z)  # fmt: skip

    steps = [
        (attention, norm_1, "self"),
        (read, norm_cross, "cross"),
        (feed_forward, norm_2, "ffn"),
    ]
    if order == "cross, self":
        steps[:2] = steps[1::-1]
    steps = [step for step in steps if order != f"no {step[2]}"]
    for f, norm, name in steps:
        n = norm(y) if norm_position == "pre" else y
        base = {f"no {name}": 0.0, f"z in {name}": z, f"normed in {name}": n}.get(residual, y)
        y = norm(base + f(n)) if norm_position == "post" else base + f(n)
    return y


def two_inputs(f: Callable, inputs: Inputs) -> str | None:
    """Whether a position of y reaches the past, and whether z reaches all."""
    y, z, *rest = inputs.values()
    before, t = f(y, z, *rest), y.shape[1] // 2
    other = y.clone()
    other[:, t:] += torch.randn(other[:, t:].shape, dtype=y.dtype)
    moved = (f(other, z, *rest) - before).abs().amax((0, 2))
    if float(moved[:t].max()) > EXACT:
        return f"Changing y from position {t} on moved your output before it."
    other = z.clone()
    other[:, -1] += torch.randn(z.shape[-1], dtype=z.dtype)
    moved = (f(y, other, *rest) - before).abs().amax((0, 2))
    deaf = [i for i, off in enumerate(moved.tolist()) if not off > 0]
    return f"Changing the last position of z did not move your positions {deaf}." if deaf else None


ADDED = "the residuals, y + ..., a + ..., c + ..."
ADD_TO = "Add what went into the sublayer to what comes out."
decoder_block = Exercise(
    title="the decoder block",
    formula='"post": a = LN_1(y + MHA(y)), c = LN_c(a + MHA_c(a, z)), out = LN_2(c + FFN(c)); '
    '"pre": a = y + MHA(LN_1(y)), c = a + MHA_c(LN_c(a), z), out = c + FFN(LN_2(c))',
    reference=block_reference,
    variant=block_variant,
    draw=draw_block,
    cases=("post", "pre"),
    axes="batch length d_model",
    mistakes=(
        Mistake(
            "with z as the residual of the cross-attention",
            "a + MHA_c(a, z)",
            "The stream is the decoder's: z is read, never added. (It usually has another length.)",
            {"residual": "z in cross"},
        ),
        *(
            Mistake(f"without the residual around {what}", ADDED, ADD_TO, {"residual": f"no {name}"})
            for name, what in (
                ("self", "the self-attention"),
                ("cross", "the cross-attention"),
                ("ffn", "the feed-forward network"),
            )
        ),
        *(
            Mistake(
                f"with the normed stream as pre-LN's residual around {what}",
                ADDED,
                "In pre-LN the norm is for the sublayer only; the stream is added as it is.",
                {"residual": f"normed in {name}"},
            )
            for name, what in (
                ("self", "the self-attention"),
                ("cross", "the cross-attention"),
                ("ffn", "the feed-forward network"),
            )
        ),
        *(
            Mistake(f"without {norm}", norm, "Each of the three sublayers has a norm.",
                    {"norms": f"no {norm}"})
            for norm in ("norm_1", "norm_cross", "norm_2")
        ),
        Mistake(
            "with norm_1 also for the cross-attention",
            "LN_c",
            "The three norms have gains and shifts of their own.",
            {"norms": "norm_1 twice"},
        ),
        Mistake(
            "with norm_cross and norm_2 exchanged",
            "LN_c and LN_2",
            "norm_cross belongs to the cross-attention, norm_2 to the feed-forward network.",
            {"norms": "exchanged"},
        ),
        Mistake(
            "with the cross-attention before the self-attention",
            "the order: MHA, MHA_c, FFN",
            "First the decoder looks at its own text, then it asks the source.",
            {"order": "cross, self"},
        ),
        Mistake(
            "without the cross-attention",
            "c = ..., the middle",
            "z is given and never read. That is GPT's block; here is an encoder to listen to.",
            {"order": "no cross"},
        ),
        Mistake(
            "without the self-attention",
            "a = ..., the first third",
            "Without it no token knows which words stand before it.",
            {"order": "no self"},
        ),
        Mistake(
            "without the feed-forward network",
            "the last third",
            "After the two attentions follows FFN, with a residual and a norm of its own.",
            {"order": "no ffn"},
        ),
        Mistake(
            "with y asking the cross-attention, not what the self-attention made of it",
            "MHA_c(a, z), in pre-LN MHA_c(LN_c(a), z)",
            "The second sublayer reads what the first one made.",
            {"asks": "y"},
        ),
        Mistake(
            "with z asking, too",
            "MHA_c(a, z)",
            "The first argument asks: that is the decoder.",
            {"asks": "z"},
        ),
        Mistake(
            "with the decoder's own stream for z",
            "MHA_c(a, z)",
            "Two self-attentions in a row; the encoder's output z is never read.",
            {"memory": "own"},
        ),
        Mistake(
            "with z, too, normed by norm_cross in pre-LN",
            "MHA_c(LN_c(a), z)",
            "z comes as it is: a pre-LN encoder ends with a norm of its own.",
            {"memory": "normed"},
        ),
        *mistakes.POSITION_MISTAKES,
    ),
    properties={"no position sees the future, and all hear the source": two_inputs},
    next="Next: a stack of these on top of embeddings, and the encoder beside it: notebook 05.",
)  # fmt: skip
