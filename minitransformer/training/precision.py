"""How exactly matrices are multiplied.

`highest`: plain float32. `medium`: float32 through torch's faster kernels, which may round inside
(on many CPUs they do not). `bfloat16`: products in 16 bits, weights and sums in 32. `auto`: bfloat16
on a CPU that has instructions for it, otherwise medium.
"""

import contextlib
from collections.abc import Iterator
from typing import get_args

import torch

from ..options import Precision


def resolve(precision: Precision) -> str:
    """What `auto` means on this machine; without the instructions bfloat16 is emulated, and slow."""
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision={precision!r} is not known; choose one of {get_args(Precision)}"
        )
    if precision != "auto":
        return precision
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "medium"


@contextlib.contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Inside, multiply matrices with this precision; outside, with torch's former setting."""
    used = resolve(precision)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest" if used == "highest" else "medium")
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=used == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
