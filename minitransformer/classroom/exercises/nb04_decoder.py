r"""The exercises of notebook 04: the causal mask, cross-attention, the decoder block."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from ...formulas.ops import scaled_scores, softmax
from ...model.attention import MultiHeadAttention, causal_mask
from ...model.block import residual
from ...proofs.draws import ABOVE, HUGE, SIZES, Sizes, draw
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise
from ..engine.patches import known
from . import shared

SQUARE, CACHE, ONE = "all at once", "a cache", "one query"


def draw_causal(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    keys = sizes["keys"] if case in (CACHE, ONE) else sizes["queries"]
    queries = {CACHE: 2, ONE: 1}.get(case, keys)
    scores = 2 * rng.standard_normal((sizes["batch"], sizes["heads"], queries, keys))
    if case == HUGE:  # rows far apart, some of them far below zero
        scores += 3e4 * rng.uniform(-1, 1, (*scores.shape[:3], 1))
    if case == ABOVE:
        scores += 3e4 * np.triu(np.ones((queries, keys)), keys - queries + 1)
    return {"scores": scores}


def right_causal_weights(scores: Tensor) -> Tensor:
    return softmax(scores, causal_mask(*scores.shape[-2:]))


def no_future(f: Callable, inputs: Inputs) -> str | None:
    """Whether the weights of a query change with the scores of later keys."""
    late = ~causal_mask(*inputs["scores"].shape[-2:])
    off = shared.moved(f, inputs, "scores", (..., late)).amax((0, 1, 3)).tolist()
    wrong = [i for i, by in enumerate(off) if by > EXACT]
    said = f"Changing the scores of later keys moved the weights of your queries {wrong}."
    return said if wrong else None


# A row without keys becomes NaN, as with torch's softmax; the package's gives zeros.
NAN = [text for edit in shared.NO_KEYS[0].edits for text in edit]
causal_weights = Exercise(
    title="causal attention weights",
    formula="softmax(s)_ij over the keys j ≤ i + (keys - queries)",
    right=right_causal_weights, parts=(softmax, causal_mask), rows=("causal_mask", "softmax"),
    draw=draw_causal, cases=(SQUARE, CACHE, ONE, HUGE, ABOVE, OTHER_SIZES), axes="batch heads queries keys",
    # Of HIDDEN not -1e9: every query sees itself, so no row is hidden throughout. Of MASK not ~keep: the mask is the student's own.
    mistakes=known("which keys a query sees: j ≤ i + (keys - queries)",
        ("with the mask transposed, so that it shows the future and hides the past", "A query is a row: row i has ones up to column i. torch.tril keeps that half, torch.triu the other one.",
         ".tril(keys - queries)", ".triu()"),
        ("with i and j exchanged: i ≤ j + (keys - queries)", "i is the query, the row, and j the key, the column: j ≤ i + (keys - queries).",
         ".tril(keys - queries)", ".triu(queries - keys)"),
        ("with the mask inverted: each query sees itself and what comes after", "Earlier keys must be visible, later ones hidden.",
         ".tril(keys - queries)", ".triu(keys - queries)", *NAN),
        ("with the past and the present hidden, and the future left", "What the triangle marks has to be kept, not filled: perhaps a ~ is missing. The last query has no key left, and 0/0 follows.",
         ".tril(keys - queries)", ".triu(keys - queries + 1)", *NAN),
        ("with the diagonal hidden", "A token may look at itself: j = i is allowed. Without it the first row has no key, and 0/0 follows. (Then tril's argument is 0, not -1.)",
         ".tril(keys - queries)", ".tril(keys - queries - 1)", *NAN),
        ("with the next token visible", "One diagonal too many. In training that token is the answer itself: the loss falls to nothing, and nothing is learned.",
         ".tril(keys - queries)", ".tril(keys - queries + 1)"),
        ("with a mask that takes the first query for the first token, though a cache comes before", "With fewer queries than keys, the queries are the last positions: shift the diagonal by keys - queries. The last query sees all keys.",
         ".tril(keys - queries)", ".tril()", *NAN),
        "softmax(...)",
        ("without the softmax", "Hidden scores of -inf are half of it: the softmax makes weights of the others.",
         "return e / total.masked_fill(empty, 1.0)", "return scores"),
        ("with the future zeroed after the softmax, and the rows divided by their sums", "Where a later score is far above, only zeros are left to divide by. Hide the scores first.",
         shared.HIDE, "pass", "return e / total.masked_fill(empty, 1.0)", "return e * keep / total / (e * keep / total).sum(-1, keepdim=True)"),
    ) + shared.HIDDEN[:4] + shared.AXIS + shared.MASK[:1] + shared.MASK[2:3],
    properties={"what comes later changes nothing": no_future},
    next="Next: the same weights average the values, and a decoder can be trained on all positions of a text at once.",
)  # fmt: skip

EQUAL, LONGER, PADDED = "as many queries as keys, padded", "a longer source", "longer and padded"


def draw_cross(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    keys = sizes["queries" if case == EQUAL else "keys"]
    keep = np.ones((sizes["batch"], 1, keys), dtype=bool)
    if case != LONGER:
        keep[0, :, -4:] = keep[1, :, :2] = False
    shapes = f"y: batch queries d_model, z: batch {keys} d_model, W_Q W_K W_V: d_model d_k"
    inputs = draw(shapes)(rng, case, sizes)
    if case == ABOVE:  # for about half of the queries
        inputs["z"][~keep[:, 0]] *= 1e4
    return inputs | {"keep": keep}


def right_cross_attention(
    y: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor
) -> Tensor:
    Q, K, V = y @ W_Q, z @ W_K, z @ W_V
    return softmax(scaled_scores(Q, K), keep) @ V


def one_of_one_head(
    y: Tensor, z: Tensor, W_Q: Tensor, W_K: Tensor, W_V: Tensor, keep: Tensor
) -> Tensor:
    """The package's module with a single head, whose output W_O puts into the first columns."""
    module = MultiHeadAttention(len(W_Q), 1, bias=False, d_head=W_Q.shape[1])
    maps = {"W_Q": W_Q.mT, "W_K": W_K.mT, "W_V": W_V.mT, "W_O": torch.eye(*W_Q.shape).to(y)}
    weights = {f"{name}.weight": W for name, W in maps.items()}
    return functional_call(module, weights, (y, z, keep[:, None]))[..., : W_Q.shape[1]]


