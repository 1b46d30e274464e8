"""The figures of traces: a matrix of sentences with a bar for each below it, and sentences as the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.library import Figure

_TEXT_ROWS = 40
"""Sentences up to which their texts are written beside the graph; of more only the numbers are."""
_LETTERS = 46


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
    low, colours = (-high, "RdBu") if diverging else (0.0, "Blues")
    image = axis.imshow(matrix, cmap=colours, vmin=low, vmax=high or 1.0, aspect="auto", interpolation="nearest")
    axis.set_facecolor("0.93")
    small(axis, up="later sentence")
    scale = figure.colorbar(image, ax=axis, pad=0.02)
    scale.set_label(label, fontsize=8)
    scale.ax.tick_params(labelsize=7)
    bars.bar(np.arange(S), np.nan_to_num(below_values), color=PALETTE[1], width=0.85)
    bars.axhline(0, color="0.6", linewidth=0.6)
    small(bars, across="earlier sentence", up=below)
    return finished(figure, title, lines, path=path)


def graph_figure(
    edges: Iterable[tuple[int, int, float]],
    weights: NDArray,
    texts: Sequence[str],
    *,
    title: str,
    edge_label: str,
    node_label: str,
    lines: Sequence[str] = (),
    path: str | PathLike | None = None,
) -> Figure:
    """Sentences from top to bottom, and an arc from each later one up to an earlier one that it depends on.

    edges: (later, earlier, weight); the wider and darker an arc, the heavier it is. weights [S]: the size of each node; NaN
    and what is not positive is drawn as a small ring. texts: of the sentences.
    """
    from pycotmech.figures.library import Arc

    S, drawn = len(texts), [(i, j, w) for i, j, w in edges if np.isfinite(w) and w > 0]
    with_text = S <= _TEXT_ROWS
    figure = Figure(figsize=(7.2 if with_text else 5.0, min(max(2.6, 0.24 * S + 1.6), 12.0)), layout="constrained")
    axis = figure.subplots()
    longest = max((i - j for i, j, _ in drawn), default=1)
    heaviest = max((w for _, _, w in drawn), default=1.0)
    for later, earlier, weight in sorted(drawn, key=lambda e: e[2]):
        share, span = weight / heaviest, later - earlier
        axis.add_patch(
            Arc(
                (0, (later + earlier) / 2), 2 * (0.12 + 0.88 * span / longest), span, theta1=90, theta2=270,
                linewidth=0.5 + 2.5 * share, color=PALETTE[0], alpha=0.25 + 0.7 * share,
            )
        )  # fmt: skip
    known = np.where(np.isfinite(weights) & (np.asarray(weights) > 0), weights, 0.0)
    largest = known.max() if len(known) and known.max() > 0 else 1.0
    rows = np.arange(S)
    some = known > 0
    axis.scatter(np.zeros(S)[some], rows[some], s=14 + 130 * known[some] / largest, color=PALETTE[1], zorder=3)
    axis.scatter(np.zeros(S)[~some], rows[~some], s=10, facecolor="white", edgecolor=PALETTE[1], linewidth=0.8, zorder=3)
    for i, text in enumerate(texts):
        if with_text:
            short = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
            axis.text(0.12, i, f"{i}  {short}", fontsize=7.5, va="center")
        elif i % 5 == 0:
            axis.text(0.12, i, str(i), fontsize=7, va="center")
    axis.set_xlim(-1.08, 2.6 if with_text else 0.5)
    axis.set_ylim(S - 0.4, -0.6)
    axis.set_axis_off()
    words = f"arcs: {edge_label}; nodes: {node_label}"
    return finished(figure, title, [words, *lines], path=path)
