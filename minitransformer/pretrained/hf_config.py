"""What a family's module must have, and what the families' files have in common."""

import json
import math
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
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
ENTRIES: dict[str, Any] = json.loads(Path(__file__).with_name("entries.json").read_text())
"""For each file: the entries that are followed, the harmless ones, and those with supported values."""


@runtime_checkable
class Family(Protocol):
    """The module of a family: how its files spell a config and weights, in both directions."""

    MODELS: Any
    """The classes of models that its files hold."""
    MARK: str
    """A weight that every file of this family has, and no other family's."""
    PREFIX: str
    """The prefix of the encoder's or decoder's weights in files of a model with a head."""

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


def check_entries(config: Mapping[str, Any]) -> None:
    """Reject entries of config.json that the model cannot follow."""
    family = ENTRIES["families"][config["model_type"]]
    check_table("config.json", config, family)
    for alias, entry in family["other spellings"].items():
        if alias in config and config[alias] != config.get(entry):
            raise ValueError(f"config.json: {alias} must be what {entry} is, got {config[alias]!r}")
    architecture(config)
    read_entries(config, family["switches"])  # before another file's ids take the place of some


def check_table(file: str, found: Mapping[str, Any], family: Mapping[str, Any] = {}) -> None:
    """Reject unsupported values; warn about unknown entries."""
    table = ENTRIES[file]
    supported = table["supported"] | family.get("supported", {})
    for entry, allowed in supported.items():
        if entry in found and not same(found[entry], allowed):
            shown = " or ".join(map(repr, allowed))
            raise ValueError(f"{file}: {entry} {found[entry]!r} is not supported, only {shown}")
    more = (family.get(part, {}) for part in ("followed", "other spellings"))
    known = {*table["followed"], *table["harmless"], *supported, *chain(*more)}
    known |= {*family.get("switches", {}).values()}
    if unknown := [e for e in found if e not in known and not e.startswith("_")]:
        text = f"{file} has unknown entries, which are ignored: {', '.join(unknown)}"
        warnings.warn(text, stacklevel=5)


def same(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether a value is among these and has the same type: 0 is not false."""
    return any(type(value) is type(a) and value == a for a in allowed)


def architecture(config: Mapping[str, Any]) -> str | None:
    """The transformers class of the saved model; ValueError for one that cannot be loaded."""
    said, known = (
        config.get("architectures"),
        ENTRIES["families"][config["model_type"]]["architectures"],
    )
    if not said:
        return None
    if not isinstance(said, list) or len(said) > 1 or said[0] not in known:
        raise ValueError(
            f"config.json: architectures {said!r} is not supported, only one of {', '.join(known)}; to "
            "use such a model without its head, write it again with transformers: "
            "AutoModel.from_pretrained(folder).save_pretrained(new)"
        )
    return said[0]


def parse(files: Mapping[str, bytes], name: str, entry: str | None = None) -> dict[str, Any]:
    """The object in a JSON file, or in one entry of it; an empty one if there is none."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ValueError(f"{name} is not JSON ({error})") from error
    found = as_object(found, name)
    return found if entry is None else as_object(found.get(entry) or {}, f"{name}: {entry}")


def as_object(found: Any, where: str) -> dict[str, Any]:
    """The JSON object that a file or an entry must be; ValueError for anything else."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not an object like {{...}}")
    return found


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
    """The value, if it has one of these types; a list of ids becomes a tuple."""
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
    config: dict[str, Any], said: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config with the ids of generation_config.json, and the requests that `generate` ignores.

    If that file exists, it alone decides which tokens end a text.
    """
    table = ENTRIES["generation_config.json"]
    ids, idle, usual = (table[kind] for kind in ("followed", "harmless", "supported"))
    asked = {
        entry: value
        for entry, value in said.items()
        if not entry.startswith("_") and entry not in (*ids, *idle)
        if not same(value, usual.get(entry, (None, [], False)))
    }
    return config | {"eos_token_id": None} | {k: said[k] for k in ids if k in said}, asked


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
