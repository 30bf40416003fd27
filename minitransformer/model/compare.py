"""Configs side by side: in which switches do two models differ?"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from html import escape

from torch import nn

from .config import TransformerConfig

MARK = "*"


@dataclass(frozen=True)
class SwitchTable:
    """A row a switch, a column a model; prints as text, a notebook shows it as a table."""

    names: tuple[str, ...]
    rows: dict[str, tuple[object, ...]]
    different: tuple[str, ...]
    """The switches in which the models are not all equal."""

    def __repr__(self) -> str:
        head = ("", "switch", *self.names)
        body = [
            (MARK if switch in self.different else "", switch, *map(shown, values))
            for switch, values in self.rows.items()
        ]
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        rule = tuple("-" * w for w in widths)
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
            for row in (head, rule, *body)
        ]
        return "\n".join(lines if self.rows else ["no switch differs"])

    def _repr_html_(self) -> str:
        if not self.rows:
            return "<p>no switch differs</p>"
        lines = ["<table><tr><th>switch</th>"]
        lines += [f"<th>{escape(name)}</th>" for name in self.names] + ["</tr>"]
        for switch, values in self.rows.items():
            name = f"<b>{switch}</b>" if switch in self.different else switch
            cells = "".join(f"<td>{escape(shown(value))}</td>" for value in values)
            lines.append(f"<tr><td style='text-align:left'>{name}</td>{cells}</tr>")
        return "".join([*lines, "</table>"])


def compare_switches(
    *models: TransformerConfig | nn.Module,
    names: Sequence[str] = (),
    only_different: bool = True,
) -> SwitchTable:
    """The switches of models side by side.

    Args:
        models: configs, or models that have one.
        names: the columns' headings; otherwise the models' classes.
        only_different: leave out what all have in common; else what differs is marked.

    Raises:
        TypeError: something that has no config of this package.
        ValueError: no model, or not as many names as models.

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
            f"a {type(model).__name__} has no TransformerConfig; give a model of this package or its "
            "config"
        )
    return config


def shown(value: object) -> str:
    """A value as a table has it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
