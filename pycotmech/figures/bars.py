"""Bars: stacked shares, and groups of bars with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import PALETTE, small

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    found: Mapping[Any, Any],
    ticks: Sequence[str],
    *,
    names: Sequence[str] = (),
    colours: Sequence[str] = PALETTE[1:],
    **words: str,
) -> None:
    """The bars of all series side by side, with their intervals. found: mean, low and high [bars] or [series, bars]."""
    values, low, high = (np.atleast_2d(np.asarray(found[k], dtype=float)) for k in ("mean", "low", "high"))
    n_series, n = values.shape
    width = 0.8 / n_series
    for i in range(n_series):
        x = np.arange(n) + (i - (n_series - 1) / 2) * width
        label = names[i] if names else None
        height = np.nan_to_num(values[i])
        axis.bar(x, height, width, color=colours[i % len(colours)], label=label)
        reach = interval_reach(values[i], low[i], high[i])
        axis.errorbar(x, height, reach, fmt="none", ecolor="0.25", elinewidth=0.8, capsize=1.5)
    axis.set_xticks(range(n), ticks)
    small(axis, **words)


def interval_reach(mean: NDArray, low: NDArray, high: NDArray) -> NDArray:
    """How far an interval reaches below and above each mean [n], as error bars take it: [2, n], 0 where there is none."""
    return np.nan_to_num(np.stack((mean - low, high - mean))).clip(min=0)
