r"""One row of the ledger: a formula with its LaTeX, its source and its implementations.

All implementations of a row take the same named inputs:

- `by_hand` takes NumPy arrays and computes index by index;
- `ours` takes torch tensors: the code that models are built from, written-out operations;
- `fused` is the same with torch's kernels;
- `reference` is torch's own operation or module;
- `backward_by_hand` takes NumPy arrays, the gradient of the output first, and returns those of the
  inputs: the derivative derived on paper.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Formula:
    """One row: a formula and everything that claims to compute it."""

    id: str
    title: str
    latex: str
    source: str
    draw: Callable[[np.random.Generator, str], Inputs]
    """`draw(rng, case)` makes inputs of order 1 in float64, all dimensions different."""
    by_hand: Callable[..., Any]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    fused: Callable[..., Any] | None = None
    backward_by_hand: Callable[..., Any] | None = None
    """`f(d_output, **inputs)` gives the gradients of the inputs: a tuple in their order, or by name."""
    cases: tuple[str, ...] = ("plain",)
    no_gradient: tuple[str, ...] = ()
    """Inputs that are not differentiated, beside masks and integers."""
    shows: tuple[Callable, ...] = ()
    """What `show` prints as our code, when `ours` only arranges the inputs."""
