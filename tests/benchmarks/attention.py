"""Written-out attention against torch's fused kernel, by sequence length: where do they cross?

    python tests/benchmarks/attention.py

Forward and backward, 12 heads of 32, about a thousand tokens. `fast.FEW_KEYS` says up to where
`fused_attention` uses torch's plain matmul and softmax; dropout on the weights and the precision of
matrix products both move the crossing.

The memory that each takes beyond its inputs is measured at 2,048 tokens, in a process of its own.
"""

import resource
import subprocess
import sys
from functools import partial

import torch
import torch.nn.functional as F
from common import interleave, machine, table

from minitransformer.formulas import fast, ops
from minitransformer.training.precision import matmul_precision

HEADS, D_K, TOKENS = 12, 32, 1024
LONG = 2048
MASKS = ("no mask", "causal", "padding", "causal and padding")


def work(attention, tensors, precision: str) -> None:
    """Forward and backward, in the layout that a model has."""
    with matmul_precision(precision):
        attention(*tensors).transpose(1, 2).flatten(2).sum().backward()


def peak(kind: str, mask: str) -> float:
    """MiB that forward and backward of a long sequence add to the process; run in a fresh one."""
    tensors = [torch.randn(1, LONG, HEADS, D_K).transpose(1, 2).requires_grad_() for _ in range(3)]
    keep = torch.ones(1, 1, 1, LONG, dtype=torch.bool)
    keep[..., -3:] = False
    options = {"keep": keep if "padding" in mask else None, "causal": "causal" in mask}
    attention = partial(ops.OPS[kind].attention, **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work(attention, tensors, "highest")
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def memory() -> None:
    """The peak of each kind under each mask."""
    print(f"\n### memory of attention, {LONG} tokens, {HEADS} heads, forward and backward\n")
    print("| | written out MiB | fused MiB | times less |\n| --- | --- | --- | --- |")
    for mask in MASKS:
        written, fused = (
            float(subprocess.check_output([sys.executable, __file__, kind, mask]))
            for kind in ("formula", "fused")
        )
        print(f"| {mask} | {written:.0f} | {fused:.0f} | {written / fused:.0f} |", flush=True)


def main(rounds: int = 20) -> None:
    print(machine())
    memory()
    for precision in ("highest", "medium", "bfloat16"):
        for length in (32, 128, 512):
            batch = max(1, TOKENS // length)
            shape = (batch, length, HEADS, D_K)
            tensors = [torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(3)]
            keep = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            keep[0, ..., -3:] = False
            few = partial(fast.few_keys_attention, keep=keep, dropout=0.0, bias=None, scale=None)
            fused = partial(F.scaled_dot_product_attention, attn_mask=keep)
            candidates = {
                "written out": partial(ops.attention, keep=keep),
                "torch's matmul and softmax": few,
                "torch's fused kernel": fused,
                "torch's matmul and softmax, dropout": partial(few, dropout=0.1),
                "torch's fused kernel, dropout": partial(fused, dropout_p=0.1),
            }
            runs = {n: partial(work, f, tensors, precision) for n, f in candidates.items()}
            title = f"{batch} x {length} tokens, {precision}"
            print(table(title, interleave(runs, rounds), "torch's fused kernel"), flush=True)


if __name__ == "__main__":
    print(peak(*sys.argv[1:])) if sys.argv[1:] else main()
