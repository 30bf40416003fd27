"""Fine-tuning with all rows of the embedding table, and with those that the texts read: CPU seconds.

    python tests/benchmarks/rows_in_use.py

MiniLM's sizes with random weights, 192 texts of 20 tokens, 6 steps; the two take turns.
"""

import contextlib
import statistics
import time
from unittest import mock

import torch

import minitransformer as mt
from minitransformer.data import EncodedTexts


class WholeTable:
    """The table as it is, with the methods of `RowsInUse`."""

    def __init__(self, *_):
        pass

    inside = outside = contextlib.nullcontext


def seconds(vocab_size: int, whole: bool) -> float:
    """CPU time of a run."""
    config = mt.TransformerConfig.bert(
        vocab_size=vocab_size, d_model=384, n_heads=12, n_layers=6, d_ff=1536, pooler=False
    )
    ids = torch.randint(5, 8000, (192, 20), generator=torch.Generator().manual_seed(0)).tolist()
    labels = tuple(i % 2 for i in range(len(ids)))
    texts = EncodedTexts(tuple(map(tuple, ids)), labels, 0, ("a", "b"))
    torch.manual_seed(0)
    model = mt.SequenceClassifier(mt.Encoder(config), 2, "mean")
    table = mock.patch("minitransformer.training.finetune.RowsInUse", WholeTable)
    start = time.process_time()
    with table if whole else contextlib.nullcontext():
        mt.finetune(model, texts, texts, steps=6, validate_every=6, progress=False)
    return time.process_time() - start


if __name__ == "__main__":
    for vocab_size in (30_522, 250_037):
        seconds(vocab_size, whole=True)  # warm-up
        turns = [(seconds(vocab_size, True), seconds(vocab_size, False)) for _ in range(3)]
        ratio = statistics.median(whole / rows for whole, rows in turns)
        print(f"{vocab_size:,} tokens: the rows in use take {ratio:.2f} times less CPU time")
