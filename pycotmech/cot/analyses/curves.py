"""Figures of heads that are taken out: accuracy against their number, sets kept alone, overlaps of sets."""

from __future__ import annotations

import math
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from pycotmech.figures.heatmap import _frame, _saved
from pycotmech.figures.words import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pycotmech.cot.analyses.head_overlap import HeadOverlap
    from pycotmech.cot.analyses.isolation import Isolation
    from pycotmech.cot.analyses.knock_out import KnockOutCurve

_COLOURS = {"least": "#4c72b0", "most": "#c44e52"}
_NAMES = {"least": "least important first", "most": "most important first"}
_RANDOM = "0.6"


def knock_out_figure(curve: KnockOutCurve, *, path: str | PathLike | None = None) -> Figure:
    """A panel for each step and one for all: accuracy over heads ablated, by order, with intervals and operating point."""
    found, whole = curve.accuracy(), curve.overall()
    removed = curve.data["removed"]
    points = curve.operating_points()
    steps = [i for i in range(found.sizes["step"]) if int(found["n"].isel(step=i).max()) > 0]
    columns = min(4, len(steps) + 1)
    rows = math.ceil((len(steps) + 1) / columns)
    figure = Figure(figsize=(max(6.5, 2.3 * columns + 0.6), 1.9 * rows + 1.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for at, axis in enumerate(axes):
        if at > len(steps):
            axis.set_visible(False)
            continue
        last = at == len(steps)
        here = whole if last else found.isel(step=steps[at])
        for order in curve.data["order"].values:
            x = removed.sel(order=order)
            if "step" in x.dims:
                x = x.mean("step") if last else x.isel(step=steps[at])
            _line(axis, x.values, here.sel(order=order), str(order))
        name = "all steps" if last else f"{int(here['step'])} {curve.data['kind'].values[steps[at]]}"
        axis.set_title(f"{name}, n = {int(here['n'].max())}", fontsize=9)
        point = points[points["step"] == ("all" if last else int(here["step"]))]
        for row in point.itertuples():
            axis.plot(row.removed, row.accuracy, "o", ms=4.5, mfc="white", mec="black", zorder=5, label="operating point")
        _plain(axis, up="accuracy" if at % columns == 0 else "", across="heads ablated" if at + columns > len(steps) else "")
        axis.tick_params(labelbottom=at + columns > len(steps))
        axis.set_ylim(-0.04, 1.06)
    handles, labels = axes[0].get_legend_handles_labels()
    chosen = dict(zip(labels, handles))
    if len(axes) > len(steps) + 1:  # a panel is left over
        axes[-1].set_visible(True)
        axes[-1].axis("off")
        axes[-1].legend(chosen.values(), chosen.keys(), loc="center left", fontsize=8, frameon=False)
    else:
        figure.legend(chosen.values(), chosen.keys(), loc="outside right upper", fontsize=8, frameon=False)
    s = curve.about["settings"]
    kind = "agreement with the untouched model" if curve.main == "agrees" else "every token of the gold word"
    apart = "report" in curve.data["half"].values
    lines = [
        f"accuracy: {kind}; bands: 95 % bootstrap over examples; operating point: nearest to {s['target']:g}"
        + (", chosen on one half of the examples and shown for the other" if apart else ""),
        f"heads ordered by {s['scores']}, {s['ranked_on']}",
        f"replaced by {s['replaced_by']}" + ("" if s["positions"] == "all" else "; behind the few-shot block only"),
        *curve.about["notes"],
    ]
    _frame(figure, f"{curve.about['model']}: {curve.title.lower()}", lines)
    return _saved(figure, path)


def _line(axis: Axes, x, here, order: str) -> None:
    random = order.startswith("random")
    colour = _RANDOM if random else _COLOURS[order]
    label = "random order" if random else _NAMES[order]
    known = np.isfinite(here["mean"].values)
    axis.plot(x[known], here["mean"].values[known], color=colour, lw=1.4, ls="--" if random else "-", label=label)
    if not random and np.isfinite(here["low"].values).any():
        axis.fill_between(x[known], here["low"].values[known], here["high"].values[known], color=colour, alpha=0.18, lw=0)


def isolation_figure(result: Isolation, *, path: str | PathLike | None = None) -> Figure:
    """Left: accuracy of each set (or size) at each step. Right: over all steps with interval, beside random sets."""
    found, whole = result.accuracy(), result.overall()
    chance = result.overall("random")["mean"].values if "random" in result.data else None
    kept = result.data["kept"].values
    sizes = [f"{a.min()}" if a.min() == a.max() else f"{a.min()}–{a.max()}" for a in kept]
    if result.axis == "set":
        labels = [
            f"{str(name).replace('_', ' ')}\n({n} {'head' if n == '1' else 'heads'})"
            for name, n in zip(result.data["set"].values, sizes)
        ]
    else:
        labels = [f"{n} taken" for n in result.data["removed"].values]
    m = len(labels)
    figure = Figure(figsize=(9.0, max(2.8, 0.42 * m + 2.0)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1), sharey=True)
    image = left.imshow(found["mean"].transpose(result.axis, "step").values, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    left.set_facecolor("0.85")
    kinds = result.data["kind"].values
    left.set_xticks(range(len(kinds)), [f"{s}\n{k[0].upper()}" for s, k in zip(result.data["step"].values, kinds)], fontsize=8)
    left.set_yticks(range(m), labels, fontsize=8)
    left.set_xlabel("step (D decision, C copying, I induction)", fontsize=8)
    for i, row in enumerate(found["mean"].transpose(result.axis, "step").values):
        for j, value in enumerate(row):
            if np.isfinite(value):
                left.text(j, i, f"{value:.2f}".removeprefix("0"), fontsize=6.5, ha="center", va="center",
                          color="white" if value > 0.6 else "black")  # fmt: skip
    figure.colorbar(image, ax=left, pad=0.01, shrink=0.9).set_label("accuracy", fontsize=8)
    mean, y = whole["mean"].values, np.arange(m)
    reach = np.nan_to_num(np.stack((mean - whole["low"].values, whole["high"].values - mean))).clip(min=0)
    right.barh(y, np.nan_to_num(mean), xerr=reach, color=_COLOURS["least"], height=0.6, error_kw=dict(lw=0.9, ecolor="0.2"))
    if chance is not None:
        label = result.random_words("set, same size", "sets, same size")
        right.plot(chance, y, "d", color="black", mfc="white", ms=5, label=label)
        right.legend(fontsize=7.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.35 / max(m * 0.42, 1)))
    right.set_xlim(0, 1.05)
    _plain(right, across="accuracy over all steps")
    n = plural(int(whole["n"].max()), "example")
    _frame(figure, f"{result.about['model']}: {result.title.lower()}", [
        f"{n}; bars: 95 % bootstrap; accuracy: "
        + ("agreement with the untouched model" if result.main == "agrees" else "every token of the gold word"),
        f"other heads replaced by {result.about['settings']['replaced_by']}",
        *result.about["notes"],
    ])  # fmt: skip
    return _saved(figure, path)


def overlap_figure(result: HeadOverlap, *, path: str | PathLike | None = None) -> Figure:
    """F1 of every two sets on the left, and its distance from chance on the right."""
    names = [str(n).replace("_", " ") for n in result.data["set"].values]
    f1, chance = result.data["f1"].values, result.data["f1_chance"].values
    n = len(names)
    side = min(max(2.6, 0.3 * n + 1.2), 8.0)
    figure = Figure(figsize=(2 * side + 1.6, side + 1.2), layout="constrained")
    for axis, grid, label, (low, high), colours in zip(
        figure.subplots(1, 2), (f1, f1 - chance), ("F1", "F1 above chance"), ((0, 1), (-1, 1)), ("Blues", "RdBu")
    ):
        image = axis.imshow(grid, vmin=low, vmax=high, cmap=colours)
        axis.set_facecolor("0.85")
        axis.set_xticks(range(n), names, rotation=90, fontsize=7 if n > 12 else 8)
        axis.set_yticks(range(n), names, fontsize=7 if n > 12 else 8)
        if n <= 12:
            for i in range(n):
                for j in range(n):
                    if np.isfinite(grid[i, j]):
                        dark = abs(grid[i, j]) > 0.6
                        number = f"{grid[i, j]:.2f}".replace("0.", ".", 1).replace("-", "−")
                        axis.text(j, i, number, fontsize=6.5, ha="center", va="center", color="white" if dark else "black")
        figure.colorbar(image, ax=axis, shrink=0.8, pad=0.02).set_label(label, fontsize=8)
    s = result.about["settings"]
    heads = f"sets of {s['heads']} heads; chance: random sets of the same sizes"
    whose = f"{result.about['model']}: " if result.about["model"] else ""
    _frame(figure, f"{whose}{result.title.lower()}", [heads])
    return _saved(figure, path)


def _plain(axis: Axes, *, across: str = "", up: str = "") -> None:
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
    axis.tick_params(labelsize=7.5, length=2)
    axis.spines[["top", "right"]].set_visible(False)
