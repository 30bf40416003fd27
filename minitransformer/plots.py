"""Figures that notebooks share. Each draws into `ax`, or into a new figure."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

WEIGHTS, NUMBERS = "Blues", "RdBu_r"


def figure(columns: int = 1, size: tuple[float, float] = (6, 4), **options: Any) -> Any:
    """Axes of a new figure that fits a notebook's page."""
    return plt.subplots(1, columns, figsize=size, dpi=100, layout="constrained", **options)[1]


def attention(
    weights: Float[Tensor, "queries keys"],
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    title: str = "",
    top: float = 1.0,
    ax: Axes | None = None,
) -> None:
    """Attention weights: one row per query, one column per key, dark where the weight is large.

    Args:
        top: the weight that is drawn darkest; less than 1 for means, which are never large.

    Raises: ValueError for too few or too many labels.
    """
    keys = queries if keys is None else keys
    if weights.shape != (len(queries), len(keys)):
        got, shape = f"{len(queries)} queries and {len(keys)} keys", tuple(weights.shape)
        raise ValueError(f"weights of shape {shape} want as many labels, got {got}")
    ax = figure() if ax is None else ax
    ax.imshow(weights.detach().numpy(), cmap=WEIGHTS, vmin=0, vmax=top)
    ax.set_xticks(range(len(keys)), keys, rotation=60, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(queries)), queries)
    ax.tick_params(length=0, labelsize=8)
    ax.set(xlabel="key: looked at", ylabel="query: looking")
    ax.set_title(title, fontsize=10)


def heads(
    weights: Float[Tensor, "heads queries keys"], tokens: Sequence[str], titles: Sequence[str]
) -> None:
    """A few heads side by side; only the first has row labels."""
    width = 2.6 * len(weights)
    axes = figure(len(weights), (width, 3.4), sharey=True, squeeze=False)[0]
    for ax, w, title in zip(axes, weights, titles, strict=True):
        attention(w, tokens, title=title, ax=ax)
        ax.tick_params(labelsize=7)
        ax.set(xlabel="", ylabel=ax.get_ylabel() if ax is axes[0] else "")


def matrices(*items: str | tuple[str, Float[Tensor, "rows columns"], str, str]) -> None:
    """An equation of matrices, drawn to scale, with a colour for each number.

    Args:
        items: signs such as "×" and "=", and tuples (name, matrix, meaning of rows, of columns).
    """
    shapes = [item[1].shape if isinstance(item, tuple) else (1, 1.6) for item in items]
    rows = max(shape[0] for shape in shapes)
    # Labels take 2.2 cells beside each matrix.
    ax = figure(size=(6, 6 * (rows + 3) / sum(s[1] + 2.2 for s in shapes)))
    left = 0.0
    for item, shape in zip(items, shapes, strict=True):
        if isinstance(item, str):
            ax.text(left + shape[1] / 2, 0, item, ha="center", va="center", fontsize=16)
            left += shape[1] + 0.4
            continue
        name, matrix, row, column = item
        (n, m), left = matrix.shape, left + 1.2
        top = float(matrix.abs().max())
        box = (left, left + m, n / 2, -n / 2)
        ax.imshow(matrix.detach().numpy(), cmap=NUMBERS, vmin=-top, vmax=top, extent=box)
        ax.add_patch(Rectangle((left, -n / 2), m, n, fill=False, linewidth=0.8))
        ax.text(left + m / 2, -n / 2 - 0.5, name, ha="center", va="bottom", fontsize=12)
        ax.text(left + m / 2, n / 2 + 0.4, f"{column} {m}", ha="center", va="top", fontsize=8)
        ax.text(left - 0.3, 0, f"{row} {n}", ha="right", va="center", rotation=90, fontsize=8)
        left += m + 0.6
    ax.set(xlim=(0, left), ylim=(rows / 2 + 1.6, -rows / 2 - 1.8), aspect="equal")
    ax.axis("off")


def cells(
    entries: Float[Tensor, "rows columns"], title: str, ax: Axes, row: str = "", column: str = ""
) -> None:
    """A matrix of labels: entry `100 t + j` is number j (text) of token t (colour); NaN is blank."""
    ax.imshow((entries // 100).numpy(), cmap="Set2", vmin=0, vmax=7)
    for (i, j), entry in np.ndenumerate(entries.numpy()):
        if not np.isnan(entry):
            token, number = divmod(int(entry), 100)
            text = f"{'abcdefgh'[token]}{number}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8)
    # White lines between the cells.
    ax.set_xticks(np.arange(-0.5, entries.shape[1]), [])
    ax.set_yticks(np.arange(-0.5, entries.shape[0]), [])
    ax.grid(color="white", linewidth=2)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=column, ylabel=row)
    ax.set_title(title, fontsize=10)
