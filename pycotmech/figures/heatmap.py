"""Heat maps: y = layer (upward), x = head, red and blue around 0."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pycotmech.figures.frame import finished
from pycotmech.figures.library import Figure
from pycotmech.figures.words import effect_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = "RdBu"  # blue for what restores, red for what works against it
_NUMBERED = 10
_SHARE_COLUMNS = 4
_SMALLEST_NUMBER = 0.05  # of the scale: below it a number would only repeat that there is nothing


def effect_figure(
    effect: NDArray,
    *,
    title: str,
    lines: Sequence[str],
    metric: str,
    direction: str,
    normalised: bool,
    across: str = "head",
    path: str | PathLike | None = None,
) -> Figure:
    """Effects [layer, head], or [layer, X] with another axis `across`, such as "position" or "group (question, rest)".

    Of effects [layer, X, head] each entry of the map shows the head with the largest effect there, and the small print
    says so. title, lines: above the map and below it. metric, direction, normalised: how the effects were measured, for
    the colour bar.
    """
    grid, lines = np.asarray(effect, dtype=float), list(lines)
    if grid.ndim == 3:
        strongest = np.abs(np.nan_to_num(grid)).argmax(-1)[..., None]
        grid = np.take_along_axis(grid, strongest, -1)[..., 0]
        where = "at the position" if across == "position" else "in the group"
        lines.append(f"of each layer's heads, the one with the largest effect {where}")
    n_layers, n_across = grid.shape
    width = min(max(4.6, 0.27 * n_across + 2.2), 11.0)
    height = min(max(3.2, 0.2 * n_layers + 1.5), 11.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    limit = colour_limit(grid)
    image = draw_map(axis, grid, limit)
    axis.set_xlabel(across)
    axis.set_ylabel("layer")
    if across == "head":
        _write_strongest(axis, grid, limit)
    figure.colorbar(image, ax=axis, pad=0.02).set_label(effect_label(metric, direction, normalised))
    return finished(figure, title, lines, path=path)


def maps_figure(
    grids: Sequence[NDArray],
    titles: Sequence[str],
    *,
    title: str,
    lines: Sequence[str] = (),
    label: str,
    across: str = "head",
    columns: int | None = None,
    scaled_by: Sequence[int] | None = None,
    path: str | PathLike | None = None,
) -> Figure:
    """Heat maps [layer, head] side by side, on one scale that is symmetric about 0.

    titles: of the maps. title and lines: of the figure. label: of the colour bar. across: what the x axis counts.
    columns: maps in a row; by default five at most. scaled_by: the maps whose values the scale spans; what lies beyond it in
    the others has the colours of its ends, which the colour bar then shows as arrows. None: all.
    """
    limit = colour_limit(*(grids if scaled_by is None else [grids[i] for i in scaled_by]))
    ends = "both" if colour_limit(*grids) > limit else "neither"
    rows = math.ceil(len(grids) / (columns or 5))
    columns = columns or math.ceil(len(grids) / rows)
    n_layers, n_heads = grids[0].shape
    width = min(max(1.5, 0.16 * n_heads), 4.0)
    height = min(max(1.4, 0.105 * n_layers), 5.0)
    figure = Figure(figsize=(max(6.5, columns * (width + 0.45) + 1.2), rows * (height + 0.55) + 1.25), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for at, axis in enumerate(axes.ravel()):
        if at >= len(grids):
            axis.set_visible(False)
            continue
        image = draw_map(axis, grids[at], limit)
        axis.set_title(titles[at], fontsize=9)
        axis.label_outer()
        if at % columns == 0:
            axis.set_ylabel("layer")
        if at + columns >= len(grids):
            axis.set_xlabel(across)
            axis.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015, extend=ends)
    bar.set_label(label)
    return finished(figure, title, lines, path=path)


def share_maps_figure(
    maps: Mapping[str, NDArray], *, title: str, label: str, lines: Sequence[str] = (), path: str | PathLike | None = None
) -> Figure:
    """Maps [layer, head] of shares, by name, side by side on one scale from 0 to 1. label: of the colour bar; title, lines:
    above the maps and below them."""
    L, H = next(iter(maps.values())).shape
    columns = min(_SHARE_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    width, height = max(2.2, min(0.16 * H + 0.9, 4.5)), max(1.9, min(0.13 * L + 0.8, 5.0))
    figure = Figure(figsize=(columns * width + 1.2, rows * height + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    image: Any = None
    for axis, (name, values) in zip(axes.flat, maps.items(), strict=False):
        image = axis.imshow(np.asarray(values, dtype=float), origin="lower", aspect="auto", cmap="viridis", vmin=0, vmax=1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.yaxis.get_major_locator().set_params(integer=True)
    for axis in axes.flat[len(maps) :]:
        axis.set_axis_off()
    for at, axis in enumerate(axes.flat[: len(maps)]):
        if at % columns == 0:
            axis.set_ylabel("layer", fontsize=9)
        if at + columns >= len(maps):
            axis.set_xlabel("head", fontsize=9)
            axis.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=7)
    return finished(figure, title, lines, path=path)


def map_of_heads(figure: Figure, axis: Axes, grid: NDArray, *, title: str = "", label: str = "") -> None:
    """grid [layer, head] as one of several parts of a figure, with its own colour bar."""
    image = draw_map(axis, grid, colour_limit(grid))
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_title(title, fontsize=9)
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if not np.nanmin(grid, initial=0.0) < 0:
        bar.ax.set_ylim(0, None)


def draw_map(axis: Axes, grid: NDArray, limit: float) -> Any:
    """Draws grid [layer, X] with colours from -limit to limit; entries that are NaN are grey. Returns the image."""
    image = axis.imshow(grid, cmap=_COLOURS, vmin=-limit, vmax=limit, origin="lower", aspect="auto", interpolation="nearest")
    axis.set_facecolor("0.85")
    for which, n in ((axis.xaxis, grid.shape[1]), (axis.yaxis, grid.shape[0])):
        step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 50, 100, 200, 500, 1000, n) if n / s <= 17)
        which.set_ticks(np.arange(0, n, step))
    axis.tick_params(labelsize=8, length=2)
    return image


def write_numbers(axis: Axes, grid: NDArray, form: Callable[[float], str]) -> None:
    """Writes form(value) into every entry of grid [rows, columns] that is a number, in white where |value| is above 0.6."""
    for i, j in np.argwhere(np.isfinite(grid)):
        colour = "white" if abs(grid[i, j]) > 0.6 else "black"
        axis.text(int(j), int(i), form(float(grid[i, j])), fontsize=6.5, ha="center", va="center", color=colour)


def _write_strongest(axis: Axes, grid: NDArray, limit: float) -> None:
    """Writes the numbers of the strongest heads into their cells."""
    flat = np.abs(np.nan_to_num(grid)).ravel()
    for at in np.argsort(-flat, kind="stable")[:_NUMBERED]:
        if flat[at] < _SMALLEST_NUMBER * limit:
            break
        l, h = divmod(int(at), grid.shape[1])
        colour = "white" if flat[at] > 0.55 * limit else "black"
        number = re.sub(r"^(-?)0\.", r"\1.", f"{grid[l, h]:.2f}").replace("-", "−")
        axis.text(h, l, number, fontsize=6, color=colour, ha="center", va="center")


def colour_limit(*grids: NDArray) -> float:
    """The end of a colour scale that is the same to both sides of 0, for all of these maps."""
    largest = max((float(np.nanmax(np.abs(g))) for g in grids if np.isfinite(g).any()), default=0.0)
    return largest or 1.0


def interaction_figure(
    grids: Sequence[NDArray],
    names: Sequence[Sequence[str]],
    titles: Sequence[str],
    *,
    title: str,
    lines: Sequence[str],
    label: str,
    path: str | PathLike | None = None,
) -> Figure:
    """Square maps [unit, unit] side by side on one scale, with the names of their units on both axes; NaN is grey."""
    columns = min(3, len(grids))
    rows = math.ceil(len(grids) / columns)
    size = min(max(2.0, 0.19 * max(len(n) for n in names) + 0.8), 5.0)
    figure = Figure(figsize=(max(5.0, columns * (size + 0.3) + 1.3), rows * (size + 0.35) + 1.0), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    limit, image = colour_limit(*grids), None
    for axis in axes.flat[len(grids) :]:
        axis.set_visible(False)
    for axis, grid, units, what in zip(axes.flat, grids, names, titles, strict=False):
        image = draw_map(axis, grid, limit)
        axis.set_xticks(range(len(units)), units, rotation=90, fontsize=6)
        axis.set_yticks(range(len(units)), units, fontsize=6)
        axis.set_title(what, fontsize=9)
        axis.invert_yaxis()
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015).set_label(label)  # type: ignore[arg-type]
    return finished(figure, title, lines, path=path)
