"""The picture of probes on pairs of words: accuracy over the depth, beside what needs no model."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycotmech.figures.curves import line_with_band
from pycotmech.figures.frame import PALETTE, framed, small
from pycotmech.figures.library import Figure
from pycotmech.stats import bootstrap


def figure(found: Any) -> Figure:
    """Of a `PairProbes`. Left: accuracy with its interval, on random weights (dashed) and from the surface. Right, if there are
    such pairs: on words that one sentence relates."""
    data, s = found.data, found.about["settings"]
    lines = [
        f"n = {s['train']} questions to train on, {data.sizes['example']} units to test on; bands: 95 % intervals over units; "
        f"{found.about['definition']}",
        *found.about["notes"],
    ]
    stated = bool(np.isfinite(data["stated"]).any())
    picture, axes = framed(1, 1 + stated, f"{found.about['model']}: {found.title}", lines, width=4.6, height=3.4, sharex=True)
    accuracy, depth = found.accuracy(), data["depth"].values
    for j, probe in enumerate(data["probe"].values.tolist()):
        colour = PALETTE[j]
        values = [accuracy[k].isel(probe=j).values for k in ("mean", "low", "high")]
        same = np.ptp(found.by_unit().isel(probe=j).values, axis=0) == 0  # half of each unit, by construction
        values[1:] = (np.where(same, values[0], end) for end in values[1:])
        line_with_band(axes[0][0], depth, *values, color=colour, label=probe)
        random = data["random"].isel(probe=j).mean("example")
        axes[0][0].plot(depth, random, "--", color=colour, lw=1, label=f"{probe}, random weights")
        if stated:
            known = found.interval("stated").isel(probe=j)
            line_with_band(axes[0][1], depth, *(known[k].values for k in ("mean", "low", "high")), color=colour, label=probe)
    seen = bootstrap.mean_interval(data["surface"].values, within=bootstrap.SHARE)
    axes[0][0].axhline(float(seen.mean), color="0.3", lw=0.9, ls="-.", label="surface alone")
    for axis in axes[0]:
        axis.axhline(found.chance, color="0.5", lw=0.8, ls=":")
        axis.set_ylim(0, 1.02)
        axis.locator_params(axis="x", integer=True)
        axis.legend(fontsize=7, loc="lower right")
    kind = "by entailment" if "entailed" in data["label"].values else "or not"
    small(axes[0][0], title=f"words related {kind} (dotted: chance)", across="depth (0: embedding)", up="share of pairs")
    if stated:
        small(axes[0][1], title="words that one sentence relates", across="depth (0: embedding)", up="share of pairs")
    return picture
