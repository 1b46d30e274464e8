"""Accuracy of sets of heads that are kept, at each step and over all steps: for `keep_only` and `remove`."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.bars import interval_reach
from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.heatmap import write_numbers
from pycotmech.figures.library import Figure

_ROW, _LINE = 0.29, 0.13
"""Inches of a row with a label of one line, and of each further line."""


def isolation_figure(
    by_step: NDArray,
    overall: tuple[NDArray, NDArray, NDArray],
    chance: Sequence[NDArray] | None,
    *,
    labels: Sequence[str],
    steps: Sequence[str],
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """Left: accuracy of each set at each step. Right: over all steps with its interval, and that of random sets.

    by_step [set, step]; overall: mean, low, high [set]; chance: the same of random sets, if there are any.
    labels [set], steps [step]: how the axes name them.
    """
    m = len(labels)
    figure = Figure(
        figsize=(9.0, max(2.8, sum(_ROW + _LINE * label.count("\n") for label in labels) + 2.0)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    image = left.imshow(by_step, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    left.set_facecolor("0.85")
    left.set_xticks(range(len(steps)), steps, fontsize=8)
    left.set_yticks(range(m), labels, fontsize=8)
    left.set_xlabel("step (D decision, C copying, I induction)", fontsize=8)
    write_numbers(left, by_step, lambda value: f"{value:.2f}".removeprefix("0"))
    figure.colorbar(image, ax=left, pad=0.01, shrink=0.9).set_label("accuracy", fontsize=8)
    mean, low, high = overall
    y = np.arange(m)
    error = {"lw": 0.9, "ecolor": "0.2"}
    reach = interval_reach(mean, low, high)
    right.barh(y, np.nan_to_num(mean), xerr=reach, color=PALETTE[1], height=0.6, error_kw=error)
    if chance is not None:
        style = {"fmt": "d", "color": "0.35", "mfc": "white", "ms": 4.5, "lw": 0.9}
        right.errorbar(
            chance[0],
            y + 0.18,
            xerr=interval_reach(chance[0], chance[1], chance[2]),
            label="random sets, layers alike",
            **style,
        )
        right.legend(fontsize=7.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2)
    right.set_xlim(0, 1.05)
    small(right, across="accuracy over all steps")
    right.tick_params(labelsize=7.5)
    return finished(figure, title, lines, path=path)
