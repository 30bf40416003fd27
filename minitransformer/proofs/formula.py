"""One row of the ledger: a formula with its LaTeX, its source and everything that computes it.

All implementations of a row take the same inputs, by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import numpy as np

Inputs = dict[str, Any]

# The inputs with one entry per example; all others, such as weights, are shared by the batch.
PER_EXAMPLE = (
    "x", "y", "z", "Q", "K", "V", "scores", "bias", "hidden", "real", "ids", "source", "target",
    "keep", "memory_keep", "source_keep",
)  # fmt: skip


@dataclass(frozen=True)
class Formula:
    """One row: a formula and everything that claims to compute it."""

    id: str
    title: str
    latex: str
    source: str
    # `draw(rng, case)` makes inputs of order 1 in float64, with all dimensions different.
    draw: Callable[[np.random.Generator, str], Inputs]
    by_hand: Callable[..., Any]  # NumPy, index by index
    ours: Callable[..., Any]  # the code that models are built from, in torch, written out
    reference: Callable[..., Any]  # torch's own operation or module
    fused: Callable[..., Any] | None = None  # our code with torch's kernels
    # The derivative worked out on paper, in NumPy: `f(d_output, **inputs)` returns the gradients of
    # the inputs, as a tuple in their order or by name.
    backward_by_hand: Callable[..., Any] | None = None
    cases: tuple[str, ...] = ("plain",)
    no_gradient: tuple[str, ...] = ()  # inputs not differentiated, besides masks and integers
    shows: tuple[
        Callable, ...
    ] = ()  # the code to show for `ours`, if that only arranges the inputs


def per_example(f: Callable, axes: int = 1, of: Callable | None = None) -> Callable[..., Any]:
    """Run `f`, which takes one example, over the first `axes` axes of the inputs, and stack the results.

    An input of length 1 serves all examples, and None stays None. `of` is the formula that `f`
    calls, where `f` only arranges the inputs.
    """
    one = f if axes == 1 else per_example(f, axes - 1)

    @wraps(of or f)
    def run(**inputs: Any) -> Any:
        batch = {name: a for name, a in inputs.items() if name in PER_EXAMPLE and a is not None}
        examples = range(max(map(len, batch.values())))
        return np.stack(
            [one(**inputs | {k: a[n % len(a)] for k, a in batch.items()}) for n in examples]
        )

    return run


def both(f: Callable[..., Any]) -> dict[str, Any]:
    """`ours` and `fused` of a row, for an `f(kernels, ...)` that can compute with either."""
    return {"ours": partial(f, "formula"), "fused": partial(f, "fused")}
