"""What it costs to be able to stop: a checkpoint, and going on from it, in training steps.

python tests/benchmarks/checkpointing.py    # about half a minute
"""

import statistics
import tempfile

import torch
from common import interleave, machine

import minitransformer as mt
from minitransformer.training.checkpointing import FILE, Checkpoint, digest
from minitransformer.training.loop import Keeper, Recipe, endless
from minitransformer.training.objectives import causal_lm_loss
from minitransformer.training.optim import make_adamw
from minitransformer.training.parallel import LossOfPart, backward
from minitransformer.training.precision import matmul_precision
from minitransformer.training.strategies import layers_of

VOCAB, LENGTH, BLOCKS = 1000, 128, 4000
RECIPE = Recipe(
    steps=1000, validate_every=100, lr=1e-3, batch_size=16, warmup=0.1, weight_decay=0.01, clip=1.0,
    seed=0, precision="auto",
)  # fmt: skip


def main(rounds: int = 7) -> None:
    torch.manual_seed(0)
    config = mt.TransformerConfig.gpt2(
        vocab_size=VOCAB, d_model=128, n_heads=4, n_layers=3, d_ff=512, max_len=LENGTH, pad_id=None
    )
    model = mt.CausalLM(mt.Decoder(config))
    blocks = tuple(map(tuple, torch.randint(VOCAB, (BLOCKS, LENGTH)).tolist()))
    data = mt.data.EncodedTexts(blocks, None, 0)
    optimizer, best = make_adamw(layers_of(model), 0.01), Keeper(model)
    best.watch()
    part_loss = LossOfPart(model, lambda b: causal_lm_loss(model, b), lambda b: b.n_targets)
    batch = next(data.batches(RECIPE.batch_size))

    def step() -> None:
        with matmul_precision(RECIPE.precision):
            backward(part_loss, batch, lambda b: b.n_targets)
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory() as folder:

        def checkpoint() -> Checkpoint:
            return Checkpoint(folder, 100, True, {})

        def load() -> None:
            with checkpoint() as again:
                again.start(model, optimizer, best)

        step()
        with checkpoint() as first:
            first.start(model, optimizer, best)
            candidates = {
                "a step of 16 x 128 tokens": step,
                "write a checkpoint": lambda: first.write(1),
                "load it": load,
                "skip to the place in the data (the middle of 250 batches)": lambda: next(
                    endless(data, RECIPE, 125)
                ),
                "hash 4,000 blocks, to know that they are the same": lambda: digest(data),
            }
            seconds = {n: statistics.median(s) for n, s in interleave(candidates, rounds).items()}
            size = (first.folder / FILE).stat().st_size / 2**20
    weights = sum(p.numel() for p in model.parameters()) / 1e6
    print(machine())
    print(f"\n### Stopping and going on: {weights:.2f} million weights, a file of {size:.1f} MiB\n")
    print("| | median ms | steps |\n| --- | --- | --- |")
    one = seconds["a step of 16 x 128 tokens"]
    for name, value in seconds.items():
        print(f"| {name} | {1e3 * value:.0f} | {value / one:.2f} |")


if __name__ == "__main__":
    main()
