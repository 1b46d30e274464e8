"""Heat maps of attention, one small map of layers and heads for each quantity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pycotmech.attention.results import AttentionSummary
    from pycotmech.attention.scores import HeadScores

_COLUMNS = 4


def mass_figure(
    summary: AttentionSummary,
    *,
    segments: Sequence[str] | None = None,
    rows: slice | Sequence[int] | None = None,
    title: str | None = None,
    path: str | None = None,
) -> Figure:
    """`AttentionSummary.plot`."""
    names = summary.segment_names if segments is None else tuple(segments)
    if not names:
        raise ValueError("segments: none is chosen")
    mass = summary.over_rows(summary.mass, rows)
    maps = {name: mass[..., summary.segment_names.index(name)] for name in names if summary.segment(name) is not None}
    chosen = summary.rows if rows is None else summary.rows[rows if isinstance(rows, slice) else list(rows)]
    where = f"row {chosen[0]}" if len(chosen) == 1 else f"mean over {len(chosen)} rows, {chosen.min()} to {chosen.max()}"
    return _maps(
        maps, title or f"{summary.model_name}: attention mass per segment ({where})".lstrip(": "), "share of attention", path
    )


def scores_figure(scores: HeadScores, *, kinds: Sequence[str], title: str | None = None, path: str | None = None) -> Figure:
    """`HeadScores.plot`."""
    maps = {kind: scores[kind] for kind in kinds}
    return _maps(maps, title or f"{scores.model_name}: mean attention to ...".lstrip(": "), "mean attention", path)


def _maps(maps: dict[str, NDArray], title: str, unit: str, path: str | None) -> Figure:
    """Maps [L, H] side by side on one scale from 0 to 1, layers upward."""
    from matplotlib.figure import Figure

    L, H = next(iter(maps.values())).shape
    columns = min(_COLUMNS, len(maps))
    lines = -(-len(maps) // columns)
    width, height = max(2.2, min(0.16 * H + 0.9, 4.5)), max(1.9, min(0.13 * L + 0.8, 5.0))
    figure = Figure(figsize=(columns * width + 1.2, lines * height + 0.6), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for axis, (name, values) in zip(axes.flat, maps.items(), strict=False):
        image = axis.imshow(np.asarray(values, dtype=float), origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.get_major_locator().set_params(integer=True)
    for axis in axes.flat[len(maps) :]:
        axis.set_axis_off()
    figure.supxlabel("head", fontsize=9)
    figure.supylabel("layer", fontsize=9)
    figure.suptitle(title, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
