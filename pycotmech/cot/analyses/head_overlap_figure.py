"""How much every two sets of heads overlap, and how much more than by chance."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from numpy.typing import NDArray

from pycotmech.figures.frame import finished
from pycotmech.figures.heatmap import write_numbers
from pycotmech.figures.library import Figure


def overlap_figure(
    f1: NDArray,
    chance: NDArray,
    *,
    names: Sequence[str],
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """F1 [set, set] of every two sets on the left, and its distance from F1 by chance [set, set] on the right."""
    n = len(names)
    lines_of_name = max(name.count("\n") + 1 for name in names)
    side = min(max(2.6, (0.18 + 0.12 * lines_of_name) * n + 1.2), 8.0)
    figure = Figure(figsize=(2 * side + 1.6, side + 1.2), layout="constrained")
    labels, ranges = ("F1", "F1 above chance in the same layers"), ((0, 1), (-1, 1))
    for axis, grid, label, (low, high), colours in zip(
        figure.subplots(1, 2), (f1, f1 - chance), labels, ranges, ("Blues", "RdBu")
    ):
        image = axis.imshow(grid, vmin=low, vmax=high, cmap=colours)
        axis.set_facecolor("0.85")
        axis.set_xticks(range(n), names, rotation=90, fontsize=7 if n > 12 else 8)
        axis.set_yticks(range(n), names, fontsize=7 if n > 12 else 8)
        if n <= 12:
            write_numbers(axis, grid, lambda value: f"{value:.2f}".replace("0.", ".", 1).replace("-", "−"))
        figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02).set_label(label, fontsize=8)
    return finished(figure, title, lines, path=path)
