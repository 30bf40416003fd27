"""What a family's module must have, and what the families' files have in common."""

import json
import math
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from ..model.config import TransformerConfig

# There, "gelu" is the exact function; the next two are the tanh approximation.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
NEEDED = ("vocab_size", "d_model", "n_heads", "n_layers")
TYPES = {f.name: get_args(f.type) or (f.type,) for f in fields(TransformerConfig)}
KINDS = {bool: "true or false", float: "a number", int: "a whole number"}

# Every entry of a file is followed, known to be harmless, or rejected by name.


def words(text: str) -> frozenset[str]:
    """The names in a table."""
    return frozenset(text.split())


FOLLOWED = words(
    "model_type architectures id2label problem_type tokenizer_class classifier_dropout"
)
HARMLESS = words("""
    transformers_version dtype torch_dtype use_cache output_attentions output_hidden_states output_past
    return_dict torchscript use_bfloat16 gradient_checkpointing chunk_size_feed_forward label2id
    num_labels name_or_path finetuning_task task_specific_params directionality pooler_fc_size
    pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type n_ctx
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    reorder_and_upcast_attn initializer_factor initializer_range dense_act_fn is_gated_act
    bos_token_id eos_token_id sep_token_id
""")
"""Entries of config.json that change no output of a model that is loaded."""
ONLY: dict[str, tuple[Any, ...] | None] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "prefix": (None, ""),
}
"""Entries of config.json with the only values that are supported."""
IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
IDLE = words("""
    max_length max_new_tokens max_time use_cache transformers_version output_attentions
    output_hidden_states output_scores output_logits return_dict_in_generate cache_implementation
    low_memory is_assistant assistant_early_exit compile_config disable_compile prefill_chunk_size
""")
"""Entries of generation_config.json that change no token, or that the caller always gives."""
NEUTRAL = {"top_k": 50} | dict.fromkeys(
    words(
        "num_beams num_beam_groups temperature top_p typical_p repetition_penalty length_penalty "
        "encoder_repetition_penalty num_return_sequences"
    ),
    1,
)
"""The values of its other entries that change nothing, besides null, false, 0 and empty lists."""


