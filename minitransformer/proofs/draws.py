"""Random inputs for the ledger's rows and for the exercises: float64, weights of order 1, no two sizes equal."""

import numpy as np

from .formula import Inputs

# Every dimension has its own size, so that no axis can be mistaken for another.
BATCH, HEADS, QUERIES, KEYS, D_K, D_V = 3, 5, 7, 11, 4, 13
MASKS = ("no mask", "causal", "left padding", "right padding", "a query without keys")
HUGE = "huge scores"
D_MODEL, D_FF = 20, 44


def draw_keep(rng: np.random.Generator, case: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """A mask of shape (..., queries, keys) for a case of `MASKS`."""
    if case == "no mask":
        return None
    queries, keys = shape[-2:]
    keep = np.ones(shape, dtype=bool)
    if case == "causal":
        keep &= np.tri(queries, keys, keys - queries, dtype=bool)
    elif case in ("left padding", "right padding"):
        for n in range(shape[0]):  # another length for every example
            pads = slice(0, n + 1) if case == "left padding" else slice(keys - n - 1, keys)
            keep[n, ..., pads] = False
    else:
        keep &= rng.random(shape) < 0.6
        keep[..., 2, :] = False
    return keep


def draw_softmax(rng: np.random.Generator, case: str) -> Inputs:
    scores = 3 * rng.standard_normal((BATCH, QUERIES, KEYS))
    if case == HUGE:  # rows of a common size, far apart from each other: some far below zero
        scores += 3e4 * rng.uniform(-1, 1, (BATCH, QUERIES, 1))
    return {
        "scores": scores,
        "keep": draw_keep(rng, "causal" if case == HUGE else case, scores.shape),
    }


def draw_attention(rng: np.random.Generator, case: str) -> Inputs:
    # Scores of order 1 to 5: a flat softmax would hide a wrong scale.
    inputs: Inputs = {
        "Q": 1.5 * rng.standard_normal((BATCH, HEADS, QUERIES, D_K)),
        "K": 1.5 * rng.standard_normal((BATCH, HEADS, KEYS, D_K)),
        "V": rng.standard_normal((BATCH, HEADS, KEYS, D_V)),
    }
    if case == HUGE:  # as in softmax: one number of every key is 1, that of the query is the size
        inputs["K"][..., 0] = 1
        inputs["Q"][..., 0] = 6e4 * rng.uniform(-1, 1, (BATCH, HEADS, QUERIES))
        for name in "QK":  # with few digits, so that float32 can hold their products
            inputs[name] = np.round(inputs[name] * 16) / 16
    keep = draw_keep(rng, "causal" if case == HUGE else case, (BATCH, HEADS, QUERIES, KEYS))
    return inputs | {"keep": keep}


def draw_norm(rng: np.random.Generator, case: str) -> Inputs:
    d_model = 10
    spread = {"plain": 2.0, "tiny": 1e-3, "far from zero": 1.0}[case]
    x = spread * rng.standard_normal((BATCH, QUERIES, d_model))
    inputs: dict[str, Any] = {"x": x + 3e3 if case == "far from zero" else x + 0.3}
    inputs["gamma"] = rng.standard_normal(d_model)
    inputs["beta"] = rng.standard_normal(d_model)
    # A large eps shows where it stands; around 3000 float32 itself rounds away the small digits.
    inputs["eps"] = 0.1
    return inputs


def draw_adamw(rng: np.random.Generator, case: str) -> Inputs:
    shape = (5, 3)
    first = case == "first step"
    return {
        "theta": rng.standard_normal(shape), "g": rng.standard_normal(shape),
        "m": np.zeros(shape) if first else rng.standard_normal(shape),
        "v": np.zeros(shape) if first else rng.random(shape),
        "t": 1 if first else 12, "lr": 0.03, "beta_1": 0.8, "beta_2": 0.95, "eps": 0.01,
        "weight_decay": 0.3,
    }  # fmt: skip


def matrix(rng: np.random.Generator, d_in: int, d_out: int) -> np.ndarray:
    return 1.4 * rng.standard_normal((d_in, d_out)) / d_in**0.5


def draw_attention_weights(rng: np.random.Generator) -> Inputs:
    weights: Inputs = {W: matrix(rng, D_MODEL, D_MODEL) for W in ("W_Q", "W_K", "W_V", "W_O")}
    return weights | {b: rng.standard_normal(D_MODEL) for b in ("b_Q", "b_K", "b_V", "b_O")}
