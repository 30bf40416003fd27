"""One token after another: our cache against Hugging Face's, the same weights' shapes.

    python tests/benchmarks/generation.py

GPT-2's switches at nanoGPT's small size: 4 layers, 4 heads, d_model 128; 256 tokens after 768.
"""

from functools import partial

import torch
from common import interleave, machine, table
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

import minitransformer as mt

VOCAB, CONTEXT, NEW = 1000, 768, 256


@torch.no_grad()
def ours(model: mt.CausalLM, ids: torch.Tensor) -> None:
    """Greedy, by hand: the prompt once, then token by token."""
    cache = mt.KeyValueCache()
    for _ in range(NEW):
        ids = model.logits(model.decoder(ids, cache=cache)[:, -1:]).argmax(-1)


@torch.no_grad()
def without_cache(model: mt.CausalLM, ids: torch.Tensor, new: int) -> None:
    """All tokens again for every new one."""
    for _ in range(new):
        best = model.logits(model.decoder(ids)[:, -1:]).argmax(-1)
        ids = torch.cat([ids, best], 1)


@torch.no_grad()
def hugging_face(model: GPT2LMHeadModel, ids: torch.Tensor) -> None:
    """The same loop over their model and cache, without the overhead of `generate`."""
    cache = DynamicCache()
    for _ in range(NEW):
        output = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids = output.logits.argmax(-1)


def main(rounds: int = 5) -> None:
    print(machine())
    config = mt.TransformerConfig.gpt2(
        vocab_size=VOCAB, d_model=128, n_layers=4, n_heads=4, d_ff=512
    )
    model = mt.CausalLM(mt.Decoder(config)).eval()
    special = {"bos_token_id": 0, "eos_token_id": 0}
    their_config = GPT2Config(vocab_size=VOCAB, n_embd=128, n_layer=4, n_head=4, **special)
    theirs = GPT2LMHeadModel(their_config).eval()
    ids = torch.randint(0, VOCAB, (1, CONTEXT))
    runs = {
        "Hugging Face, DynamicCache": partial(hugging_face, theirs, ids),
        "ours, KeyValueCache": partial(ours, model, ids),
        f"ours without a cache, the first {NEW // 16} only": partial(
            without_cache, model, ids, NEW // 16
        ),
    }
    title = f"{NEW} tokens after {CONTEXT}"
    print(table(title, interleave(runs, rounds), "Hugging Face, DynamicCache"), flush=True)


if __name__ == "__main__":
    main()