def hears_the_source(f: Callable, inputs: Inputs) -> str | None:
    """Whether every kept position of z matters to every query, and no padding to any."""
    for s, keep in enumerate(inputs["keep"][:, 0].T):
        off = shared.moved(f, inputs, "z", np.s_[:, s]).amax(-1)
        for b, kept in enumerate(keep):
            if kept and not off[b].min() > 0:
                query = int(off[b].argmin())
                return f"Changing z at position {s} did not move your query {query} (batch {b})."
            if not kept and off[b].max() > EXACT:
                return f"Changing z at position {s}, which is padding, moved your output."
    return None


SOURCES = "y @ W_Q, z @ W_K, z @ W_V"
cross_attention = Exercise(
    title="cross-attention, one head",
    formula="softmax((y W_Q)(z W_K)ᵀ/√d_k) (z W_V)",
    right=right_cross_attention, parts=(softmax, scaled_scores), package=one_of_one_head, twins=(MultiHeadAttention.forward,),
    draw=draw_cross, cases=(EQUAL, LONGER, PADDED, ABOVE, OTHER_SIZES), axes="batch queries d_k",
    mistakes=known(
        "y W_Q, z W_K, z W_V",
        ("with keys and values from y, which is self-attention", "The decoder asks, the encoder answers: z is not read.", SOURCES, "y @ W_Q, y @ W_K, y @ W_V"),
        ("with the keys from y", "A key says what can be found at a position of the source, and those are z's.", SOURCES, "y @ W_Q, y @ W_K, z @ W_V"),
        ("with the values from y", "The values carry the content of the source. This way the decoder picks positions of the source and then reads its own text there.",
         SOURCES, "y @ W_Q, z @ W_K, y @ W_V"),
        ("with y and z exchanged", "Here the encoder asks. There must be one output for each position of y.", SOURCES, "z @ W_Q, y @ W_K, y @ W_V"),
        ("with the queries from z", "Only keys and values come from the encoder; the decoder asks.", SOURCES, "z @ W_Q, z @ W_K, z @ W_V"),
        ("with W_Q and W_K exchanged", "W_Q is for the queries, which come from y.", SOURCES, "y @ W_K, z @ W_Q, z @ W_V"),
        ("with W_K and W_V exchanged", "Keys are found by, values are passed on.", SOURCES, "y @ W_Q, z @ W_V, z @ W_K"),
        "the mask, keep: only padding is hidden, as a key",
        ("with a causal mask over the source", "The source is there from beginning to end. Only the decoder's own text has a future.",
         "keep) @ V", "keep & torch.ones(Q.shape[1], K.shape[1], dtype=torch.bool).tril()) @ V"),
        ("with padding hidden as a query, not as a key", "keep is (batch, 1, source): its last axis belongs to the keys, the columns of the scores. Otherwise padded rows have no key, and padding is still attended to.",
         "keep) @ V", "keep.mT) @ V", *NAN),
        ("with the mask inverted, and NaN where nothing is padding", "keep is True where a key may be seen: hide ~keep. (nn.MultiheadAttention's masks mean the opposite.)", "~keep", "keep", *NAN),
        "the denominator √d_k", ("divided by √d_model", "d_k is the width of a query: the last axis of W_Q, not the first.", "(Q, K)", "(Q, K, len(W_K) ** -0.5)"),
    ) + shared.SCALE[:5] + shared.AXIS + shared.MASK,
    properties={"every query depends on the whole source, except for padding": hears_the_source},
    next="Next: the block, where this stands between self-attention and the feed-forward network.",
)  # fmt: skip


