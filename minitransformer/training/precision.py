"""How exactly matrices are multiplied."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["highest", "medium", "bfloat16"]
"""`highest`: float32 as it is. `medium`: float32 through torch's faster kernels, which may round
inside (on many CPUs they do not). `bfloat16`: products in 16 bits, weights and sums in 32."""


@contextlib.contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Set torch's global switch inside, put it back outside.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in ("highest", "medium", "bfloat16"):
        raise ValueError(
            f"precision={precision!r} is not known; choose highest, medium or bfloat16"
        )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if precision == "highest" else "medium")
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
