"""Heat maps: y = layer (upward), x = head, red and blue around 0."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pycotmech.figures.words import METRIC_NAMES, step_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pycotmech.patching import Sweep

_COLOURS = "RdBu"  # blue for what restores, red for what works against it
_NUMBERED = 10
_SMALLEST_NUMBER = 0.05  # of the scale: below it a number would only repeat that there is nothing
_DPI = 150


def step_figure(steps: xr.Dataset, step: int, *, sample: str = "", path: str | PathLike | None = None) -> Figure:
    """One step of a run: the restoration of every head. sample: the step's words in an example."""
    here = steps.sel(step=step)
    about = steps.attrs["about"]
    identity = steps.attrs["identity"]
    title = step_title(step, str(here["kind"].values), sample)
    lines = [f"{about['model']['name']}, {_counted(here)}, noise floor {float(here['noise_floor']):.1g}"]
    lines += about["model"]["notes"]
    grid = here["restoration"].transpose("layer", "head").values
    return _single(grid, "head", title, lines, _bar_label(identity["metric"], identity["direction"], True), path)


def overview_figure(steps: xr.Dataset, *, path: str | PathLike | None = None) -> Figure:
    """All steps of a run beside each other, on one scale."""
    about, identity = steps.attrs["about"], steps.attrs["identity"]
    shown = [steps.isel(step=i) for i in range(steps.sizes["step"]) if int(steps["n"][i]) > 0]
    return maps_figure(
        [here["restoration"].transpose("layer", "head").values for here in shown],
        [f"{int(here['step'])} {here['kind'].values}\nn = {int(here['n'])}" for here in shown],
        title=f"{about['model']['name']}: what each head restores by itself, step by step",
        lines=list(about["model"]["notes"]),
        label=_bar_label(identity["metric"], identity["direction"], True),
        path=path,
    )


def maps_figure(
    grids: Sequence[NDArray],
    titles: Sequence[str],
    *,
    title: str,
    lines: Sequence[str] = (),
    label: str,
    across: str = "head",
    columns: int | None = None,
    path: str | PathLike | None = None,
) -> Figure:
    """Heat maps [layer, head] beside each other, on one scale that is the same to both sides of 0.

    titles: of the maps; title and lines: of the figure; label: of the colour bar; across: what the x axis counts; columns:
    maps in a row, None: five at most.
    """
    limit = _limit(list(grids))
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
        image = _draw(axis, grids[at], limit)
        axis.set_title(titles[at], fontsize=9)
        axis.label_outer()
        if at % columns == 0:
            axis.set_ylabel("layer")
        if at + columns >= len(grids):
            axis.set_xlabel(across)
            axis.tick_params(labelbottom=True)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015)
    bar.set_label(label)
    _frame(figure, title, list(lines))
    return _saved(figure, path)


def sweep_figure(sweep: Sweep, *, title: str | None = None, path: str | PathLike | None = None) -> Figure:
    """One `Sweep`: layer by head; by position layer by position, where each entry is the head with the largest effect."""
    grid, across = np.asarray(sweep.effect, dtype=float), "head"
    lines = [f"{sweep.model_name}, {len(sweep.clean_metric)} pair(s), noise floor {sweep.noise_floor:.1g}"]
    if sweep.by_position or sweep.groups:  # [L, T, H]; of the residual stream [L, T]
        across = "position" if sweep.by_position else f"group ({', '.join(sweep.groups or ())})"
        if grid.ndim == 3:
            strongest = np.abs(np.nan_to_num(grid)).argmax(-1)[..., None]
            grid = np.take_along_axis(grid, strongest, -1)[..., 0]
            where = "at the position" if sweep.by_position else "in the group"
            lines.append(f"of each layer's heads, the one with the largest effect {where}")
    label = _bar_label(sweep.metric, sweep.direction, sweep.normalized)
    return _single(grid, across, title or f"{sweep.site} patched, one head at a time", lines, label, path)