def draw_block(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """y, z and six functions with random weights; z is as long as y, so that they can be mixed up."""
    own, others = (shared.random_attention(rng, sizes) for _ in range(2))
    return {
        **draw("y z: batch queries d_model")(rng, case, sizes),
        "attention": lambda y: own(y, y, causal_mask(y.shape[1])),
        "cross_attention": lambda y, z: others(y, z, None),
        "feed_forward": shared.random_feed_forward(rng, sizes),
        **{f"norm_{of}": shared.random_norm(rng, sizes) for of in ("1", "cross", "2")},
        "norm_position": case,
    }


def right_decoder_block(
    y: Tensor, z: Tensor, attention: Callable, cross_attention: Callable, feed_forward: Callable,
    norm_1: Callable, norm_cross: Callable, norm_2: Callable, norm_position: str,
) -> Tensor:  # fmt: skip
    if norm_position == "post":
        a = norm_1(y + attention(y))
        c = norm_cross(a + cross_attention(a, z))
        return norm_2(c + feed_forward(c))
    a = y + attention(norm_1(y))
    c = a + cross_attention(norm_cross(a), z)
    return c + feed_forward(norm_2(c))


def three_sublayers(
    y: Tensor, z: Tensor, attention: Callable, cross_attention: Callable, feed_forward: Callable,
    norm_1: Callable, norm_cross: Callable, norm_2: Callable, norm_position: str,
) -> Tensor:  # fmt: skip
    """The same by the function that the package's blocks are made of."""
    y = residual(y, attention, norm_1, norm_position)
    y = residual(y, lambda a: cross_attention(a, z), norm_cross, norm_position)
    return residual(y, feed_forward, norm_2, norm_position)


def two_inputs(f: Callable, inputs: Inputs) -> str | None:
    """Whether a later position of y changes an earlier output, and whether z reaches all."""
    t = inputs["y"].shape[1] // 2
    if shared.moved(f, inputs, "y", np.s_[:, t:])[:, :t].max() > EXACT:
        return f"Changing y from position {t} on moved your output before it."
    off = shared.moved(f, inputs, "z", np.s_[:, -1]).amax((0, 2)).tolist()
    deaf = [i for i, by in enumerate(off) if not by > 0]
    return f"Changing the last position of z did not move your positions {deaf}." if deaf else None


ADD_TO = "Add the sublayer's input to its output."
STREAM = "In pre-LN the norm is for the sublayer only; the stream itself is added as it is."
NORM = "Each of the three sublayers has a norm."
decoder_block = Exercise(
    title="the decoder block",
    formula='"post": a = LN_1(y + MHA(y)), c = LN_c(a + MHA_c(a, z)), out = LN_2(c + FFN(c)); '
    '"pre": a = y + MHA(LN_1(y)), c = a + MHA_c(LN_c(a), z), out = c + FFN(LN_2(c))',
    right=right_decoder_block, package=three_sublayers, twins=(residual,), draw=draw_block, cases=("post", "pre", OTHER_SIZES), axes="batch length d_model",
    mistakes=known(
        "the residuals, y + ..., a + ..., c + ...",
        ("with z as the residual of the cross-attention", "The stream is the decoder's: z is read, never added. (Its length is usually different.)",
         "a + cross_attention(", "z + cross_attention("),
        ("with y as the residual of the cross-attention", "The second sublayer adds to the output of the first.", "a + cross_attention(", "y + cross_attention("),
        ("without the residual around the self-attention", ADD_TO, "y + attention(", "attention("),
        ("without the residual around the cross-attention", ADD_TO, "a + cross_attention(", "cross_attention("),
        ("without the residual around the feed-forward network", ADD_TO, "c + feed_forward(", "feed_forward("),
        ("with the normed stream as pre-LN's residual around the self-attention", STREAM, "y + attention(norm_1(y))", "norm_1(y) + attention(norm_1(y))"),
        ("with the normed stream as pre-LN's residual around the cross-attention", STREAM,
         "a + cross_attention(norm_cross(a)", "norm_cross(a) + cross_attention(norm_cross(a)"),
        ("with the normed stream as pre-LN's residual around the feed-forward network", STREAM,
         "c + feed_forward(norm_2(c))", "norm_2(c) + feed_forward(norm_2(c))"),
        "the norms LN_1, LN_c and LN_2",
        ("without norm_1", NORM, "norm_1(", "("),
        ("without norm_cross", NORM, "norm_cross(", "("),
        ("without norm_2", NORM, "norm_2(", "("),
        ("with norm_1 also for the cross-attention", "The three norms have gains and shifts of their own.", "norm_cross(", "norm_1("),
        ("with norm_cross and norm_2 exchanged", "norm_cross belongs to the cross-attention, norm_2 to the feed-forward network.",
         "norm_cross(", "norm_X(", "norm_2(", "norm_cross(", "norm_X(", "norm_2("),
        "the three sublayers and their order: MHA, MHA_c, FFN",
        ("with the cross-attention before the self-attention", "First the decoder looks at its own text, then it asks the source.",
         "norm_1(y + attention(y))", "norm_cross(y + cross_attention(y, z))", "norm_cross(a + cross_attention(a, z))", "norm_1(a + attention(a))",
         "y + attention(norm_1(y))", "y + cross_attention(norm_cross(y), z)", "a + cross_attention(norm_cross(a), z)", "a + attention(norm_1(a))"),
        ("without the cross-attention", "z is given and never read. That is GPT's block; here there is an encoder to listen to.",
         "c = norm_cross(a + cross_attention(a, z))", "c = a", "c = a + cross_attention(norm_cross(a), z)", "c = a"),
        ("without the self-attention", "Without it no token knows which words come before it.",
         "a = norm_1(y + attention(y))", "a = y", "a = y + attention(norm_1(y))", "a = y"),
        ("without the feed-forward network", "After the two attentions comes the FFN, with a residual and a norm of its own.",
         "return norm_2(c + feed_forward(c))", "return c", "return c + feed_forward(norm_2(c))", "return c"),
        ("with the feed-forward network fed a, not c", "The third sublayer reads the output of the second.", "feed_forward(c)", "feed_forward(a)", "norm_2(c)", "norm_2(a)"),
        "MHA_c(a, z), in pre-LN MHA_c(LN_c(a), z)",
        ("with y asking the cross-attention, not what the self-attention made of it", "The second sublayer reads the output of the first.",
         "attention(a, z)", "attention(y, z)", "attention(norm_cross(a), z)", "attention(norm_cross(y), z)"),
        ("with z asking, and the decoder answering", "The first argument asks: the decoder, cross_attention(a, z).",
         "attention(a, z)", "attention(z, a)", "attention(norm_cross(a), z)", "attention(z, norm_cross(a))"),
        ("with z asking, too", "The first argument asks: the decoder.", "attention(a, z)", "attention(z, z)", "attention(norm_cross(a), z)", "attention(z, z)"),
        ("with the decoder's own stream for z", "Two self-attentions in a row; the encoder's output z is never read.",
         "attention(a, z)", "attention(a, a)", "attention(norm_cross(a), z)", "attention(norm_cross(a), norm_cross(a))"),
        ("with z, too, normed by norm_cross in pre-LN", "z comes as it is, normed by the encoder.", "(norm_cross(a), z)", "(norm_cross(a), norm_cross(z))"),
    ) + shared.POSITION,
    properties={"no position sees the future, and all depend on the source": two_inputs},
    next="Next: a stack of these on top of embeddings, and the encoder beside it: notebook 05.",
)  # fmt: skip
