"""GPT-2's files: its config's names, its weights' names, both ways.

Two things are stored otherwise than here. The four matrices of a block stand the other way round,
(in, out) where `nn.Linear` has (out, in). And $W^Q$, $W^K$ and $W^V$ are one matrix, `c_attn`.

The names are those of Hugging Face's `transformers`. Nothing outside this file knows them.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.config import TransformerConfig
from ..model.heads import CausalLM
from ..model.transformer import Decoder
from .hf_config import (
    activation,
    activation_name,
    both,
    check_expressible,
    drop_alias,
    read_entries,
    refuse,
)

NAMES = {
    "vocab_size": "vocab_size",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "n_layers": "n_layer",
    "max_len": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "init_std": "initializer_range",
    "scale_attention": "scale_attn_weights",
    "start_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
SPECIAL_TOKENS = {
    "bos_token": "<|endoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}
"""What transformers' AutoTokenizer needs to be told beside tokenizer.json."""
MARK = "wte.weight"
"""A weight that every file of this family has, and none of another."""
TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
"""The four: matrices of a linear map, stored (in, out)."""
BUFFER = re.compile(r"\.attn\.(bias|masked_bias)$")
"""The causal mask, which old files hold among the weights."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json.

    A padding token that is also a text's start or end counts as none: only a mask can tell them
    apart, and a model that hid the end of a text would compute something else.

    Raises:
        ValueError: a missing entry, an unknown activation, or a switch that is not supported.
    """
    refuse(config, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    refuse(config, embd_pdrop=config.get("resid_pdrop", 0.1))  # one dropout for both
    switches = read_entries(config, NAMES)
    switches["d_ff"] = config.get("n_inner") or 4 * switches["d_model"]
    switches["activation"] = activation(config, "activation_function", "gelu_new")
    if switches.get("pad_id") in (switches.get("start_id", 50256), switches.get("eos_id", 50256)):
        switches["pad_id"] = None
    tied = config.get("tie_word_embeddings", True) and "lm_head.weight" not in state
    return TransformerConfig.gpt2(**switches, tie_embeddings=tied)


def split_c_attn(c_attn: Tensor) -> tuple[Tensor, ...]:
    """The weight (d_model, 3 d_model) or bias (3 d_model) of Q, K and V, side by side in this order."""
    return c_attn.chunk(3, dim=-1)


def normalise(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """One spelling and one layout for the weights of all GPT-2 files.

    Off go the prefix `transformer.`, the masks, and a second copy of the embeddings; `c_attn` is
    split, and the four matrices of every block are turned.
    """
    clean: dict[str, Tensor] = {}
    for key, tensor in state.items():
        key = key.removeprefix("transformer.")
        if BUFFER.search(key):
            continue
        parts = {key: tensor}
        if ".attn.c_attn." in key and tensor.shape[-1] % 3 == 0:
            head, kind = key.rsplit(".", 1)
            parts = {
                f"{head}.{w}.{kind}": t for w, t in zip("qkv", split_c_attn(tensor), strict=True)
            }
        turn = TRANSPOSED.search(key) is not None
        clean |= {k: t.mT.contiguous() if turn else t for k, t in parts.items()}
    if config.get("tie_word_embeddings", True):
        drop_alias(clean, "lm_head.weight", MARK)
    return clean


def restore(state: dict[str, Tensor], model: CausalLM) -> dict[str, Tensor]:
    """The opposite of `normalise`: names and layout as a file has them."""
    written = {}
    for key, tensor in state.items():
        if ".attn.c_attn.q." in key:
            parts = [state[key.replace(".q.", f".{w}.")] for w in "qkv"]
            key, tensor = key.replace(".q.", "."), torch.cat(parts)
        elif ".attn.c_attn." in key:
            continue
        if TRANSPOSED.search(key):
            tensor = tensor.mT.contiguous()
        written[key if key == "lm_head.weight" else f"transformer.{key}"] = tensor
    return written


def build(config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig) -> CausalLM:
    """The model that the file holds."""
    return CausalLM(Decoder(ours))


def key_map(model: CausalLM) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs (as `normalise` gives it), for every weight."""

    yield from both("decoder.embeddings.tokens", "wte", "weight")
    yield from both("decoder.embeddings.position_table", "wpe", "weight")
    for i in range(len(model.decoder.blocks)):
        mine, other = f"decoder.blocks.{i}", f"h.{i}"
        yield from both(f"{mine}.norm_1", f"{other}.ln_1")
        yield from both(f"{mine}.attention.W_Q", f"{other}.attn.c_attn.q")
        yield from both(f"{mine}.attention.W_K", f"{other}.attn.c_attn.k")
        yield from both(f"{mine}.attention.W_V", f"{other}.attn.c_attn.v")
        yield from both(f"{mine}.attention.W_O", f"{other}.attn.c_proj")
        yield from both(f"{mine}.norm_2", f"{other}.ln_2")
        yield from both(f"{mine}.feed_forward.W_1", f"{other}.mlp.c_fc")
        yield from both(f"{mine}.feed_forward.W_2", f"{other}.mlp.c_proj")
    yield from both("decoder.norm", "ln_f")
    if not model.config.tie_embeddings:
        yield "head.weight", "lm_head.weight"


def write_config(model: CausalLM) -> dict[str, Any]:
    """The config.json of a model with GPT-2's switches.

    Raises:
        ValueError: switches that GPT-2's files cannot express; the message lists them.
    """
    config = model.config
    free = (*NAMES, "d_ff", "activation", "tie_embeddings")
    check_expressible(config, TransformerConfig.gpt2(), free, "GPT-2")
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        "n_inner": config.d_ff,
        "embd_pdrop": config.dropout,
        "activation_function": activation_name(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
    }
