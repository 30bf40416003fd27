"""Masked language modelling on real reviews: ours against Hugging Face's model and collator.

    python tests/benchmarks/pretraining.py      # about 2 minutes

The same new BERT (4 layers, d_model 256, the English vocabulary of 30,522) reads the same reviews
in steps of 32. Hugging Face's side is what its users write: `BertForMaskedLM`,
`DataCollatorForLanguageModeling`, batches in random order padded to their longest text,
`torch.optim.AdamW`. The levers are added one after the other; only the last changes the precision.
Every turn reads all texts once, masks included, so real tokens per second compare as the times do.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from common import interleave_with_memory, machine, table
from finetuning import unpack

import minitransformer as mt
from minitransformer.training.objectives import masked_lm_loss
from minitransformer.training.optim import make_adamw
from minitransformer.training.precision import matmul_precision
from minitransformer.training.strategies import layers_of

TEXTS, BATCH, LR = 128, 32, 1e-3
VOCAB, D_MODEL, HEADS, LAYERS, D_FF = 30522, 256, 4, 4, 1024
BLOCK = 64
"""Tokens of a packed block."""


class HuggingFace:
    """Their model, their collator, torch's optimizer and loader."""

    def __init__(self, folder: Path, texts: mt.data.LabelledTexts):
        torch.manual_seed(0)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=VOCAB, hidden_size=D_MODEL, num_attention_heads=HEADS,
                num_hidden_layers=LAYERS, intermediate_size=D_FF,
            )
        ).train()  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), LR)
        rows = [{"input_ids": ids} for ids in tokenizer(list(texts.texts))["input_ids"]]
        collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        self.loader = torch.utils.data.DataLoader(rows, BATCH, shuffle=True, collate_fn=collate)

    def train(self) -> None:
        for batch in self.loader:
            self.optimizer.zero_grad()
            self.model(**batch).loss.backward()
            self.optimizer.step()


class InRandomOrder(mt.data.EncodedTexts):
    """Batches as a shuffling loader makes them."""

    def batches(self, batch_size, seed=None):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        for i in range(0, len(order), batch_size):
            yield mt.data.pad([self.ids[j] for j in order[i : i + batch_size]], self.pad_id)


def loss_over_all_logits(model: mt.MaskedLM, batch: mt.data.MaskedBatch) -> torch.Tensor:
    """The same loss with the whole vocabulary at every position, as Hugging Face computes it."""
    targets = batch.targets.masked_fill(~batch.chosen, -100)
    return F.cross_entropy(model(batch.ids, batch.keep).flatten(0, 1), targets.flatten())


class Ours:
    """The same work with our parts, each lever on its own."""

    def __init__(
        self, texts, tokenizer, chosen_only=True, order="buckets", fused=True, precision="bfloat16"
    ):
        torch.manual_seed(0)
        config = mt.TransformerConfig.bert(
            vocab_size=VOCAB, d_model=D_MODEL, n_heads=HEADS, n_layers=LAYERS, d_ff=D_FF,
            dropout=0.1, attention_dropout=0.1, pooler=False,
        )  # fmt: skip
        self.model = mt.MaskedLM(mt.Encoder(config)).train()
        data, self.batch = mt.data.encode(texts, tokenizer), BATCH
        if order == "random":
            data = InRandomOrder(data.ids, None, data.pad_id)
        if order == "packed":
            tokens = sum(map(len, data.ids))
            data = mt.data.pack(data, BLOCK, tokenizer.id_of("[SEP]"))
            self.batch = round(tokens / BLOCK / (TEXTS / BATCH))  # as many steps
        self.data = mt.data.MaskedTexts(data, tokenizer)
        self.loss = masked_lm_loss if chosen_only else loss_over_all_logits
        self.precision, self.epoch = precision, 0
        self.optimizer = make_adamw(layers_of(self.model), 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = LR
        if not fused:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), LR)

    def train(self) -> None:
        for batch in self.data.batches(self.batch, self.epoch):
            with matmul_precision(self.precision):
                self.loss(self.model, batch).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.epoch += 1


def main(rounds: int = 2) -> None:
    texts = mt.data.load("movies").split(seed=0)[0].sample(TEXTS)
    _, tokenizer = mt.load_pretrained("all-MiniLM-L6-v2")
    plain = dict(chosen_only=False, order="random", fused=False, precision="highest")
    ours = partial(Ours, texts, tokenizer)
    with tempfile.TemporaryDirectory() as name:
        candidates = {
            "Hugging Face": HuggingFace(unpack(Path(name)), texts),
            "our model, the same way": ours(**plain),
            "+ vocabulary at the chosen only": ours(**plain | {"chosen_only": True}),
            "+ batches of like length": ours(fused=False, precision="highest"),
            "+ one-kernel AdamW": ours(precision="highest"),
            f"  or packed in blocks of {BLOCK}": ours(order="packed", precision="highest"),
            "+ bfloat16": ours(),
        }
        seconds, memory = interleave_with_memory(
            {name: c.train for name, c in candidates.items()}, rounds
        )
    tokens = sum(len(ids) for ids in tokenizer.encode_all(texts.texts))
    print(machine())
    print(table(f"{TEXTS} reviews, masked, in steps of {BATCH}", seconds, "Hugging Face"))
    print("\n| | real tokens a second, fastest | peak MiB over the model |\n| --- | --- | --- |")
    for name, values in seconds.items():
        print(f"| {name} | {tokens / min(values):.0f} | {memory[name]:.0f} |")


if __name__ == "__main__":
    main()
