"""Draws `relation_heads`: maps of the gain, score and null by layer, and what the probe loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def relation_figure(
    title: str,
    lines: Sequence[str],
    *,
    maps: Mapping[str, tuple[NDArray, Sequence[tuple[int, int]]]],
    score: bootstrap.Interval,
    null: bootstrap.Interval,
    verbs: str,
    ablation: pd.DataFrame,
    depth: int,
    path: str | PathLike | None = None,
) -> Figure:
    """maps: by relation the mean gain [layer, head], and the heads to frame. score, null: of related pairs, summed over the
    heads of a layer, arrays [layer]. ablation: as `RelationHeads.ablation` has it."""
    from pycotmech.figures.bars import bars_with_intervals
    from pycotmech.figures.curves import layer_line, line_with_band
    from pycotmech.figures.frame import PALETTE, framed, saved
    from pycotmech.figures.heatmap import map_of_heads
    from pycotmech.figures.library import Rectangle

    figure, axes = framed(2, 2, title, lines, width=4.4, height=3.2)
    for axis, (relation, (grid, heads)) in zip(axes[0], maps.items()):
        map_of_heads(figure, axis, grid, title=f"{relation} pairs (framed: selected)", label=f"score beyond {verbs}")
        for l, h in heads:
            axis.add_patch(Rectangle((h - 0.5, l - 0.5), 1, 1, fill=False, ec="black", lw=0.9))
    axis = axes[1, 0]
    layer_line(axis, *score[:3], title="related pairs, all heads of a layer", up="sum of scores")
    axis.lines[0].set_label("score")
    style = {"color": PALETTE[0], "linewidth": 1.0, "linestyle": "--", "label": f"with {verbs}"}
    line_with_band(axis, np.arange(len(null.mean)), *null[:3], **style)
    axis.legend(fontsize=7, frameon=False)
    axis = axes[1, 1]
    if len(ablation):
        ticks = ["selected heads", "random heads"][: len(ablation)]
        words = {"title": f"probe at depth {depth}, heads out", "up": "change"}
        ends = {"mean": "", "low": "_low", "high": "_high"}
        values = {k: np.stack([ablation[f"{name}{end}"] for name in ("accuracy", "margin")]) for k, end in ends.items()}
        bars_with_intervals(axis, values, ticks, names=("accuracy", "margin (logits)"), **words)
        axis.axhline(0, color="0.4", lw=0.8)
        axis.legend(fontsize=7)
    else:
        axis.text(0.5, 0.5, "no head selected\nbelow the probe", ha="center", va="center", fontsize=8)
        axis.set_axis_off()
    return saved(figure, path)
