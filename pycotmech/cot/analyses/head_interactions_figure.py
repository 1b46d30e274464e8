"""Effects of heads that work against the answer, once other layers are corrupted."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import xarray as xr

from pycotmech.figures.bars import interval_reach
from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.library import Figure


def negative_figure(
    panels: Sequence[tuple[str, xr.Dataset, xr.Dataset]],
    *,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """A panel for each head: (title, its effect alone, its effect by corrupted layer [layer]), each mean, low, high."""
    n = max(len(panels), 1)
    columns = min(3, n)
    rows = -(-n // columns)
    figure = Figure(figsize=(max(5.5, 3.1 * columns), 2.3 * rows + 1.1), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (what, alone, given) in zip(axes.flat, panels, strict=False):
        known = np.flatnonzero(np.isfinite(given["mean"].values))
        mean, low, high = (given[name].values[known] for name in ("mean", "low", "high"))
        axis.axhline(0, color="0.4", lw=0.8, ls=":")
        axis.axhline(float(alone["mean"]), color=PALETTE[0], lw=1.2)
        ends = [float(alone["low"]), float(alone["high"])]
        if np.isfinite(ends).all():
            axis.axhspan(*ends, color=PALETTE[0], alpha=0.12, lw=0)
        axis.errorbar(known, mean, yerr=interval_reach(mean, low, high), fmt="o", ms=3, lw=0.8, color=PALETTE[1])
        small(axis, title=what, across="layer that is corrupted", up="effect of the head")
        axis.locator_params(axis="x", integer=True)
    return finished(figure, title, lines, path=path)
