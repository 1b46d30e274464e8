"""Faithfulness and completeness of circuits."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import xarray as xr

from pycotmech.figures.bars import interval_reach
from pycotmech.figures.frame import PALETTE, finished, small
from pycotmech.figures.library import Figure


def circuits_figure(
    share: xr.Dataset,
    random: xr.DataArray,
    full: xr.DataArray,
    circuit: xr.DataArray,
    *,
    ticks: Sequence[str],
    title: str,
    lines: Sequence[str],
    path: str | PathLike | None = None,
) -> Figure:
    """Left: what each step's circuit does of what the model does, with its interval, and random sets. Right: F(C less K)
    against F(M less K), a dot for each subset and step.

    share: mean, low, high [step]. random [draw, step]. full, circuit [subset, step].
    """
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    x = np.arange(share.sizes["step"])
    mean, low, high = (share[name].values for name in ("mean", "low", "high"))
    left.bar(
        x, np.nan_to_num(mean), yerr=interval_reach(mean, low, high), color=PALETTE[1], width=0.6,
        error_kw={"lw": 0.9, "ecolor": "0.2"}, label="circuit, held out",
    )  # fmt: skip
    drawn = random.transpose("draw", "step").values
    spread = np.linspace(-0.2, 0.2, len(drawn))
    left.scatter(
        (x[None] + spread[:, None]).ravel(), drawn.ravel(), s=7, color=PALETTE[0], zorder=3,
        label="random sets with as many heads in each layer",
    )  # fmt: skip
    left.axhline(1, color="0.4", lw=0.8, ls=":")
    left.set_xticks(x, ticks, fontsize=7)
    seen = np.concatenate([v[np.isfinite(v)] for v in (low, high, mean, drawn.ravel())])
    if len(seen):
        left.set_ylim(max(min(0.0, float(seen.min())), -1.5), min(max(1.2, float(seen.max())) + 0.35, 3.0))
    left.legend(fontsize=7, loc="upper left", frameon=False)
    small(left, across="step and number of heads", up="(F(C) - F(no head)) /\n(F(M) - F(no head))")
    for i in range(full.sizes["step"]):
        of = full.isel(step=i).values, circuit.isel(step=i).values
        if np.isfinite(of).any():
            right.scatter(*of, s=14, label=f"step {int(full['step'].values[i])}", alpha=0.8)
    known = [v[np.isfinite(v)] for v in (full.values, circuit.values)]
    if len(known[0]):
        ends = [min(float(v.min()) for v in known), max(float(v.max()) for v in known)]
        right.plot(ends, ends, color="0.4", lw=0.8, ls=":")
        right.legend(fontsize=6.5, frameon=False)
    small(right, title="completeness: K left out of both", across="F(M less K)", up="F(C less K)")
    return finished(figure, title, lines, path=path)