def head_figure(
    grid: NDArray,
    title: str,
    lines: list[str],
    *,
    metric: str,
    direction: str,
    normalised: bool,
    path: str | PathLike | None = None,
) -> Figure:
    """Effects [L, H] of heads under a title, with lines of small print below."""
    return _single(np.asarray(grid, dtype=float), "head", title, lines, _bar_label(metric, direction, normalised), path)


def _single(grid: NDArray, across: str, title: str, lines: list[str], label: str, path: str | PathLike | None) -> Figure:
    n_layers, n_across = grid.shape
    width = min(max(4.6, 0.27 * n_across + 2.2), 11.0)
    height = min(max(3.2, 0.2 * n_layers + 1.5), 11.0)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    image = _draw(axis, grid, _limit([grid]))
    axis.set_xlabel(across)
    axis.set_ylabel("layer")
    if across == "head":
        _write_strongest(axis, grid, _limit([grid]))
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(label)
    _frame(figure, title, lines)
    return _saved(figure, path)


def _draw(axis: Axes, grid: NDArray, limit: float) -> Any:
    image = axis.imshow(grid, cmap=_COLOURS, vmin=-limit, vmax=limit, origin="lower", aspect="auto", interpolation="nearest")
    axis.set_facecolor("0.85")  # entries that were not measured
    for which, n in ((axis.xaxis, grid.shape[1]), (axis.yaxis, grid.shape[0])):
        step = next(s for s in (1, 2, 4, 5, 8, 10, 20, 50, 100, 200, 500, 1000, n) if n / s <= 17)
        which.set_ticks(np.arange(0, n, step))
    axis.tick_params(labelsize=8, length=2)
    return image


def _write_strongest(axis: Axes, grid: NDArray, limit: float) -> None:
    """The numbers of the strongest heads, in their cells."""
    flat = np.abs(np.nan_to_num(grid)).ravel()
    for at in np.argsort(-flat, kind="stable")[:_NUMBERED]:
        if flat[at] < _SMALLEST_NUMBER * limit:
            break
        l, h = divmod(int(at), grid.shape[1])
        colour = "white" if flat[at] > 0.55 * limit else "black"
        number = re.sub(r"^(-?)0\.", r"\1.", f"{grid[l, h]:.2f}").replace("-", "−")
        axis.text(h, l, number, fontsize=6, color=colour, ha="center", va="center")


def _limit(grids: list[NDArray]) -> float:
    """The end of a colour scale that is the same to both sides."""
    largest = max((float(np.nanmax(np.abs(g))) for g in grids if np.isfinite(g).any()), default=0.0)
    return largest or 1.0


def _bar_label(metric: str, direction: str, normalised: bool) -> str:
    name = METRIC_NAMES.get(metric, metric)
    if not normalised:
        return f"change of {name}"
    return f"share of {name} {'restored' if direction == 'denoise' else 'destroyed'}"


def _counted(here: xr.Dataset) -> str:
    n = int(here["n"])
    return f"{n} example{'s' if n != 1 else ''}"


def framed(figure: Figure, title: str, lines: Sequence[str], *, path: str | PathLike | None = None) -> Figure:
    """A figure with its title above and in small print below it what it was made from; saved to `path` if given."""
    _frame(figure, title, list(lines))
    return _saved(figure, path)


def _frame(figure: Figure, title: str, lines: list[str]) -> None:
    """The title above, and below in small print what it was made from; both wrapped to the figure's width."""
    width = figure.get_figwidth()
    big = [part for line in title.splitlines() for part in _wrap(line, int(width * 8.6))]
    figure.suptitle("\n".join(big), fontsize=11, fontweight="bold")
    small = [part for line in lines for part in _wrap(line, int(width * 14))]
    figure.supxlabel("\n".join(small), fontsize=7.5, color="0.35", linespacing=1.3)


def _wrap(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns) or [""]


def _saved(figure: Figure, path: str | PathLike | None) -> Figure:
    if path is not None:
        figure.savefig(path, dpi=_DPI, metadata={"Software": "pycotmech"})
    return figure
