r"""The exercises of notebook 03: LayerNorm, the feed-forward network, the encoder block."""

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.func import functional_call

from ...formulas import ops
from ...model.block import residual
from ...model.layers import FeedForward
from ...proofs.draws import FEED_FORWARD, SIZES, Sizes, draw, draw_norm
from ...proofs.formula import Inputs
from ..engine.diagnosis import EXACT, OTHER_SIZES, Exercise, distance
from ..engine.patches import known
from . import shared
from .shared import POSITION, POST, random_norm

FAR = "far from zero"


def draw_layer_norm(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    inputs = draw_norm(rng, "tiny" if case == "tiny" else "plain", sizes)
    if case == FAR:
        inputs["x"] += 1e5
    if case == "all numbers equal":
        inputs["x"][:, ::2], inputs["eps"] = 2.5, 1e-5
    return inputs


def alone(f: Callable, inputs: Inputs) -> str | None:
    """Whether a position gives the same by itself."""
    x, *rest = inputs.values()
    together = f(x, *rest)[:1, :1]
    off = distance(f(x[:1, :1], *rest), together)
    said = f"Position 0 by itself gives a different result, by {off:.2g}."
    return said if off > EXACT * max(1.0, float(together.abs().max())) else None


def shift_invariant(f: Callable, inputs: Inputs) -> str | None:
    """Whether a number added to all of x changes the result."""
    x, *rest = inputs.values()
    before = f(x, *rest)
    off = distance(f(x + 1e5, *rest), before)
    size = max(1.0, float(before.abs().max()))
    if off <= 1e-7 * size:  # x + 1e5 itself rounds in the eleventh digit
        return None
    said = f"Adding 100,000 to every number of x changed your output by {off:.1e}."
    if off < 1e-2 and distance(before, layer_norm.right(x, *rest)) < 1e-2:
        said += " This is rounding error: E[x²] - μ² is the difference of two large numbers."
        said += " Subtract μ first, then square."
    return said


layer_norm = Exercise(
    title="LayerNorm",
    formula="γ ⊙ (x - μ) / √(σ² + ε) + β",
    right=ops.layer_norm, rows=("layer_norm",),
    draw=draw_layer_norm, cases=("plain", "tiny", FAR, "all numbers equal", OTHER_SIZES), axes="batch length d_model",
    mistakes=known(
        "the variance σ²",
        ("with the variance divided by d - 1", "torch's .var() and .std() divide by d - 1 unless told otherwise (correction=0). LayerNorm divides by d.",
         "((x - mu) ** 2).mean(-1, keepdim=True)", "((x - mu) ** 2).sum(-1, keepdim=True) / (torch.ones_like(x).sum(-1, keepdim=True) - 1)"),
        ("with the sum of squares, not their mean", "σ² is the mean of (x - μ)² over the d_model numbers.", "((x - mu) ** 2).mean(", "((x - mu) ** 2).sum("),
        ("without the square", "The mean of x - μ is 0: square first, then average.", "(x - mu) ** 2", "(x - mu)"),
        "√(σ² + ε)",
        ("with 1e-5 for ε", "ε is an argument. Models have their own: BERT 1e-12, GPT-2 1e-5, T5 1e-6.", "variance + eps", "variance + 1e-5"),
        ("with ε added to the standard deviation", "ε stands inside the root, beside the variance.",
         "torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)"),
        ("with 1e-12 for ε", "ε is an argument; 1e-12 is BERT's.", "variance + eps", "variance + 1e-12"),
        ("without ε", "A position whose numbers are all equal has variance 0, and 0/0 is NaN.", "variance + eps", "variance"),
        ("without the square root", "Divide by the standard deviation; the variance is its square.", "torch.sqrt(", "("),
        "the numerator x - μ", ("with x for x - μ in the numerator", "The output's mean must be 0 before γ and β.", "(x - mu) /", "x /"),
        ("with γ x - μ / √(σ² + ε)", "Division comes before subtraction: x - μ needs parentheses.", "gamma * (x - mu) /", "gamma * x - mu /"),
        "μ, in the numerator and in σ²",
        ("without any mean, which is RMSNorm", "T5 and many later models use RMSNorm; here the mean is subtracted.", "x.mean(-1, keepdim=True)", "0.0"),
        "the axis of μ and σ²",
        ("over the sequence", "Every position is normalised by itself, over its d_model numbers. This way a token's output depends on its neighbours, and in a decoder on future ones.",
         "(-1, keepdim", "(1, keepdim"),
        ("over the batch", "That is batch normalisation: an example's output depends on the others of its batch.", "(-1, keepdim", "(0, keepdim"),
        ("over sequence and d_model together", "Every position has its own mean and variance.", "(-1, keepdim", "((1, 2), keepdim"),
        ("over the whole tensor", "x.mean() without an axis averages everything; every position has its own mean.", "(-1, keepdim", "((0, 1, 2), keepdim"),
        "γ ⊙ ...", ("without γ", "The gain is an argument.", "gamma * ", ""),
        "... + β", ("without β", "The shift is an argument.", " + beta", ""),
        "γ ⊙ ... + β",
        ("without γ and β", "Gain and shift are arguments: what the model learns about the scale of each number.", "gamma * ", "", " + beta", ""),
        ("with γ and β exchanged", "γ multiplies, β is added.", "gamma * ", "beta * ", " + beta", " + gamma"),
        ("with 1 + γ for γ", "Some models store γ - 1; here γ is the gain itself.", "gamma * ", "(1 + gamma) * "),
        ("with β added before the gain", "Multiply first, then add.", "gamma * ", "gamma * (", " + beta", " + beta)"),
    ),
    properties={"every position is normalised by itself": alone, "a number added to all of x changes nothing": shift_invariant},
    next="Next: the other half of a block, the feed-forward network.",
)  # fmt: skip


def by_module(x: Tensor, W_1: Tensor, b_1: Tensor, W_2: Tensor, b_2: Tensor) -> Tensor:
    """The package's module, given the exercise's maps."""
    state = {"W_1.weight": W_1.mT, "W_1.bias": b_1, "W_2.weight": W_2.mT, "W_2.bias": b_2}
    return functional_call(FeedForward(*W_1.shape, ops="formula"), state, (x,))


def draw_feed_forward(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    inputs = draw("x: batch queries d_model", FEED_FORWARD)(rng, case, sizes)
    return inputs | {"x": 9 * inputs["x"]}  # some numbers are above ReLU6's bound


RELU = "ops.relu(x @ W_1 + b_1)"
ADDED = "The output is added to the residual stream and may well be negative."
feed_forward = Exercise(
    title="the feed-forward network",
    formula="max(0, xW_1 + b_1) W_2 + b_2",
    right=shared.feed_forward, package=by_module, twins=(FeedForward.forward,),
    draw=draw_feed_forward, cases=("plain", OTHER_SIZES), axes="batch length d_model",
    mistakes=known(
        "max(0, ...) between the two maps",
        ("without the ReLU", "Two linear maps in a row are one linear map: nothing is gained.", "ops.relu", ""),
        ("with GELU for ReLU", "BERT has GELU; the paper has max(0, x).", "ops.relu", "ops.gelu"),
        ("with GELU's tanh form for ReLU", "GPT-2 has it; here it is max(0, x).", "ops.relu", "ops.gelu_tanh"),
        ("with SiLU for ReLU", "Llama has it; here it is max(0, x).", "ops.relu", "torch.nn.functional.silu"),
        ("with a sigmoid for ReLU", "Above zero, ReLU changes nothing.", "ops.relu", "torch.sigmoid"),
        ("with ReLU6", "Above 6, ReLU still changes nothing.", "ops.relu", "torch.nn.functional.relu6"),
        ("with a softplus for ReLU", "It is a smooth ReLU; here it is max(0, x) itself.", "ops.relu", "torch.nn.functional.softplus"),
        ("with the absolute value", "Below zero it is exactly 0.", "ops.relu", "torch.abs"),
        ("with min(0, ...) for max(0, ...)", "What is negative becomes 0; what is positive stays.", "ops.relu", "-ops.relu(-1 * ", "(x @ W_1 + b_1)", "(x @ W_1 + b_1))"),
        ("with a leaky ReLU", "Below zero it is exactly 0.", "ops.relu", "torch.nn.functional.leaky_relu"),
        ("with the ReLU at the end, not in the middle", ADDED, f"{RELU} @ W_2 + b_2", "ops.relu((x @ W_1 + b_1) @ W_2 + b_2)"),
        ("with a second ReLU at the end", ADDED, f"{RELU} @ W_2 + b_2", f"ops.relu({RELU} @ W_2 + b_2)"),
        ("with the ReLU on x", "The map W_1 comes first.", RELU, "(ops.relu(x) @ W_1 + b_1)"),
        "max(0, xW_1 + b_1)", ("with b_1 added after the ReLU", "The bias belongs inside: it moves the kink.", RELU, "(ops.relu(x @ W_1) + b_1)"),
        "xW_1 + b_1", ("without b_1", "The bias is an argument.", " + b_1", ""),
        "... + b_2", ("without b_2", "The bias is an argument.", " + b_2", ""),
        "the whole: FFN(x), not x + FFN(x)", ("with the residual already added", "The block adds the residual.", "return ", "return x + "),
    ),
    properties={"every position is transformed by itself": alone},
    next="Next: both halves together, with residuals and norms.",
)  # fmt: skip


def draw_block(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """x and four functions of it, each with random weights."""
    attention = shared.random_attention(rng, sizes)
    return {
        **draw("x: batch queries d_model")(rng, case, sizes),
        "attention": lambda x: attention(x, x, None),
        "feed_forward": shared.random_feed_forward(rng, sizes),
        "norm_1": random_norm(rng, sizes),
        "norm_2": random_norm(rng, sizes),
        "norm_position": case,
    }


def block(x: Tensor, attention, feed_forward, norm_1, norm_2, norm_position: str) -> Tensor:
    """The four formulas of the two kinds of block, line by line."""
    if norm_position == "post":
        a = norm_1(x + attention(x))
        return norm_2(a + feed_forward(a))
    a = x + attention(norm_1(x))
    return a + feed_forward(norm_2(a))


def residuals(x: Tensor, attention, feed_forward, norm_1, norm_2, norm_position: str) -> Tensor:
    """The same by the function that the package's blocks are made of."""
    a = residual(x, attention, norm_1, norm_position)
    return residual(a, feed_forward, norm_2, norm_position)


STREAM = "In pre-LN the stream itself is never normalised"
POST_1, POST_2 = "a = norm_1(x + attention(x))", "return norm_2(a + feed_forward(a))"
PRE_1, PRE_2 = "a = x + attention(norm_1(x))", "return a + feed_forward(norm_2(a))"
encoder_block = Exercise(
    title="the encoder block",
    formula='"post": a = LN_1(x + MHA(x)), y = LN_2(a + FFN(a)); "pre": a = x + MHA(LN_1(x)), y = a + FFN(LN_2(a))',
    right=block, package=residuals, twins=(residual,), draw=draw_block, cases=("post", "pre", OTHER_SIZES), axes="batch length d_model",
    mistakes=POSITION + known(
        "what the norms are applied to",
        ("with the norm on the sublayer's output, x + LN(MHA(x))", "post: LN(x + MHA(x)). pre: x + MHA(LN(x)).",
         POST, "True", POST_1, "a = x + norm_1(attention(x))", POST_2, "return a + norm_2(feed_forward(a))"),
        ("with each norm both before the sublayer and after the sum", "Each norm has one place, and norm_position says which.",
         POST, "True", "attention(x)", "attention(norm_1(x))", "feed_forward(a)", "feed_forward(norm_2(a))"),
        ("with post-LN as x + LN(MHA(x))", "In post-LN the norm is around the sum: LN(x + MHA(x)).",
         POST_1, "a = x + norm_1(attention(x))", POST_2, "return a + norm_2(feed_forward(a))"),
        ("with norm_2 once more at the end of pre-LN", "In pre-LN nothing normalises the sum.", PRE_2, "return norm_2(a + feed_forward(norm_2(a)))"),
        "x + MHA(...)", ("without the residual around the attention", "Add the input of the sublayer to its output.", "x + ", ""),
        "a + FFN(...)", ("without the residual around the feed-forward network", "Add the input of the sublayer to its output.", "a + ", ""),
        "the residuals, x + ... and a + ...",
        ("with the normed x as pre-LN's first residual", f"{STREAM}: x + MHA(LN(x)).", PRE_1, "a = norm_1(x) + attention(norm_1(x))"),
        ("with the normed a as pre-LN's second residual", f"{STREAM}: a + FFN(LN(a)).", PRE_2, "return norm_2(a) + feed_forward(norm_2(a))"),
        ("with x as the second residual, for a", "The second sublayer adds to the output of the first; this throws the attention away.", "a + ", "x + "),
        "FFN(...)", ("with the feed-forward network fed x, not a", "The second sublayer reads the output of the first.", "(a)", "(x)"),
        "LN_1 and LN_2",
        ("with norm_1 twice", "The two norms have gains and shifts of their own.", "norm_2(", "norm_1("),
        ("with the two norms exchanged", "norm_1 belongs to the attention, norm_2 to the feed-forward network.", "norm_1, norm_2", "norm_2, norm_1"),
        "y = ..., the second half",
        ("with the attention's half only", "The feed-forward network follows, with a residual and a norm of its own.", "return ", "return a  # "),
        "a = ..., the first half",
        ("with the feed-forward network's half only", "The attention comes first, with a residual and a norm of its own.", "a = ", "a = x  # "),
        "LN_1", ("without norm_1", "Each sublayer has a norm.", "norm_1(", "("),
        "LN_2", ("without norm_2", "Each sublayer has a norm.", "norm_2(", "("),
    ),
    next="Next: twelve of these on top of embeddings are BERT.",
)  # fmt: skip
