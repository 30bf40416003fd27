"""Writing and training at nanoGPT's small size: 4 layers, 4 heads, d_model 128, 65 characters, no biases.

    python tests/benchmarks/generation.py

Writing: 256 tokens after 768, greedy, beside nanoGPT's way (no cache: all tokens again for each new
one), a loop over Hugging Face's GPT-2 with their cache, and their `generate`.

Training: a step of 12 x 64 tokens, beside the same model as nanoGPT writes it. Each as its users
write it: torch's fused attention, float32 and plain AdamW there; here what `mt.pretrain` does, whose
precision is bfloat16 where the CPU has it. In equal precision there is little to gain: two thirds of
the time are matrix products.
"""

from functools import partial

import torch
import torch.nn.functional as F
import transformers
from common import interleave, machine, table
from torch import nn
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

import minitransformer as mt
from minitransformer.formulas import ops
from minitransformer.training.precision import matmul_precision

transformers.logging.set_verbosity_error()
VOCAB, CONTEXT, NEW, LENGTH = 65, 768, 256, 1024
D_MODEL, HEADS, LAYERS, BATCH, SHORT = 128, 4, 4, 12, 64


class PlainBlock(nn.Module):
    """A pre-LN block with torch's fused attention."""

    def __init__(self):
        super().__init__()
        self.norm_1 = nn.LayerNorm(D_MODEL, bias=False)
        self.norm_2 = nn.LayerNorm(D_MODEL, bias=False)
        self.qkv = nn.Linear(D_MODEL, 3 * D_MODEL, bias=False)
        self.out = nn.Linear(D_MODEL, D_MODEL, bias=False)
        self.up = nn.Linear(D_MODEL, 4 * D_MODEL, bias=False)
        self.down = nn.Linear(4 * D_MODEL, D_MODEL, bias=False)

    def forward(self, x):
        q, k, v = (
            a.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for a in self.qkv(self.norm_1(x)).split(D_MODEL, dim=2)
        )
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class PlainGPT(nn.Module):
    """The way a small GPT is usually written: one file, no cache."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, D_MODEL)
        self.positions = nn.Embedding(LENGTH, D_MODEL)
        self.blocks = nn.Sequential(*(PlainBlock() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(D_MODEL, bias=False)

    def forward(self, ids, last_only=False):
        x = self.norm(self.blocks(self.tokens(ids) + self.positions.weight[: ids.shape[1]]))
        return F.linear(x[:, -1:] if last_only else x, self.tokens.weight)


@torch.no_grad()
def without_cache(model: PlainGPT, ids: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """All tokens again for every new one, cropped to the positions there are."""
    for _ in range(new):
        logits = model(ids[:, -LENGTH:], last_only=True)
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


@torch.no_grad()
def hugging_face_loop(model: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    """A loop over their model and cache, without the overhead of `generate`."""
    cache = DynamicCache()
    for _ in range(NEW):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = output.logits[:, -1].argmax(-1, keepdim=True)


def our_model() -> mt.CausalLM:
    """The same size in the package."""
    config = mt.TransformerConfig.gpt2(
        vocab_size=VOCAB, d_model=D_MODEL, n_layers=LAYERS, n_heads=HEADS, d_ff=4 * D_MODEL,
        max_len=LENGTH, bias=False, activation="gelu", dropout=0.0, attention_dropout=0.0,
        start_id=None, eos_id=None,
    )  # fmt: skip
    return mt.CausalLM(mt.Decoder(config))


def writing(rounds: int) -> None:
    """Tokens a second, and the table."""
    ids = torch.randint(0, VOCAB, (1, CONTEXT))
    special = {"bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
    theirs = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=D_MODEL, n_layer=LAYERS, n_head=HEADS, **special)
    ).eval()
    mask = torch.ones_like(ids)
    generate = partial(theirs.generate, ids, attention_mask=mask, do_sample=False)
    runs = {
        "nanoGPT's way, no cache": partial(without_cache, PlainGPT().eval(), ids),
        "Hugging Face, a loop with DynamicCache": partial(hugging_face_loop, theirs, ids),
        "Hugging Face, generate": partial(generate, min_new_tokens=NEW, max_new_tokens=NEW),
        "ours, mt.generate": partial(mt.generate, our_model(), ids, NEW),
    }
    seconds = interleave(runs, rounds)
    print(table(f"{NEW} tokens after {CONTEXT}", seconds, "nanoGPT's way, no cache"), flush=True)
    speed = {name: f"{NEW / sorted(s)[len(s) // 2]:.0f}" for name, s in seconds.items()}
    print("\ntokens a second:", speed, flush=True)


def stepper(model: nn.Module, optimizer, loss_of, precision: str):
    """One training step as a function without arguments."""
    ids = torch.randint(0, VOCAB, (BATCH, SHORT + 1))

    def step():
        with matmul_precision(precision):
            logits = model(ids[:, :-1])
            loss_of(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def training(rounds: int) -> None:
    """A step, each as its users write it, and ours in float32 as well."""
    steps = {}
    for name, make, loss_of, fused, precision in (
        ("nanoGPT's way", PlainGPT, F.cross_entropy, None, "highest"),
        ("nanoGPT's way, our optimizer and precision", PlainGPT, F.cross_entropy, True, "medium"),
        ("ours, float32", our_model, ops.FUSED.cross_entropy, True, "medium"),
        ("ours, as mt.pretrain does it", our_model, ops.FUSED.cross_entropy, True, "auto"),
    ):
        model = make().train()
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=fused)
        steps[name] = stepper(model, optimizer, loss_of, precision)
    title = f"a training step of {BATCH} x {SHORT} tokens"
    print(table(title, interleave(steps, rounds), "nanoGPT's way"), flush=True)


def main(rounds: int = 5) -> None:
    print(machine())
    training(20 * rounds)
    writing(rounds)


if __name__ == "__main__":
    main()
