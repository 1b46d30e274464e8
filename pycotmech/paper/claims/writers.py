"""The heads that write the answer lie in the later half of the layers (abstract; E8).

Two things must hold: most of the writers lie there, and more of what heads bring of the answer's logit is brought there than of
the logit of another word of the prompt that could stand in its place. Writers spread evenly would lie there in half of the
cases; that late heads are louder for any word of the prompt bears nothing out about the answer.
"""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
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
        f"{late.words()} of the answer's writers lie in the later half"
        if late.n
        else "no head writes the answer with probability 0.1 or more"
    )
    evidence = f"{writers}; of the logit that heads bring the answer, those there bring {brought.words()}"
    evidence += f"; n = {int(max(late.n, brought.n))}"
    null = f"{(L - (L + 1) // 2) / L:.0%} of heads lie there; of another word's logit they bring {rival.words()}"
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
