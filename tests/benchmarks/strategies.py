"""Frozen layers computed once, and LoRA, against recomputing, Hugging Face's Trainer and peft.

    python tests/benchmarks/strategies.py              # time and memory, about 4 minutes
    python tests/benchmarks/strategies.py --accuracy   # and LoRA's accuracy beside peft's, 5 more

Five epochs each on the same reviews, validation included where we validate (after every epoch, as
`mt.finetune` does; the Trainer does not). The Trainer and peft run as their users write them:
float32, batches padded to their longest text.
"""

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from common import interleave, interleave_with_memory, machine, table
from finetuning import unpack
from peft import LoraConfig, get_peft_model

import minitransformer as mt
from minitransformer.training.strategies import Full, HeadOnly, LastLayers, LoRA

transformers.logging.set_verbosity_error()
EPOCHS, TRAIN = 5, 640


class Reviews(torch.utils.data.Dataset):
    """Tokenised texts as the Trainer takes them."""

    def __init__(self, texts: mt.data.LabelledTexts, tokenizer):
        self.encoded, self.labels = tokenizer(list(texts.texts), truncation=True), texts.labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {k: v[i] for k, v in self.encoded.items()} | {"labels": self.labels[i]}


class HuggingFace:
    """A classifier of transformers with some layers frozen, or with peft's LoRA."""

    def __init__(self, folder: Path, texts, trained: int | None = None, rank: int | None = None):
        torch.manual_seed(0)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=2
        )
        self.data, self.folder = Reviews(texts, self.tokenizer), folder
        if trained is not None:  # the last so many blocks
            self.model.bert.embeddings.requires_grad_(False)
            for block in self.model.bert.encoder.layer[: 6 - trained]:
                block.requires_grad_(False)
        if rank is not None:
            # the pooler is new to the task, ours learns it too
            config = LoraConfig(
                task_type="SEQ_CLS", r=rank, lora_alpha=2 * rank, lora_dropout=0.0,
                target_modules=["query", "value"], modules_to_save=["classifier", "pooler"],
            )  # fmt: skip
            self.model = get_peft_model(self.model, config)

    def train(self, epochs=EPOCHS, lr=1e-3, seed=0, fresh=True) -> None:
        arguments = transformers.TrainingArguments(
            output_dir=self.folder / "out", num_train_epochs=epochs, learning_rate=lr, seed=seed,
            per_device_train_batch_size=32, save_strategy="no", report_to="none", use_cpu=True,
            disable_tqdm=True, logging_strategy="no", warmup_steps=0.1, weight_decay=0.01,
        )  # fmt: skip
        transformers.Trainer(
            copy.deepcopy(self.model) if fresh else self.model, arguments, train_dataset=self.data,
            data_collator=transformers.DataCollatorWithPadding(self.tokenizer),
        ).train()  # fmt: skip


class Ours:
    """`mt.finetune` with a strategy."""

    def __init__(self, texts, valid, strategy, pooling="mean", precision="auto", **options):
        torch.manual_seed(0)
        encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
        self.model = mt.SequenceClassifier(encoder, 2, pooling)
        self.parts = [mt.data.encode(part, tokenizer) for part in (texts, valid)]
        self.strategy, self.options = strategy, options | {"precision": precision}

    def train(self) -> None:
        mt.finetune(
            copy.deepcopy(self.model), *self.parts, self.strategy, epochs=EPOCHS, progress=False,
            **self.options,
        )  # fmt: skip


def main(accuracy: bool = False, rounds: int = 1) -> None:
    train, valid, test = mt.data.load("movies").split(seed=0)
    few, some = train.sample(TRAIN), valid.sample(TRAIN // 10)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = unpack(Path(name))
        for title, strategy, blocks in (
            ("the head alone", HeadOnly(), 0), ("the last two blocks", LastLayers(2), 2)
        ):  # fmt: skip
            candidates = {
                "computed every epoch": Ours(few, some, strategy, cache_mib=0),
                "computed once": Ours(few, some, strategy),
                "computed once, float32": Ours(few, some, strategy, precision="medium"),
                "Hugging Face's Trainer": HuggingFace(folder, few, blocks),
            }
            seconds = interleave({n: c.train for n, c in candidates.items()}, rounds)
            about = f"{EPOCHS} epochs of {TRAIN} reviews, {title}"
            print(table(about, seconds, "computed every epoch"), flush=True)
        candidates = {
            "full": Ours(few, some, Full(), "cls"),
            "LoRA, rank 8": Ours(few, some, LoRA(8), "cls"),
            "full, float32": Ours(few, some, Full(), "cls", "medium"),
            "LoRA, rank 8, float32": Ours(few, some, LoRA(8), "cls", "medium"),
            "peft's LoRA, rank 8": HuggingFace(folder, few, rank=8),
        }
        seconds, memory = interleave_with_memory(
            {name: c.train for name, c in candidates.items()}, rounds
        )
        print(table(f"{EPOCHS} epochs of {TRAIN} reviews", seconds, "peft's LoRA, rank 8"))
        print("\npeak memory over the model:", {n: f"{m:.0f} MiB" for n, m in memory.items()})
        if accuracy:
            compare_accuracy(folder, train.sample(1000), valid.sample(200), test)


def compare_accuracy(folder: Path, few, valid, test) -> None:
    """LoRA of rank 8 at equal rate, steps and pooling, three seeds."""
    print(f"\n1,000 reviews, 3 epochs, rank 8, cls, accuracy on {len(test)} test reviews\n")
    for seed in range(3):
        torch.manual_seed(seed)
        encoder, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
        model = mt.SequenceClassifier(encoder, 2, "cls")
        data = [mt.data.encode(part, tokenizer) for part in (few, valid, test)]
        mt.finetune(model, *data[:2], LoRA(8), seed=seed, progress=False)
        print(f"ours, seed {seed}: {mt.evaluate(model, data[2]).accuracy:.3f}", flush=True)
        theirs = HuggingFace(folder, few, rank=8)
        theirs.train(3, LoRA.learning_rate, seed, fresh=False)
        theirs.model.eval()
        with torch.no_grad():
            said = [
                theirs.model(**theirs.tokenizer(list(t), padding=True, return_tensors="pt")).logits
                for t in np.array_split(np.array(test.texts), 16)
            ]
        right = torch.cat(said).argmax(-1) == torch.tensor(test.labels)
        print(f"peft, seed {seed}: {right.float().mean():.3f}", flush=True)


if __name__ == "__main__":
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    options.add_argument("--accuracy", action="store_true", help="also score LoRA on the test part")
    main(options.parse_args().accuracy)
