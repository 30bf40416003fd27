"""Configs side by side: which switches differ between models?"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape

from torch import nn

from .config import TransformerConfig


@dataclass(frozen=True)
class SwitchTable:
    """One row per switch, one column per model; prints as text, renders as a table in a notebook."""

    names: tuple[str, ...]
    rows: dict[str, tuple[object, ...]]
    different: tuple[str, ...]
    """The switches in which the models differ."""

    def __repr__(self) -> str:
        if not self.rows:
            return "no switch differs"
        table = [("", "switch", *self.names)]
        for switch, values in self.rows.items():
            table.append(("*" if switch in self.different else "", switch, *map(shown, values)))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        table.insert(1, tuple("-" * w for w in widths))
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)

    def _repr_html_(self) -> str:
        if not self.rows:
            return "<p>no switch differs</p>"
        html = "".join(f"<th>{escape(name)}</th>" for name in ("switch", *self.names))
        for switch, values in self.rows.items():
            name = f"<b>{switch}</b>" if switch in self.different else switch
            cells = "".join(f"<td>{escape(shown(value))}</td>" for value in values)
            html += f"</tr><tr><td style='text-align:left'>{name}</td>{cells}"
        return f"<table><tr>{html}</tr></table>"


def compare_switches(
    *models: TransformerConfig | nn.Module, names: Sequence[str] = (), only_different: bool = True
) -> SwitchTable:
    """The switches of models side by side.

    Args:
        models: configs, or models that have one.
        names: the columns' headings, by default the models' classes.
        only_different: leave out what all have in common; otherwise differences are marked.

    Raises:
        TypeError: an object without a config of this package.
        ValueError: no model, or another number of names than of models.

    >>> bert, gpt2 = TransformerConfig.bert(), TransformerConfig.gpt2()
    >>> compare_switches(bert, bert.with_(norm_eps=1e-5), names=("one", "other"))
       switch    one    other
    -  --------  -----  -----
    *  norm_eps  1e-12  1e-05
    >>> "norm_position" in compare_switches(bert, gpt2).different
    True
    """
    if not models:
        raise ValueError("give the models or configs to compare: compare_switches(one, other)")
    if names and len(names) != len(models):
        raise ValueError(f"there are {len(models)} models and {len(names)} names")
    configs = [config_of(m) for m in models]
    rows = {f.name: tuple(getattr(c, f.name) for c in configs) for f in fields(TransformerConfig)}
    different = tuple(s for s, values in rows.items() if any(v != values[0] for v in values))
    if only_different:
        rows = {s: rows[s] for s in different}
    return SwitchTable(tuple(names) or tuple(type(m).__name__ for m in models), rows, different)


def config_of(model: TransformerConfig | nn.Module) -> TransformerConfig:
    """The config of a model, or of the encoder in it."""
    if isinstance(model, TransformerConfig):
        return model
    config = getattr(getattr(model, "encoder", model), "config", None)
    if not isinstance(config, TransformerConfig):
        raise TypeError(
            f"a {type(model).__name__} has no TransformerConfig; give a model of this package or its config"
        )
    return config


def shown(value: object) -> str:
    """A value as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
