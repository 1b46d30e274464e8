"""The figure of traces: a matrix of sentences with a bar for each below it."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pycotmech.figures.frame import PALETTE, finished, small


def matrix_figure(
    matrix: NDArray,
    below_values: NDArray,
    *,
    title: str,
    label: str,
    below: str,
    lines: Sequence[str] = (),
    diverging: bool = False,
    path: str | PathLike | None = None,
) -> Figure:
    """A matrix [later, earlier], NaN where there is nothing, and under it a value for each earlier sentence [S].

    The colour scale ends at the 99th percentile, so that one entry does not hide the others. diverging: around 0.
    """
    S = len(matrix)
    size = min(max(3.6, 0.1 * S + 2.0), 8.0)
    figure = Figure(figsize=(size + 1.2, size + 1.9), layout="constrained")
    axis, bars = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    known = matrix[np.isfinite(matrix)]
    high = float(np.quantile(np.abs(known), 0.99)) if len(known) else 1.0
    low, colours = (-high, "RdBu_r") if diverging else (0.0, "Reds")
    image = axis.imshow(matrix, cmap=colours, vmin=low, vmax=high or 1.0, aspect="auto", interpolation="nearest")
    axis.set_facecolor("0.93")
    small(axis, up="later sentence")
    figure.colorbar(image, ax=axis, pad=0.02).set_label(label, fontsize=8)
    bars.bar(np.arange(S), np.nan_to_num(below_values), color=PALETTE[1], width=0.85)
    bars.axhline(0, color="0.6", linewidth=0.6)
    small(bars, across="earlier sentence", up=below)
    return finished(figure, title, lines, path=path)
