"""Lines with the band of their interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import PALETTE, small

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line_with_band(
    axis: Axes, x: NDArray, mean: NDArray, low: NDArray, high: NDArray, *, alpha: float = 0.2, **style: Any
) -> None:
    """mean, low, high [n] over x [n]: a line, with a band of its colour where there is an interval. style: of the line."""
    (line,) = axis.plot(x, mean, **style)
    if np.isfinite(low).any():
        axis.fill_between(x, low, high, color=line.get_color(), alpha=alpha, linewidth=0)


def layer_line(axis: Axes, mean: NDArray, low: NDArray, high: NDArray, **words: str) -> None:
    """mean, low, high [layers] as a line with a band; the middle of the layers is marked."""
    x = np.arange(len(mean))
    line_with_band(axis, x, mean, low, high, alpha=0.25, color=PALETTE[1], linewidth=1.4)
    axis.axhline(0, color="0.6", linewidth=0.7)
    axis.axvline((len(x) - 1) / 2, color="0.6", linewidth=0.7, linestyle=":")
    axis.set_xticks(range(0, len(x), max(1, len(x) // 8)))
    small(axis, **{"across": "layer", **words})
