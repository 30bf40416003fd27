"""How exactly matrices are multiplied.

`highest`: float32 as it is. `medium`: float32 through oneDNN, which may round its factors to
bfloat16 where the CPU multiplies these. `bfloat16`: products in 16 bits, weights and sums in 32.
`auto`: bfloat16 on a CPU that has instructions for it, otherwise highest.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import get_args

import torch

from ..options import Precision

WITHOUT_BFLOAT16 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI"}
"""What ONEDNN_MAX_CPU_ISA can allow of a CPU and thereby take its bfloat16 away."""


def resolve(precision: Precision) -> str:
    """What `auto` means on this machine: what is never slower than plain float32.

    With instructions for bfloat16 that is bfloat16, about twice as fast. Without them its products
    are emulated, 5 to 80 times slower, and `medium` rounds nothing: oneDNN's float32 is then at best
    as fast as MKL's and up to 35 % slower (Intel, AVX-512). So the choice is `highest` there.

    Raises: ValueError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision={precision!r} is not known; choose one of {get_args(Precision)}"
        )
    if precision != "auto":
        return precision
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in WITHOUT_BFLOAT16
    fast = allowed and (has.get("avx512_bf16") or has.get("amx_bf16"))
    return "bfloat16" if fast else "highest"


SETTINGS: list[str] = []
"""Torch's setting before, and then that of every `matmul_precision` inside, also of other threads."""
CHANGING = threading.Lock()


@contextlib.contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Inside, multiply matrices with this precision; outside, with torch's former setting.

    Torch has one setting for all threads; the last thread to leave puts the former one back.
    """
    used = resolve(precision)
    mine = "highest" if used == "highest" else "medium"
    with CHANGING:
        SETTINGS.extend([] if SETTINGS else [torch.get_float32_matmul_precision()])
        SETTINGS.append(mine)
        torch.set_float32_matmul_precision(mine)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=used == "bfloat16"):
            yield
    finally:
        with CHANGING:
            del SETTINGS[len(SETTINGS) - 1 - SETTINGS[::-1].index(mine)]
            torch.set_float32_matmul_precision(SETTINGS[-1])
            if len(SETTINGS) == 1:
                SETTINGS.clear()
