"""Small parts that several figures share: frames, bars with intervals, shares stacked on one another."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pycotmech.figures.heatmap import _draw, _frame, _limit, _saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#c44e52", "#4c72b0", "#55a868", "#bbbbbb", "#dddddd", "#8172b3", "#ccb974", "#64b5cd")
"""Few-shot red, question blue, generated green, as in the paper's maps; greys for what is none of them."""


def framed(
    rows: int, columns: int, title: str, lines: Sequence[str], *, width: float = 4.0, height: float = 3.0, **kwargs: Any
) -> tuple[Figure, NDArray]:
    """A figure of rows x columns axes [rows, columns], each of this size in inches, with its title and small print."""
    size = (max(5.5, columns * width + 0.6), rows * height + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    _frame(figure, title, list(lines))
    return figure, axes


def saved(figure: Figure, path: str | PathLike | None) -> Figure:
    """The figure, written to `path` if there is one."""
    return _saved(figure, path)


def small(axis: Axes, *, title: str = "", across: str = "", up: str = "") -> None:
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.tick_params(labelsize=7, length=2)
    axis.spines[["top", "right"]].set_visible(False)


def stacked_bars(axis: Axes, shares: NDArray, ticks: Sequence[str], names: Sequence[str], **words: str) -> None:
    """shares [bars, parts] as bars; bars that are NaN stay empty."""
    _stack(axis, shares, names, 0.8)
    axis.set_xticks(range(len(shares)), ticks)
    small(axis, **words)


def stacked_layers(axis: Axes, shares: NDArray, names: Sequence[str], **words: str) -> None:
    """shares [layers, parts] as bars that touch."""
    _stack(axis, shares, names, 1.0)
    axis.set_xticks(range(0, len(shares), max(1, len(shares) // 8)))
    small(axis, **words)


def _stack(axis: Axes, shares: NDArray, names: Sequence[str], width: float) -> None:
    bottom = np.zeros(len(shares))
    for j, name in enumerate(names):
        height = np.nan_to_num(shares[:, j])
        axis.bar(range(len(shares)), height, bottom=bottom, color=PALETTE[j], label=name.replace("_", "-"), width=width)
        bottom += height
    axis.set_xlim(-0.6, len(shares) - 0.4)


def bars_with_intervals(
    axis: Axes,
    values: NDArray,
    low: NDArray,
    high: NDArray,
    ticks: Sequence[str],
    *,
    names: Sequence[str] = (),
    colours: Sequence[str] = PALETTE[1:],
    **words: str,
) -> None:
    """values, low, high [bars] or [groups, bars]: bars of each group beside each other, with their intervals."""
    values, low, high = (np.atleast_2d(np.asarray(a, dtype=float)) for a in (values, low, high))
    groups, n = values.shape
    width = 0.8 / groups
    for g in range(groups):
        x = np.arange(n) + (g - (groups - 1) / 2) * width
        label = names[g] if names else None
        axis.bar(x, np.nan_to_num(values[g]), width, color=colours[g % len(colours)], label=label)
        reach = np.nan_to_num(np.stack((values[g] - low[g], high[g] - values[g]))).clip(min=0)
        axis.errorbar(x, np.nan_to_num(values[g]), reach, fmt="none", ecolor="0.25", elinewidth=0.8, capsize=1.5)
    axis.set_xticks(range(n), ticks)
    small(axis, **words)


def layer_line(axis: Axes, found: Any, **words: str) -> None:
    """An interval [layers] (mean, low, high) as a line with a band, the middle of the layers marked."""
    x = np.arange(len(found.mean))
    axis.fill_between(x, found.low, found.high, color=PALETTE[1], alpha=0.25, linewidth=0)
    axis.plot(x, found.mean, color=PALETTE[1], linewidth=1.4)
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.axvline((len(x) - 1) / 2, color="0.6", linewidth=0.7, linestyle=":")
    axis.set_xticks(range(0, len(x), max(1, len(x) // 8)))
    small(axis, **{"across": "layer", **words})


def map_of_heads(figure: Figure, axis: Axes, grid: NDArray, *, title: str = "", label: str = "") -> None:
    """grid [layer, head] as a heat map with its own colour bar."""
    image = _draw(axis, grid, _limit([grid]))
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_title(title, fontsize=9)
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if not np.nanmin(grid, initial=0.0) < 0:
        bar.ax.set_ylim(0, None)