@runtime_checkable
class Family(Protocol):
    """The module of a family: how its files spell a config and weights, in both directions."""

    MODELS: Any
    """The classes of models that its files hold."""
    MARK: str
    """A weight that every file of this family has, and no other family's."""
    PREFIX: str
    """What stands before the names of the weights where there is a head."""
    ARCHITECTURES: tuple[str, ...]
    """The classes of transformers whose files can be loaded."""
    NAMES: dict[str, str]
    """Our switches and their entries in config.json."""
    ALIASES: dict[str, str]
    """Other spellings of entries."""
    READS: dict[str, tuple[Any, ...] | None]
    """Further entries that are followed, or those with the only values that are supported."""

    def read_config(self, config: dict[str, Any], state: dict[str, Tensor]) -> TransformerConfig:
        """Our switches from a config.json and its weights; ValueError for what is not supported."""

    def normalise(self, state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
        """One spelling and one layout for the weights of all files of the family."""

    def build(
        self, config: dict[str, Any], state: dict[str, Tensor], ours: TransformerConfig
    ) -> Any:
        """The model that the file holds, its weights still random."""

    def key_map(self, model: Any) -> Iterator[tuple[str, str]]:
        """Pairs of our name and theirs (as `normalise` spells it), for every weight."""

    def restore(self, state: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
        """The inverse of `normalise`: names and layout as a file has them."""

    def write_config(self, model: Any) -> dict[str, Any]:
        """The config.json of a model; ValueError for switches that the files cannot express."""


def check_entries(config: Mapping[str, Any], family: Family) -> None:
    """Reject what config.json says and the model could not do; warn of entries that nobody knows."""
    only = ONLY | family.READS
    known = {*FOLLOWED, *HARMLESS, *only, *family.NAMES.values()}
    for entry, allowed in only.items():
        if allowed is not None and entry in config:
            require("config.json", entry, config[entry], allowed)
    warn_of_unknown("config.json", config, known)
    architecture(config, family.ARCHITECTURES)
    read_entries(config, family.NAMES)  # before another file's ids take the place of some


def spelled(config: dict[str, Any], aliases: Mapping[str, str]) -> dict[str, Any]:
    """The config with one spelling of every entry; ValueError if two contradict each other."""
    for alias, entry in aliases.items():
        if alias in config and config.setdefault(entry, config[alias]) != config.pop(alias):
            raise ValueError(f"config.json: {alias} and {entry} are one size, and differ")
    return config


def architecture(config: Mapping[str, Any], known: Collection[str]) -> str | None:
    """The class whose weights the folder holds; ValueError for one that cannot be loaded."""
    said = config.get("architectures")
    if not said:
        return None
    if not isinstance(said, list) or len(said) > 1 or said[0] not in known:
        raise ValueError(
            f"config.json: architectures {said!r} is not supported, only one of {', '.join(known)}; to "
            "use such a model without its head, write it again with transformers: "
            "AutoModel.from_pretrained(folder).save_pretrained(new)"
        )
    return said[0]


def warn_of_unknown(file: str, entries: Mapping[str, Any], known: Collection[str]) -> None:
    """Name the entries that are neither followed nor known to be harmless."""
    unknown = [
        e for e in entries if e not in known and not e.startswith("_") and e != "minitransformer"
    ]
    if unknown:
        text = f"{file} has entries that are not known and are ignored: {', '.join(unknown)}"
        warnings.warn(text, stacklevel=4)


def parse(files: Mapping[str, bytes], name: str, where: str = "") -> dict[str, Any]:
    """The object that a JSON file holds; an empty one if there is no such file."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{where}{name} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}{name} is not an object like {{...}}")
    return found


def section(config: Mapping[str, Any], entry: str) -> dict[str, Any]:
    """An entry that is an object like {...}; an empty one if there is none."""
    if not isinstance(found := config.get(entry) or {}, dict):
        raise ValueError(f"config.json: {entry} must be an object like {{...}}, got {found!r}")
    return found


def require(file: str, entry: str, value: Any, allowed: Collection[Any]) -> None:
    """ValueError unless an entry has one of the values that are supported."""
    if not any(type(value) is type(a) and value == a for a in allowed):
        shown = " or ".join(repr(a) for a in allowed)
        raise ValueError(f"{file}: {entry} {value!r} is not supported, only {shown}")


def read_entries(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our switches from a config.json; `names` maps our names to theirs.

    Missing entries are left to the family's preset, except for the sizes that every model needs.
    ValueError for a size that is missing, or a value of another type than the switch has.
    """
    switches = {}
    for ours, theirs in names.items():
        if theirs in config:
            switches[ours] = typed(config[theirs], TYPES[ours], f"config.json: {theirs}")
        elif ours in NEEDED:
            raise ValueError(f"config.json has no entry {theirs!r}")
    return switches


def typed(value: Any, types: Collection[Any], where: str) -> Any:
    """The value, if its type is one of these; a list of ids becomes a tuple."""
    if isinstance(value, list) and len(types) > 2 and value:
        return tuple(typed(v, (int,), where) for v in value)
    if type(value) is int and float in types:
        value = float(value)
    number = isinstance(value, int | float)
    if type(value) not in types:
        kind = next(name for t, name in KINDS.items() if t in types)
        null = " or null" if type(None) in types else ""
        raise ValueError(f"{where} must be {kind}{null}, got {value!r}")
    if number and not 0 <= value < math.inf:
        raise ValueError(f"{where} must not be negative or infinite, got {value!r}")
    return value


def generation_entries(
    config: dict[str, Any], file: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config with the ids of generation_config.json, and what else that asks of `generate`.

    Where there is such a file it alone says where a text ends.
    """
    config = config | {"eos_token_id": None} | {k: file[k] for k in IDS if k in file}
    asked = {k: v for k, v in file.items() if k not in (*IDLE, *IDS) and not k.startswith("_")}
    return config, {k: v for k, v in asked.items() if v and v != NEUTRAL.get(k)}


def write_entries(
    config: TransformerConfig, names: Mapping[str, str], free: Collection[str], family: str
) -> dict[str, Any]:
    """The inverse of `read_entries`; ValueError lists the switches that the files cannot express.

    Those are switches that differ from the family's preset and are neither among `names` nor among
    `free`, for which the family has entries of its own.
    """
    preset = family.lower().replace("-", "")
    usual: TransformerConfig = getattr(TransformerConfig, preset)()
    wanted = vars(usual) | {"d_head": config.d_model // config.n_heads}
    odd = [
        f"{name}={value!r}"
        for name, value in vars(config).items()
        if name not in (*names, *free, "ops") and value != wanted[name]
    ]
    if odd:
        raise ValueError(f"{family}'s files cannot express {', '.join(odd)}; start from {preset}()")
    return {theirs: getattr(config, ours) for ours, theirs in names.items()}


def activation(config: Mapping[str, Any], entry: str, usual: str) -> str:
    """Our name of an activation; ValueError for an unknown one."""
    name = config.get(entry, usual)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json: {entry} {name!r} is not known; known: {known}")
    return ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """The first of their names for our activation."""
    return next(theirs for theirs, mine in ACTIVATIONS.items() if mine == ours)


def drop_alias(state: dict[str, Tensor], alias: str, original: str) -> None:
    """Drop a second copy of a tied tensor; one with other numbers is a weight of its own."""
    if alias in state and original in state and torch.equal(state[alias], state[original]):
        del state[alias]


def both(mine: str, other: str) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for the weight and the bias of one module."""
    for kind in ("weight", "bias"):
        yield f"{mine}.{kind}", f"{other}.{kind}"
