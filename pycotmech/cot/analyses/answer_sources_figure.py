"""Maps of heads, coloured by the part of the prompt that they have the answer from."""

from __future__ import annotations

import math
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pycotmech.figures.bars import PALETTE, framed, saved

if TYPE_CHECKING:
    from pycotmech.cot.analyses.answer_sources import AnswerSources

_COLUMNS = 5


def source_maps(result: AnswerSources, *, path: str | PathLike | None = None) -> Figure:
    """`AnswerSources.map`: a map [layer, head] for each step that counts, layers upward, coloured by `majority`."""
    found, segments = result.majority(), result.data["segment"].values.tolist()
    count = int(result.data["probability"].notnull().any("step").sum())
    n = result.data["pathways"].isel(place=0).notnull().sum("example").transpose("step").values
    shown = [i for i in range(len(n)) if n[i] > 0]
    steps, kinds = result.data["step"].values, result.data["kind"].values
    L, H = found.sizes["layer"], found.sizes["head"]
    rows = math.ceil(len(shown) / _COLUMNS)
    columns = math.ceil(len(shown) / rows)
    lines = [
        f"{count} example(s), {result.about['cells']} steps that are right; for each head the part of the prompt that most of "
        f"its nodes have the answer from, white: none or a tie; {result.about['definition']}",
        *result.about["notes"],
    ]
    size = {"width": min(max(1.6, 0.17 * H), 4.0), "height": min(max(1.5, 0.11 * L), 5.0) + 0.4}
    title = f"{result.about['model']}: where each head has the answer from"
    figure, axes = framed(rows, columns, title, lines, sharex=True, sharey=True, **size)
    colours = ListedColormap(["white", *PALETTE[: len(segments)]])
    for at, axis in enumerate(axes.ravel()):
        if at >= len(shown):
            axis.set_visible(False)
            continue
        names = found.isel(step=shown[at]).transpose("layer", "head").values
        grid = np.zeros(names.shape)
        for number, name in enumerate(segments, 1):
            grid[names == name] = number
        axis.imshow(
            grid, cmap=colours, vmin=-0.5, vmax=len(segments) + 0.5, origin="lower", aspect="auto", interpolation="nearest"
        )
        axis.set_title(f"{steps[shown[at]]} {kinds[shown[at]]}\nn = {n[shown[at]]}", fontsize=9)
        for which in (axis.xaxis, axis.yaxis):
            which.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7.5, length=2)
        axis.set_ylabel("layer" if at % columns == 0 else "", fontsize=8)
        axis.set_xlabel("head" if at + columns >= len(shown) else "", fontsize=8)
        axis.tick_params(labelbottom=at + columns >= len(shown))
    marks = [Patch(facecolor=PALETTE[i], label=name.replace("_", "-")) for i, name in enumerate(segments)]
    figure.legend(handles=marks, loc="outside right center", fontsize=8, frameon=False)
    return saved(figure, path)
