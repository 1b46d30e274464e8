"""The heads that write the answer lie in the later half of the layers (abstract; E8)."""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    late = bootstrap.mean_interval(data["late"].isel(threshold=at).mean("step").values, within=bootstrap.SHARE)
    if late.n == 0:
        return Verdict("not decided", "no head writes the answer with probability 0.1 or more", data=False)
    evidence = f"{late.words()} of the answer's writers lie in the later half; n = {int(late.n)}"
    return is_above(late, 0.9, evidence)


CLAIM = Claim(
    "writers",
    "The heads that write the answer lie in the later half of the layers.",
    "abstract; E8",
    judge,
    "",
)
