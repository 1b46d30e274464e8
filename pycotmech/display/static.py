"""A view as a matplotlib figure: heat maps side by side, or bars with their intervals."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from pycotmech.display.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PANELS = 20
_MOST_NAMED = 30
"""Bars whose names are all written."""


def static_figure(view: View, title: str | None = None, path: str | PathLike | None = None) -> Figure:
    """A view as a matplotlib figure, saved to `path` if given. Raises ValueError for more than 20 heat maps."""
    from pycotmech.figures.heatmap import maps_figure

    panels = view.panels()
    if view.drawn[0] is None:
        return _bars_figure(view, title or view.title, path)
    if len(panels) > _MOST_PANELS:
        raise ValueError(f"plot: {len(panels)} heat maps are too many for one figure; expected at most {_MOST_PANELS}")
    return maps_figure(
        [panel.of(view.values).astype(float) for panel in panels],
        [panel.name for panel in panels],
        title=title or view.title,
        lines=view.facts[:3],
        label=view.label,
        across=view.drawn[1],
        path=path,
    )


def _bars_figure(view: View, title: str, path: str | PathLike | None) -> Figure:
    from pycotmech.figures.bars import bars_with_intervals
    from pycotmech.figures.frame import framed, saved

    (panel,) = view.panels()
    values = panel.of(view.values).astype(float)
    nothing = np.full(len(values), np.nan)
    found = {"mean": values, **{end: panel.of(view.beside[end]) if end in view.beside else nothing for end in ("low", "high")}}
    axis = view.drawn[1]
    step = max(1, -(-len(values) // _MOST_NAMED))
    ticks = [view.tick(axis, i) if i % step == 0 else "" for i in range(len(values))]
    figure, axes = framed(1, 1, title, view.facts[:3], width=min(max(5.0, 0.3 * len(values) + 1), 11.0), height=3.2)
    bars_with_intervals(axes[0, 0], found, ticks, across=axis, up=view.label)
    if max(map(len, ticks), default=0) > 3:
        axes[0, 0].tick_params(axis="x", rotation=60)
    axes[0, 0].axhline(0, color="0.4", linewidth=0.7)
    if view.floor:
        axes[0, 0].axhspan(-view.floor, view.floor, color="0.8", zorder=0)
    return saved(figure, path)
