"""Accuracy against the number of heads ablated: a panel for each step, and one for all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pycotmech.figures.curves import line_with_band
from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.library import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {
    "least": {"color": PALETTE[1], "linestyle": "-", "label": "least important first"},
    "most": {"color": PALETTE[0], "linestyle": "-", "label": "most important first"},
}


def knock_out_figure(
    by_step: xr.Dataset,
    overall: xr.Dataset,
    removed: xr.DataArray,
    kinds: Sequence[str],
    points: Sequence[Mapping[str, Any]],
    drawn: tuple[NDArray, NDArray, NDArray] | None,
    *,
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """A panel for each step that counts and one for all of them, with intervals and operating points.

    by_step [order, size, step], overall [order, size]: mean, low, high, n of the accuracy. removed [order, size] or
    [order, size, step]: heads ablated. kinds [step]: of the steps. points: operating points, each with step, removed and
    accuracy. drawn: of random sets, heads ablated [step], accuracy [draw, step] and over all steps [draw].
    """
    steps = [i for i in range(by_step.sizes["step"]) if int(by_step["n"].isel(step=i).max()) > 0]
    columns = min(4, len(steps) + 1)
    rows = math.ceil((len(steps) + 1) / columns)
    figure = Figure(figsize=(max(6.5, 2.3 * columns + 0.6), 1.9 * rows + 1.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for at, axis in enumerate(axes):
        if at > len(steps):
            axis.set_visible(False)
            continue
        last = at == len(steps)
        found = overall if last else by_step.isel(step=steps[at])
        for order in by_step["order"].values.tolist():
            x = removed.sel(order=order)
            if "step" in x.dims:
                x = x.mean("step") if last else x.isel(step=steps[at])
            _curve(axis, x.values, found.sel(order=order), order)
        if drawn is not None:
            removed_there, by_draw, over_all = drawn
            accuracy = over_all if last else by_draw[:, steps[at]]
            x = removed_there.mean() if last else removed_there[steps[at]]
            axis.plot([x] * len(accuracy), accuracy, "_", color="0.5", ms=6, mew=0.8, label="random sets, layers alike")
        name = "all steps" if last else f"{int(found['step'])} {kinds[steps[at]]}"
        for point in (p for p in points if p["step"] == ("all" if last else int(found["step"]))):
            axis.plot(
                point["removed"], point["accuracy"], "o", ms=4.5, mfc="white", mec="black", zorder=5, label="operating point"
            )
        lowest = at + columns > len(steps)
        small(
            axis,
            title=f"{name}, n = {int(found['n'].max())}",
            up="accuracy" if at % columns == 0 else "",
            across="heads ablated" if lowest else "",
        )
        axis.tick_params(labelsize=7.5, labelbottom=lowest)
        axis.set_ylim(-0.04, 1.06)
    handles, labels = axes[0].get_legend_handles_labels()
    chosen = dict(zip(labels, handles))
    if len(axes) > len(steps) + 1:  # a panel is left over
        axes[-1].set_visible(True)
        axes[-1].axis("off")
        axes[-1].legend(chosen.values(), chosen.keys(), loc="center left", fontsize=8, frameon=False)
    else:
        figure.legend(chosen.values(), chosen.keys(), loc="outside right upper", fontsize=8, frameon=False)
    return finished(figure, title, lines, path=path)


def _curve(axis: Axes, x: NDArray, found: xr.Dataset, order: str) -> None:
    """One order's accuracies with their band."""
    mean, low, high = (found[k].values for k in ("mean", "low", "high"))
    known = np.isfinite(mean)
    style = _STYLES[order]
    line_with_band(axis, x[known], mean[known], low[known], high[known], alpha=0.18, linewidth=1.4, **style)
