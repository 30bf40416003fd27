"""What a family's module must have, and what the families' files have in common."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

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
WHOLE = (
    "vocab_size", "d_model", "n_heads", "d_head", "n_layers", "n_decoder_layers", "d_ff", "max_len",
    "n_segments", "n_buckets", "max_distance",
)  # fmt: skip
NEEDED = ("vocab_size", "d_model", "n_heads", "n_layers")


@runtime_checkable
class Family(Protocol):
    """The module of a family: how its files spell a config and weights, in both directions."""

    MODELS: Any
    """The classes of models that its files hold."""
    MARK: str
    """A weight that every file of this family has, and no other family's."""
    SPECIAL_TOKENS: dict[str, str]
    """What transformers' AutoTokenizer needs to know besides tokenizer.json."""

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


def read_entries(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our switches from a config.json; `names` maps our names to theirs.

    Missing entries are left to the family's preset, except for the sizes that every model needs.
    ValueError for a size that is missing or not a whole number.
    """
    switches = {}
    for ours, theirs in names.items():
        if theirs in config:
            value = switches[ours] = config[theirs]
            if ours in WHOLE and not isinstance(value, int):
                raise ValueError(f"config.json: {theirs} must be a whole number, got {value!r}")
        elif ours in NEEDED:
            raise ValueError(f"config.json has no entry {theirs!r}")
    return switches


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
    if name not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"config.json: {entry} {name!r} is not known; known: {known}")
    return ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """The first of their names for our activation."""
    return next(theirs for theirs, mine in ACTIVATIONS.items() if mine == ours)


def require(config: Mapping[str, Any], **only: Any) -> None:
    """Raise ValueError if an entry is there with another value than the one that is supported."""
    for entry, value in only.items():
        if (found := config.get(entry, value)) != value:
            raise ValueError(f"config.json: {entry} {found!r} is not supported, only {value!r}")


def drop_alias(state: dict[str, Tensor], alias: str, original: str) -> None:
    """Drop a second copy of a tied tensor; one with other numbers is a weight of its own."""
    if alias in state and original in state and torch.equal(state[alias], state[original]):
        del state[alias]


def both(mine: str, other: str) -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for the weight and the bias of one module."""
    for kind in ("weight", "bias"):
        yield f"{mine}.{kind}", f"{other}.{kind}"
