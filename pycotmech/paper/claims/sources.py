"""The pathways take the answer from the question and from the generated steps (abstract; E8)."""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    """Pathways lead to the question and to the generated text alike."""
    found = results["answer_sources"]
    number = found.data["pathways"].sum("step", min_count=1).transpose("example", "place")
    total = number.sum("place").values
    if not np.nansum(total) > 0:
        return Verdict("not decided", "no head writes the answer, so there is no pathway", data=False)
    share = {
        p: bootstrap.ratio_interval(number.sel(place=p).values, total, within=bootstrap.SHARE)
        for p in ("question", "generated", "few_shot")
    }
    evidence = "pathways take the answer from " + ", ".join(
        f"{place.replace('_', '-')} {x.words()}" for place, x in share.items()
    )
    parts = {f"more than 5 % from the {place} text": is_above(share[place], 0.05) for place in ("question", "generated")}
    return combined(f"{evidence}; n = {int(share['question'].n)}", parts)


CLAIM = Claim(
    "sources",
    "The pathways take the answer from the question and from the steps that were generated.",
    "abstract; E8",
    judge,
    "5 % of the pathways",
    by_layer=False,
)
