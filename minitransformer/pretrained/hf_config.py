"""What the families' files have in common: entries that only change their name, and refusals."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..model.config import TransformerConfig

# "gelu" means the exact one there; both other names mean the tanh approximation.
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


def read_entries(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Our switches from a config.json, where `names` says what each is called there.

    Entries that are missing are left to the family's preset, but for the sizes that every model has.

    Raises:
        ValueError: a size that is missing or no whole number.
    """
    switches = {}
    for ours, theirs in names.items():
        if theirs in config:
            switches[ours] = config[theirs]
            if ours in WHOLE and not isinstance(config[theirs], int):
                raise ValueError(
                    f"config.json: {theirs} must be a whole number, got {config[theirs]!r}"
                )
        elif ours in NEEDED:
            raise ValueError(f"config.json has no entry {theirs!r}")
    return switches


def activation(config: Mapping[str, Any], entry: str, usual: str) -> str:
    """Our name of an activation.

    Raises:
        ValueError: an unknown one.
    """
    name = config.get(entry, usual)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"config.json: {entry} {name!r} is not known; known: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def activation_name(ours: str) -> str:
    """The first of their names for our activation."""
    return next(theirs for theirs, mine in ACTIVATIONS.items() if mine == ours)


def refuse(config: Mapping[str, Any], **only: Any) -> None:
    """Refuse entries whose meaning this package does not have, other than with the value `only`.

    Raises:
        ValueError: the message names the entry.
    """
    for entry, value in only.items():
        if config.get(entry, value) != value:
            raise ValueError(
                f"config.json: {entry} {config[entry]!r} is not supported, only {value!r}"
            )


def check_expressible(
    config: TransformerConfig, usual: TransformerConfig, free: Collection[str], family: str
) -> None:
    """Refuse to write what the family's files have no entry for.

    Args:
        usual: the family's preset; free: the switches that its files can say.

    Raises:
        ValueError: the message lists the switches.
    """
    wanted = vars(usual) | {"d_head": config.d_model // config.n_heads}
    odd = [
        f"{name}={value!r}"
        for name, value in vars(config).items()
        if name not in (*free, "ops") and value != wanted[name]
    ]
    if odd:
        start = family.lower().replace("-", "")
        raise ValueError(f"{family}'s files cannot express {', '.join(odd)}; start from {start}()")


def drop_alias(state: dict[str, Tensor], alias: str, original: str) -> None:
    """Leave out a second copy of a tied tensor; one with other numbers is a weight of its own."""
    if alias in state and original in state and torch.equal(state[alias], state[original]):
        del state[alias]


def both(mine: str, other: str, kinds: str = "weight bias") -> Iterator[tuple[str, str]]:
    """Pairs of our name and theirs, for the weight and the bias of one module."""
    for kind in kinds.split():
        yield f"{mine}.{kind}", f"{other}.{kind}"
