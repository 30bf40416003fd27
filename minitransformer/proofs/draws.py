"""Random inputs for the ledger and for the exercises: float64, of order 1, no two sizes equal."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .formula import Inputs

Sizes = dict[str, int]

# Every dimension has a size of its own, so that no axis can be mistaken for another; the root of d_k
# is none of its simple fractions, so that no wrong scale is right by accident.
SIZES: Sizes = {
    "batch": 3, "heads": 5, "queries": 7, "keys": 11, "d_k": 6, "d_v": 13, "d_model": 30, "d_ff": 44,
    "d_norm": 10, "vocab": 23,
}  # fmt: skip
BATCH, HEADS, QUERIES, KEYS, D_K, D_V, D_MODEL, D_FF, D_NORM, VOCAB = SIZES.values()
# A second set without a size in common, so that a number written into an answer is found.
OTHER: Sizes = {
    "batch": 2, "heads": 3, "queries": 10, "keys": 13, "d_k": 15, "d_v": 17, "d_model": 45, "d_ff": 55,
    "d_norm": 21, "vocab": 19,
}  # fmt: skip
MASKS = ("no mask", "causal", "left padding", "right padding", "a query without keys")
PADDING = ("no mask", "left padding", "right padding")
HUGE, ABOVE = "huge scores", "hidden scores far above"
EPS = 0.1  # large, so that its place in a formula matters

ATTENTION = "W_Q W_K W_V W_O: d_model d_model, b_Q b_K b_V b_O: d_model"
CROSS_ATTENTION = "W_Qc W_Kc W_Vc W_Oc: d_model d_model, b_Qc b_Kc b_Vc b_Oc: d_model"
FEED_FORWARD = "W_1: d_model d_ff, b_1: d_ff, W_2: d_ff d_model, b_2: d_model"


def draw(*shapes: str, **switches: Any) -> Callable[..., Inputs]:
    """A row's `draw(rng, case, sizes)`, from shapes such as "Q: batch heads queries d_k, b_1 b_2: d_model".

    The name decides what is drawn: matrices for W, a mask for keep, tokens for ids, source and
    target, normally distributed numbers otherwise. A switch is passed on as it is, or called with
    the case if it is a function.
    """
    axes_of: dict[str, list[str]] = {}
    for line in ", ".join(shapes).split(", ") if shapes else ():
        names, axes = line.split(":")
        axes_of |= dict.fromkeys(names.split(), axes.split())

    def drawn(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
        inputs = {
            name: draw_one(rng, case, name, tuple(sizes.get(a) or int(a) for a in axes))
            for name, axes in axes_of.items()
        }
        return inputs | {k: s(case) if callable(s) else s for k, s in switches.items()}

    return drawn


def draw_one(rng: np.random.Generator, case: str, name: str, shape: tuple[int, ...]) -> Any:
    """One input, by its name."""
    if name.endswith("keep"):
        return draw_keep(rng, case, shape)
    if name in ("ids", "source", "target"):
        return rng.integers(0, 8, shape)  # tables of embeddings have a ninth row, never looked up
    return matrix(rng, *shape) if name.startswith("W") else rng.standard_normal(shape)


def matrix(rng: np.random.Generator, d_in: int, d_out: int) -> np.ndarray:
    """A linear map that hardly changes the size of its input."""
    return 1.4 * rng.standard_normal((d_in, d_out)) / d_in**0.5


def draw_keep(rng: np.random.Generator, case: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask of shape (..., queries, keys) for a case of `MASKS`."""
    if case == "no mask":
        return None
    queries, keys = shape[-2:]
    keep = np.ones(shape, dtype=bool)
    if case in ("causal", HUGE):
        keep &= np.tri(queries, keys, keys - queries, dtype=bool)
    elif case in ("left padding", "right padding"):
        for n in range(shape[0]):  # a different length for every example
            pads = slice(0, n + 1) if case == "left padding" else slice(keys - n - 1, keys)
            keep[n, ..., pads] = False
    else:
        keep &= rng.random(shape) < 0.6
        keep[..., 2, :] = False
    return keep


def draw_softmax(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Scores and a mask."""
    scores = 3 * rng.standard_normal([sizes[axis] for axis in ("batch", "queries", "keys")])
    if case == HUGE:  # every row near one large number of its own: some far below zero
        scores += 3e4 * rng.uniform(-1, 1, (*scores.shape[:2], 1))
    keep = draw_keep(rng, case, scores.shape)
    if case == ABOVE and keep is not None:
        scores[~keep] += 3e4
    return {"scores": scores, "keep": keep}


def draw_attention(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """Queries, keys and values, and a mask."""
    if case == HUGE:  # a root that float32 divides huge scores by without rounding
        sizes = sizes | {"d_k": 16}
    shapes = "Q: batch heads queries d_k, K: batch heads keys d_k, V: batch heads keys d_v"
    inputs = draw(shapes)(rng, case, sizes)
    for name in "QK":  # scores of order 1 to 5: a flat softmax would hide a wrong scale
        inputs[name] *= 1.5
    shape = inputs["Q"].shape[:3]
    if case == HUGE:  # as in softmax: the first entry of a key is 1, that of a query is the size
        inputs["K"][..., 0] = 1
        inputs["Q"][..., 0] = 6e4 * rng.uniform(-1, 1, shape)
        for name in "QK":  # with few digits, so that float32 can hold their products
            inputs[name] = np.round(inputs[name] * 16) / 16
    keep = draw_keep(rng, "left padding" if case == ABOVE else case, (*shape, sizes["keys"]))
    if case == ABOVE and keep is not None:  # for about half of the queries; for others far below
        inputs["K"][~keep[:, :, 0]] *= 1e4
    return inputs | {"keep": keep}


def draw_norm(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """A norm's input, gain and shift."""
    batch, queries, d_model = (sizes[axis] for axis in ("batch", "queries", "d_norm"))
    spread = {"plain": 2.0, "tiny": 1e-3}[case]
    x = 0.3 + spread * rng.standard_normal((batch, queries, d_model))
    gamma, beta = rng.standard_normal(d_model), rng.standard_normal(d_model)
    return {"x": x, "gamma": gamma, "beta": beta, "eps": EPS}


def draw_rms_norm(rng: np.random.Generator, case: str) -> Inputs:
    """A norm's input and gain."""
    return {name: a for name, a in draw_norm(rng, case).items() if name != "beta"}


def draw_adamw(rng: np.random.Generator, case: str, sizes: Sizes = SIZES) -> Inputs:
    """A weight with its gradient, its averages and the optimiser's settings."""
    shape, first = (sizes["heads"], sizes["batch"]), case == "first step"
    return {
        "theta": rng.standard_normal(shape), "g": rng.standard_normal(shape),
        "m": np.zeros(shape) if first else rng.standard_normal(shape),
        "v": np.zeros(shape) if first else rng.random(shape),
        "t": 1 if first else 12, "lr": 0.03, "beta_1": 0.8, "beta_2": 0.95, "eps": 0.01,
        "weight_decay": 0.3,
    }  # fmt: skip
