"""Multiple pathways write the answer in parallel (abstract; E8)."""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    """More than one head at a time says the answer, and more than say the counterfactual's word."""
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    mean = data[["writers", "control_writers", "sources"]].isel(threshold=at).mean("step")
    found = {name: bootstrap.mean_interval(mean[name].values, within=bootstrap.COUNT) for name in mean.data_vars}
    w, c, s = found["writers"], found["control_writers"], found["sources"]
    evidence = (
        f"{w.words('{:.1f}')} heads at a time write the answer with probability 0.1 or more (the counterfactual's word: "
        f"{c.words('{:.1f}')}), looking themselves at {s.words('{:.1f}')} places where it occurs; n = {int(w.n)}"
    )
    more = bootstrap.mean_interval((mean["writers"] - mean["control_writers"]).values)
    return combined(
        evidence,
        {
            "more than one writer": is_above(w, 1.0),
            "more than of the counterfactual's word": is_above(more, 0.0),
        },
    )


CLAIM = Claim(
    "pathways",
    "Multiple pathways write the answer in parallel.",
    "abstract; E8",
    judge,
    "the counterfactual's word",
    by_layer=False,
)
