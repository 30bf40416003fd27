"""Written-out attention against torch's fused kernel, by sequence length: where do they cross?

    python tests/benchmarks/attention.py

Forward and backward, 12 heads of 32, about a thousand tokens. `ops.FEW_KEYS` says up to where
`fused_attention` uses torch's plain matmul and softmax; dropout on the weights and the precision of
matrix products both move the crossing.
"""

from functools import partial

import torch
import torch.nn.functional as F
from common import interleave, machine, table

from minitransformer.formulas import ops
from minitransformer.training.precision import matmul_precision

HEADS, D_K, TOKENS = 12, 32, 1024


def work(attention, tensors, precision: str) -> None:
    """Forward and backward, in the layout that a model has."""
    with matmul_precision(precision):
        attention(*tensors).transpose(1, 2).flatten(2).sum().backward()


def main(rounds: int = 20) -> None:
    print(machine())
    for precision in ("highest", "medium", "bfloat16"):
        for length in (32, 128, 512):
            batch = max(1, TOKENS // length)
            shape = (batch, length, HEADS, D_K)
            tensors = [torch.randn(shape).transpose(1, 2).requires_grad_() for _ in range(3)]
            keep = torch.ones(batch, 1, 1, length, dtype=torch.bool)
            keep[0, ..., -3:] = False
            few = partial(ops.few_keys_attention, keep=keep)
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
    main()
