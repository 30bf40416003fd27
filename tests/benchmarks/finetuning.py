"""Fine-tuning 1,000 reviews: the article's script against `mt.finetune`, time and accuracy.

    python tests/benchmarks/finetuning.py              # time, lever by lever, about 5 minutes
    python tests/benchmarks/finetuning.py --accuracy   # and the accuracy of both, about 5 more

The article's script (its section 5): tokenise, pad and truncate to 128, a mask, batches in random
order, AdamW, cross-entropy. Both train the same classifier from the same weights.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from common import interleave, machine, table
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import minitransformer as mt
from minitransformer.pretrained.checkpoints import find_files
from minitransformer.training.optim import make_adamw
from minitransformer.training.precision import matmul_precision
from minitransformer.training.strategies import layers_of

STEPS = 8  # of 32 reviews, in one timed turn; batches of all lengths, evenly chosen


class Article:
    """The worked example of the article, on real reviews."""

    def __init__(self, folder: Path, texts: mt.data.LabelledTexts, lr: float, seed: int = 0):
        torch.manual_seed(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        encoded = self.encode(texts)
        data = torch.utils.data.TensorDataset(*encoded, torch.tensor(texts.labels))
        self.loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)

    def encode(self, texts: mt.data.LabelledTexts):
        e = self.tokenizer(
            list(texts.texts), padding="max_length", truncation=True, max_length=128,
            return_tensors="pt",
        )  # fmt: skip
        return e["input_ids"], e["attention_mask"]

    def train(self, steps: int | None = None) -> None:
        self.model.train()
        for number, (ids, mask, labels) in enumerate(self.loader):
            if number == steps:
                break
            self.optimizer.zero_grad()
            self.model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def accuracy(self, texts: mt.data.LabelledTexts) -> float:
        self.model.eval()
        ids, mask = self.encode(texts)
        said = [
            self.model(input_ids=i, attention_mask=m).logits.argmax(-1)
            for i, m in zip(ids.split(64), mask.split(64), strict=True)
        ]
        return (torch.cat(said) == torch.tensor(texts.labels)).float().mean().item()


class Ours:
    """The same work with our parts, each lever on its own."""

    def __init__(self, texts, bucketed=True, precision="bfloat16", fused=True, **switches):
        encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2", **switches)
        self.model = mt.SequenceClassifier(encoder, 2, "cls").train()
        self.data, self.precision, self.bucketed = (
            mt.data.encode(texts, tokenizer),
            precision,
            bucketed,
        )
        self.optimizer = make_adamw(layers_of(self.model), 0.01)
        if not fused:
            self.optimizer = torch.optim.AdamW(self.model.parameters())
        for group in self.optimizer.param_groups:
            group["lr"] = 2e-5

    def batches(self):
        if self.bucketed:
            yield from list(self.data.batches(32))[1::4]
            return
        for start in range(0, len(self.data), 32):  # in the order of the data, padded to 128
            ids = [(*i, *[0] * (128 - len(i))) for i in self.data.ids[start : start + 32]]
            yield mt.data.pad(ids, 0, self.data.labels[start : start + 32])

    def train(self, steps: int) -> None:
        for number, batch in enumerate(self.batches()):
            if number == steps:
                break
            with matmul_precision(self.precision):
                logits = self.model(batch.ids, batch.keep)
                torch.nn.functional.cross_entropy(logits.float(), batch.labels).backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()


def unpack(folder: Path) -> Path:
    """MiniLM as a folder, for transformers."""
    for name, content in find_files("all-MiniLM-L6-v2")[0].items():
        (folder / name).write_bytes(content)
    return folder


def main(accuracy: bool, rounds: int = 2) -> None:
    train, valid, test = mt.data.load("movies").split(seed=0)
    few = train.sample(1000)
    plain = dict(bucketed=False, precision="highest", fused=False)
    with tempfile.TemporaryDirectory() as name:
        folder = unpack(Path(name))
        candidates = {
            "the article's script": Article(folder, few, 2e-5),
            "our model, the same way": Ours(few, **plain),
            "+ batches of like length": Ours(few, precision="highest", fused=False),
            "+ one-kernel AdamW": Ours(few, precision="highest"),
            "+ medium precision": Ours(few, precision="medium"),
            "+ no dropout": Ours(few, precision="medium", dropout=0.0, attention_dropout=0.0),
            "bfloat16, with dropout": Ours(few),
            "bfloat16, no dropout": Ours(few, dropout=0.0, attention_dropout=0.0),
        }
        seconds = interleave({n: partial(c.train, STEPS) for n, c in candidates.items()}, rounds)
        print(machine())
        print(table(f"{STEPS} steps of 32 reviews", seconds, "the article's script"), flush=True)
        if accuracy:
            compare_accuracy(folder, few, valid.sample(200), test)


def compare_accuracy(folder: Path, *parts: mt.data.LabelledTexts) -> None:
    """The article's script once (it takes its time), `mt.finetune` with three seeds."""
    few, _, test = parts
    print(f"\n1,000 reviews, 2 epochs, lr 5e-5, test accuracy on {len(test)} reviews\n")
    theirs, start = Article(folder, few, 5e-5), time.perf_counter()
    theirs.train()
    theirs.train()
    took = time.perf_counter() - start
    print(f"the article's script: {theirs.accuracy(test):.3f}, {took:.0f} s", flush=True)
    for pooling in ("cls", "mean"):
        for seed in range(3):
            torch.manual_seed(seed)
            encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
            model = mt.SequenceClassifier(encoder, 2, pooling)
            data = [mt.data.encode(part, tokenizer) for part in parts]
            history = mt.finetune(model, *data[:2], epochs=2, lr=5e-5, seed=seed, progress=False)
            scored = f"{mt.evaluate(model, data[2]).accuracy:.3f}, {history.seconds:.0f} s"
            print(f"ours, {pooling}, seed {seed}: {scored}", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--accuracy", action="store_true", help="also train to the end and score")
    main(options.parse_args().accuracy)
