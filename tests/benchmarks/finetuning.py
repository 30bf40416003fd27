"""Fine-tuning 1,000 reviews: the article's script against `mt.finetune`, time and accuracy.

    python tests/benchmarks/finetuning.py              # time, lever by lever, about 5 minutes
    python tests/benchmarks/finetuning.py --accuracy   # and the accuracy of both, about 20 more

The article's script (its section 5): tokenise, pad and truncate to 128, a mask, batches in random
order, AdamW, cross-entropy. Both train the same classifier from the same weights.

The levers from "+ batches" to "+ rows in use" are added one after the other; the lines that begin
with "without" take one from the whole.
"""

import argparse
import contextlib
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from common import interleave, machine, table
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import minitransformer as mt
from minitransformer.formulas import fast
from minitransformer.model import layers
from minitransformer.pretrained.checkpoints import find_files
from minitransformer.training.optim import make_adamw
from minitransformer.training.precision import matmul_precision
from minitransformer.training.rows_in_use import RowsInUse
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
    """The same work with our parts, each lever on its own.

    `instead` replaces functions of the package while it trains.
    """

    def __init__(
        self, texts, bucketed=True, precision="bfloat16", fused=True, first_only=True, rows=True,
        instead=None, **switches,
    ):  # fmt: skip
        encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2", **switches)
        self.model = mt.SequenceClassifier(encoder, 2, "cls").train()
        encoder = self.model.encoder  # a copy
        self.data = mt.data.encode(texts, tokenizer)
        self.precision, self.bucketed, self.instead = precision, bucketed, instead or {}
        if not first_only:  # drop the fourth argument, `first`
            encoder.register_forward_pre_hook(lambda module, args: args[:3])
        if rows:  # for good, as nothing here reads another text
            contextlib.ExitStack().enter_context(RowsInUse(encoder.embeddings, self.data).inside())
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
        with contextlib.ExitStack() as stack:
            for name, f in self.instead.items():
                for module in (fast, layers):
                    if hasattr(module, name):
                        stack.enter_context(mock.patch.object(module, name, f))
            for number, batch in enumerate(self.batches()):
                if number == steps:
                    break
                with matmul_precision(self.precision):
                    logits = self.model(batch.ids, batch.keep)
                    F.cross_entropy(logits.float(), batch.labels).backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()


def softmax_in_16_bits(scores: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`fused_softmax` without the way through 32 bits."""
    blocked = torch.zeros(keep.shape, dtype=scores.dtype).masked_fill(~keep, -torch.inf)
    return torch.softmax(scores + blocked, -1)


def unpack(folder: Path) -> Path:
    """MiniLM as a folder, for transformers."""
    for name, content in find_files("all-MiniLM-L6-v2")[0].items():
        (folder / name).write_bytes(content)
    return folder


def main(accuracy: bool, rounds: int = 2) -> None:
    train, valid, test = mt.data.load("movies").split(seed=0)
    few = train.sample(1000)
    plain = dict(precision="highest", fused=False, first_only=False, rows=False)
    no_dropout = dict(dropout=0.0, attention_dropout=0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = unpack(Path(name))
        candidates = {
            "the article's script": Article(folder, few, 2e-5),
            "our model, the same way": Ours(few, bucketed=False, **plain),
            "+ batches of like length": Ours(few, **plain),
            "+ one-kernel AdamW": Ours(few, **plain | {"fused": True}),
            "+ medium precision": Ours(few, precision="medium", first_only=False, rows=False),
            "+ bfloat16": Ours(few, first_only=False, rows=False),
            "+ last block: first position only": Ours(few, rows=False),
            "+ rows in use (what finetune does)": Ours(few),
            "without our dropout": Ours(few, instead={"inverted_dropout": F.dropout}),
            "without the 32-bit softmax": Ours(few, instead={"fused_softmax": softmax_in_16_bits}),
            "without attention dropout *": Ours(few, attention_dropout=0.0),
            "without any dropout *": Ours(few, **no_dropout),
        }
        seconds = interleave({n: partial(c.train, STEPS) for n, c in candidates.items()}, rounds)
        print(machine())
        print(table(f"{STEPS} steps of 32 reviews", seconds, "the article's script"), flush=True)
        print("\\* learns something else; the other lines differ by rounding and random numbers")
        if accuracy:
            compare_accuracy(folder, few, valid.sample(200), test)


def compare_accuracy(folder: Path, *parts: mt.data.LabelledTexts) -> None:
    """Test accuracy with three seeds and the seconds of a whole training, recipe by recipe."""
    few, valid, test = parts

    def article(seed: int) -> tuple[float, float]:
        model, start = Article(folder, few, 2e-5, seed), time.perf_counter()
        for _ in range(3):
            model.train()
        seconds = time.perf_counter() - start
        return model.accuracy(test), seconds

    def ours(seed: int, pooling: str = "mean", switches: dict | None = None, **options):
        torch.manual_seed(seed)
        encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2", **switches or {})
        model = mt.SequenceClassifier(encoder, 2, pooling)
        data = [mt.data.encode(part, tokenizer) for part in (few, valid, test)]
        options = {"epochs": 2, "lr": 1e-4, "precision": "bfloat16"} | options
        seconds = mt.finetune(model, *data[:2], seed=seed, progress=False, **options).seconds
        return mt.evaluate(model, data[2]).accuracy, seconds

    no_dropout = {"switches": {"dropout": 0.0, "attention_dropout": 0.0}}
    recipes = {
        "the article's script: [CLS], 3 epochs, rate 2e-5": article,
        "ours, the same recipe": partial(ours, pooling="cls", epochs=3, lr=2e-5),
        "[CLS], 2 epochs, rate 1e-4": partial(ours, pooling="cls"),
        "[CLS], 1½ epochs, rate 2e-4": partial(ours, pooling="cls", steps=48, lr=2e-4),
        "means, 2 epochs, rate 1e-4": ours,
        "  in float32": partial(ours, precision="highest"),
        "  in medium precision": partial(ours, precision="medium"),
        "  without dropout": partial(ours, **no_dropout),
        "  1 epoch": partial(ours, epochs=1),
    }
    runs = {name: [] for name in recipes}
    for seed in range(3):  # in turns, so that all see the same machine
        for name, run in recipes.items():
            runs[name].append(run(seed))
    script = min(seconds for _, seconds in next(iter(runs.values())))
    print(f"\n1,000 reviews, three seeds, accuracy on {len(test)} test reviews; seconds with the")
    print("validation (200 reviews after every epoch), which the script does not have\n")
    print(
        "| recipe | accuracy | each seed | seconds | times as fast |\n| --- " + "| --- " * 4 + "|"
    )
    for name, results in runs.items():
        scores, seconds = [s for s, _ in results], min(s for _, s in results)
        mean, sd = statistics.fmean(scores), statistics.stdev(scores)
        each = ", ".join(f"{s:.3f}" for s in scores)
        print(
            f"| {name} | {mean:.3f} ± {sd:.3f} | {each} | {seconds:.1f} | {script / seconds:.1f} |"
        )


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--accuracy", action="store_true", help="also train to the end and score")
    main(options.parse_args().accuracy)
