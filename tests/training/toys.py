"""What the training tests share: a small classifier, and data that it can learn."""

import numpy as np
import torch

import minitransformer as mt

VOCAB, CLASSES = 37, 3


def classifier(
    dropout: float = 0.0, pooling: str = "cls", seed: int = 0, **switches
) -> mt.SequenceClassifier:
    """A small classifier whose weights are of order 1, so that nothing is hidden by small ones."""
    torch.manual_seed(seed)
    config = mt.TransformerConfig.bert(
        vocab_size=VOCAB, d_model=20, n_heads=5, n_layers=3, d_ff=28, max_len=13,
        dropout=dropout, attention_dropout=dropout, init_std=0.25,
    ).with_(**switches)  # fmt: skip
    return mt.SequenceClassifier(mt.Encoder(config), CLASSES, pooling, seed=seed + 2)


def toy(n: int = 60, seed: int = 0) -> mt.data.EncodedTexts:
    """Sequences whose class is a token that occurs in them: learnable without a remainder."""
    rng = np.random.default_rng(seed)
    labels = [int(y) for y in rng.integers(0, CLASSES, n)]
    ids = [
        (1, *(int(t) for t in rng.integers(10, VOCAB, rng.integers(2, 9))), 5 + label, 2)
        for label in labels
    ]
    return mt.data.EncodedTexts(tuple(ids), tuple(labels), 0, ("a", "b", "c"))


def train(model, data, strategy=None, **options):
    """finetune without a bar, in exact float32 or float64."""
    return mt.finetune(
        model, data, data, strategy, progress=False, **({"precision": "highest"} | options)
    )


def state_of(module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.state_dict().items()}
