"""Accuracy of each step's heads at each step, and over like and other steps beside random sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.bars import interval_reach
from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.heatmap import write_numbers
from pycotmech.figures.library import Figure


def transfer_figure(
    accuracy: NDArray,
    drawn: NDArray | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    chosen: Sequence[str],
    steps: Sequence[str],
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """Left: the map of accuracies with a last row of random sets. Right: `SetTransfer.transfer_table`.

    accuracy [chosen, step]; drawn [step]: mean accuracy of random sets, if there are any. rows: of the table. chosen, steps:
    how the axes name them.
    """
    n = len(chosen)
    figure = Figure(figsize=(9.4, max(3.2, 0.36 * (n + 1) + 2.2)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    grid, names = accuracy, list(chosen)
    if drawn is not None:
        grid, names = np.concatenate((accuracy, drawn[None])), [*names, "random sets"]
        left.axhline(n - 0.5, color="black", lw=1.0)
    image = left.imshow(grid, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    left.set_facecolor("0.85")
    left.set_xticks(range(len(steps)), steps, fontsize=8)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_xlabel("step that is evaluated", fontsize=8)
    left.set_ylabel("step whose heads are kept", fontsize=8)
    write_numbers(left, grid, lambda value: f"{value:.2f}".removeprefix("0"))
    figure.colorbar(image, ax=left, pad=0.01, shrink=0.9).set_label("accuracy", fontsize=8)
    y = np.arange(len(rows))
    mean, low, high, *random = (
        np.array([row[k] for row in rows], float) for k in ("accuracy", "low", "high", "random", "random_low", "random_high")
    )
    right.barh(
        y,
        np.nan_to_num(mean),
        xerr=interval_reach(mean, low, high),
        color=PALETTE[1],
        height=0.5,
        error_kw={"lw": 0.9, "ecolor": "0.2"},
        label="heads of a step",
    )
    if np.isfinite(random[0]).any():
        style = {"fmt": "d", "color": "0.35", "mfc": "white", "ms": 5, "lw": 0.9}
        right.errorbar(random[0], y + 0.34, xerr=interval_reach(*random), label="random sets, layers alike", **style)
    right.set_yticks(y, [row["pairs"] for row in rows], fontsize=8)
    right.set_ylim(len(rows) - 0.4, -1.6)
    right.legend(fontsize=7.5, frameon=False, loc="upper left")
    right.set_xlim(0, 1.05)
    small(right, across="accuracy over examples")
    right.tick_params(labelsize=7.5)
    return finished(figure, title, lines, path=path)
