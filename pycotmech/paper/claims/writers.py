"""The heads that write the answer lie in the later half of the layers (abstract; E8).

Two things must hold. At least 90 % of the writers lie there, where an even spread would give half. And later heads contribute a
larger share of the answer's logit than of the logit of another word of the prompt that could stand in its place: that they
write any word of the prompt more strongly is no evidence about the answer.
"""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    """Judges whether the writers, and what heads add to the answer's logit, lie in the later half of the layers."""
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    there = data["late"].isel(threshold=at).mean("step").values
    late = bootstrap.mean_interval(there, within=bootstrap.SHARE)
    has = data["late_competitor_logit"].notnull()
    logit, other = (data[name].where(has).mean("step").values for name in ("late_logit", "late_competitor_logit"))
    brought, rival = (bootstrap.mean_interval(x, within=bootstrap.SHARE) for x in (logit, other))
    more = bootstrap.mean_interval(logit - other)
    L = data.sizes["layer"]
    writers = (
        f"{late.words()} of the answer's writers lie in the later half of the layers"
        if late.n
        else "no head writes the answer with probability 0.1 or more"
    )
    evidence = f"{writers}; heads there contribute {brought.words()} of what heads add to the answer's logit"
    evidence += f"; n = {int(max(late.n, brought.n))}"
    null = (
        f"{(L - (L + 1) // 2) / L:.0%} of heads lie there; they contribute {rival.words()} of what heads add to another word's "
        "logit"
    )
    return combined(
        evidence,
        {
            "90 % of the writers": is_above(late, 0.9) if late.n else Verdict("not decided", "there are none", data=False),
            "more of the answer's logit than of another word's": is_above(more, 0.0),
        },
        null=null,
    ).of(there, 0.9, share=True)


CLAIM = Claim(
    "writers",
    "The heads that write the answer lie in the later half of the layers.",
    "abstract; E8",
    judge,
    "even over layers; the logit of another word of the prompt",
)
