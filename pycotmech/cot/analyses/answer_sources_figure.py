"""Maps of heads, coloured by the part of the prompt that they have the answer from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import PALETTE, framed, saved
from pycotmech.figures.library import Figure, ListedColormap, Patch

_COLUMNS = 5


def source_maps(
    maps: NDArray,
    parts: Sequence[str],
    *,
    titles: Sequence[str],
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """A map of heads for each step, layers upward, coloured by the part of the prompt that a head has the answer from.

    maps [step, layer, head]: names of the parts; entries that are none of `parts` are white. titles [step].
    """
    n, L, H = maps.shape
    rows = math.ceil(n / _COLUMNS)
    columns = math.ceil(n / rows)
    size = {"width": min(max(1.6, 0.17 * H), 4.0), "height": min(max(1.5, 0.11 * L), 5.0) + 0.4}
    figure, axes = framed(rows, columns, title, lines, sharex=True, sharey=True, **size)
    colours = ListedColormap(["white", *PALETTE[: len(parts)]])
    for at, axis in enumerate(axes.ravel()):
        if at >= n:
            axis.set_visible(False)
            continue
        grid = np.zeros((L, H))
        for number, name in enumerate(parts, 1):
            grid[maps[at] == name] = number
        axis.imshow(
            grid, cmap=colours, vmin=-0.5, vmax=len(parts) + 0.5, origin="lower", aspect="auto", interpolation="nearest"
        )
        axis.set_title(titles[at], fontsize=9)
        for which in (axis.xaxis, axis.yaxis):
            which.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7.5, length=2)
        axis.set_ylabel("layer" if at % columns == 0 else "", fontsize=8)
        axis.set_xlabel("head" if at + columns >= n else "", fontsize=8)
        axis.tick_params(labelbottom=at + columns >= n)
    marks = [Patch(facecolor=PALETTE[i], label=name.replace("_", "-")) for i, name in enumerate(parts)]
    figure.legend(handles=marks, loc="outside right center", fontsize=8, frameon=False)
    return saved(figure, path)
