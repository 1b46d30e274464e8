"""Which heads a rule chooses, on the histogram of their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pycotmech._words import plural
from pycotmech.figures.frame import framed, saved
from pycotmech.figures.library import Figure, FixedLocator, colormaps
from pycotmech.stats.histogram import freedman_diaconis

_MOST_BINS, _BINS = 120, 60
_NONE = "0.82"


def selection_figure(
    scores: NDArray,
    masks: NDArray,
    labels: Sequence[str],
    ends: Sequence[tuple[float, ...]],
    *,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """Bars of all heads in grey, and of each set over the set it lies in: a bar's height is the number of heads in its set.

    scores [layer, head]; masks [set, layer, head]: nested sets, the largest first; labels [set]. ends [set]: where a window
    ends, drawn dashed: the scores that heads have to lie beyond; none for other rules.
    """
    figure, axes = framed(1, 1, "Heads chosen by their scores", lines, width=6.4, height=2.8)
    axis = axes[0, 0]
    known = np.isfinite(scores)
    edges, width = _edges(scores[known])
    n = int(known.sum())
    axis.hist(scores[known], bins=edges, color=_NONE, label=f"in no set; {plural(n, 'head')} in all")
    shown = [i for i, mask in enumerate(masks) if (mask & known).any()]
    colours = colormaps["viridis_r"](np.linspace(0.15, 1.0, max(len(shown), 1)))
    for i, colour in zip(shown, colours):
        axis.hist(scores[masks[i] & known], bins=edges, color=colour, label=labels[i])
        for end in ends[i] if ends else ():
            axis.axvline(end, color=colour, linewidth=1.1, linestyle="--")
    if width is not None:
        axis.set_xscale("asinh", linear_width=width)
        axis.xaxis.set_major_locator(FixedLocator(_decades(edges, width)))
        axis.xaxis.set_major_formatter(lambda value, at: f"{value:g}".replace("-", "−"))
    axis.set_yscale("log")
    axis.set_ylim(0.7, None)
    axis.yaxis.set_major_formatter(lambda value, at: f"{value:g}")
    axis.set_xlabel("score" if width is None else f"score (even within ±{width:.1g}, by its logarithm beyond)", fontsize=9)
    axis.set_ylabel("heads", fontsize=9)
    axis.tick_params(labelsize=8, length=2)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize=7, frameon=False)
    return saved(figure, path)


def _edges(values: NDArray) -> tuple[NDArray, float | None]:
    """Freedman and Diaconis' bins. Where a few scores lie so far out that there are too many to be seen: bins that are
    even in asinh(score / width), and that width, the distance of the quartiles."""
    try:
        found = freedman_diaconis(values)
    except ValueError:  # half of the scores are equal
        return np.histogram_bin_edges(values, 30), None
    if len(found) <= _MOST_BINS + 1:
        return found, None
    low, high = np.percentile(values, [25, 75])
    width = float(high - low)
    first, last = np.arcsinh(found[[0, -1]] / width)
    edges = width * np.sinh(np.linspace(first, last, _BINS + 1))
    edges[[0, -1]] = found[[0, -1]]  # not a rounding short of the extremes
    return edges, width


def _decades(edges: NDArray, width: float) -> list[float]:
    """0 and the powers of ten between the width and the farthest score, to both sides."""
    first, last = math.floor(math.log10(width)) + 1, math.ceil(math.log10(np.abs(edges[[0, -1]]).max()))
    sizes = [10.0**p for p in range(first, last + 1)]
    return [v for v in (*(-x for x in reversed(sizes)), 0.0, *sizes) if edges[0] <= v <= edges[-1]]
