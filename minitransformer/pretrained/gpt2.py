"""GPT-2's files. Nothing outside this module knows their names, which are those of `transformers`.

Two things are stored differently there. The four matrices of a block are transposed: (in, out) where
`nn.Linear` has (out, in). And $W^Q$, $W^K$ and $W^V$ are one matrix, `c_attn`.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..model.config import TransformerConfig
from ..model.heads import CausalLM
from ..model.transformer import Decoder
from . import hf_config as hf

MODELS = CausalLM
NAMES = hf.ENTRIES["families"]["gpt2"]["switches"]
FREE = ("d_ff", "activation")
BLOCK = {
    "norm_1": "ln_1",
    "attention.W_Q": "attn.c_attn.q",
    "attention.W_K": "attn.c_attn.k",
    "attention.W_V": "attn.c_attn.v",
    "attention.W_O": "attn.c_proj",
    "norm_2": "ln_2",
    "feed_forward.W_1": "mlp.c_fc",
    "feed_forward.W_2": "mlp.c_proj",
}
MARK, PREFIX = "wte.weight", "transformer."
TRANSPOSED = re.compile(r"\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
"""The four matrices that are stored (in, out)."""
BUFFER = re.compile(r"\.attn\.(bias|masked_bias)$")
"""The causal mask, which old files hold among the weights."""


def read_config(config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
    """Our switches from a config.json.

    A padding token that also starts or ends a text counts as none: only a mask can tell the two
    apart, and a model that hid the end of a text would compute something else.
    """
    config = {"embd_pdrop": 0.1, "resid_pdrop": 0.1} | config
    if (own := config["embd_pdrop"]) != (one := config["resid_pdrop"]):  # ours serves both
        raise ValueError(f"config.json: embd_pdrop {own!r} is not supported, only {one!r}")
    switches = hf.read_entries(config, NAMES)
    switches["d_ff"] = 4 * switches["d_model"]
    if config.get("n_inner") is not None:
        switches |= hf.read_entries(config, {"d_ff": "n_inner"})
    switches["activation"] = hf.activation(config, "activation_function", "gelu_new")
    ours = TransformerConfig.gpt2(**switches)
    ends = ours.eos_id if isinstance(ours.eos_id, tuple) else (ours.eos_id,)
    pad_id = None if ours.pad_id in (ours.start_id, *ends) else ours.pad_id
    tied = ours.tie_embeddings and "lm_head.weight" not in state
    return ours.with_(pad_id=pad_id, tie_embeddings=tied)


def normalise(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """One spelling and one layout for the weights of all GPT-2 files.

    The prefix `transformer.`, the masks and a second copy of the embeddings are removed, the four
    matrices of every block transposed, and `c_attn` is split into Q, K and V, in this order.
    """
    clean: dict[str, Tensor] = {}
    for key, tensor in state.items():
        key = key.removeprefix(PREFIX)
        if BUFFER.search(key):
            continue
        if TRANSPOSED.search(key):
            tensor = tensor.mT.contiguous()
        if ".attn.c_attn." in key and len(tensor) % 3 == 0:
            head, kind = key.rsplit(".", 1)
            for w, part in zip("qkv", tensor.chunk(3), strict=True):
                clean[f"{head}.{w}.{kind}"] = part
        else:
            clean[key] = tensor
    if config.get("tie_word_embeddings", True):
        hf.drop_alias(clean, "lm_head.weight", MARK)
    return clean


def restore(state: dict[str, Tensor], model: CausalLM) -> dict[str, Tensor]:
    """The inverse of `normalise`: names and layout as a file has them."""
    written = {}
    for key, tensor in state.items():
        if ".attn.c_attn.q." in key:
            parts = [state[key.replace(".q.", f".{w}.")] for w in "qkv"]
            key, tensor = key.replace(".q.", "."), torch.cat(parts)
        elif ".attn.c_attn." in key:
            continue
        if TRANSPOSED.search(key):
            tensor = tensor.mT.contiguous()
        written[key if key == "lm_head.weight" else f"{PREFIX}{key}"] = tensor
    return written


def build(config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig) -> CausalLM:
    """The model that the file holds."""
    return CausalLM(Decoder(ours))


def key_map(model: CausalLM) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs (as `normalise` spells it), for every weight."""
    yield "decoder.embeddings.tokens.weight", MARK
    yield "decoder.embeddings.position_table.weight", "wpe.weight"
    for i in range(len(model.decoder.blocks)):
        for mine, other in BLOCK.items():
            yield from hf.both(f"decoder.blocks.{i}.{mine}", f"h.{i}.{other}")
    yield from hf.both("decoder.norm", "ln_f")
    if not model.config.tie_embeddings:
        yield "head.weight", "lm_head.weight"


def write_config(model: CausalLM) -> dict[str, Any]:
    """The config.json of a model with GPT-2's switches."""
    config = model.config
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **hf.write_entries(config, NAMES, FREE, "GPT-2"),
        "n_inner": config.d_ff,
        "embd_pdrop": config.dropout,
        "activation_function": hf.activation_name(config.activation),
    }
