"""Results of `answer_writers` made by hand, for the claims that they decide."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pycotmech.cot.analyses.answer_writers import AnswerWriters

KINDS = {0: "decision", 1: "copying", 3: "copying", 5: "induction"}
"""Steps and their kinds; at the first no other word competes."""


def written(
    writers,
    *,
    competitors=0.0,
    one=1.0,
    together=-1.0,
    matched=1.0,
    late=1.0,
    late_logit=0.9,
    late_competitor=0.5,
    n_layers=4,
):
    """`answer_writers` with these numbers: a number (of 40 examples), [example], or [example, step] over `KINDS`.

    one, together, matched: margins left. What belongs to writers is NaN where there are none, and what to a competitor at
    the first step.
    """
    given = (writers, competitors, one, together, matched, late, late_logit, late_competitor)
    n = max((len(x) for x in map(np.asarray, given) if x.ndim), default=40)
    steps = list(KINDS)

    def grid(x):
        x = np.asarray(x, float)
        return np.broadcast_to(x if x.ndim != 1 else x[:, None], (n, len(steps))).copy()

    number = grid(writers)
    rival, logit, other = grid(competitors), grid(late_logit), grid(late_competitor)
    rival[:, 0] = other[:, 0] = np.nan
    margins = {
        f"margin_{k}": np.where(number > 0, grid(v), np.nan)
        for k, v in (("one", one), ("together", together), ("matched", matched))
    }
    by_threshold = {"writers": number, "competitor_writers": rival, "late": np.where(number > 0, grid(late), np.nan), **margins}
    dims = ("example", "step", "threshold")
    data = {k: (dims, np.repeat(v[..., None], 3, -1)) for k, v in by_threshold.items()}
    data |= {"late_logit": (dims[:2], logit), "late_competitor_logit": (dims[:2], other)}
    data["competitors"] = (dims[:2], np.isfinite(rival).astype(float))
    data["contrast"] = (("layer",), np.zeros(n_layers))
    coords = {"step": steps, "kind": ("step", list(KINDS.values())), "threshold": [0.01, 0.1, 0.5]}
    return {"answer_writers": AnswerWriters(xr.Dataset(data, coords=coords), {})}
