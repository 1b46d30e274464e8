"""The pathways take the answer from the question and from the generated steps (abstract; E8).

A step is judged if the answer's word stands in both places. A place is a source there if more of the pathways lead to the word
than to the words beside it. Intervals are corrected for the number of steps (Bonferroni), and the claim is borne out if both
places are sources at more than half of these steps. The verdict's values are, for each example, the excess of pathways in the
place that has less, averaged over these steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from pycotmech.cot.analyses.answer_sources import OTHER_WORDS
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, briefly, combined, is_above
from pycotmech.stats import bootstrap

PLACES = ("question", "generated")


class Step(NamedTuple):
    """What one step shows. found, null: the evidence and the null in words."""

    verdict: Verdict
    found: str
    null: str


def judge(results: Results) -> Verdict:
    """Judges whether pathways lead both to the question and to the generated text."""
    found = results["answer_sources"]
    if not found.data["pathways"].sum() > 0:
        return Verdict("not decided", "no head writes the answer, so there is no pathway", data=False)
    judged = np.flatnonzero(found.beyond()["n"].sel(segment="question").values)
    if not len(judged):
        return Verdict("not decided", "the answer's word stands in both places at no step that has a pathway", data=False)
    level = 1 - (1 - bootstrap.LEVEL) / len(judged)
    beyond, share, aside = (found.beyond(of, level=level) for of in ("difference", "pathways", "control_pathways"))
    steps = [_judged(beyond.isel(step=i), share.isel(step=i), aside.isel(step=i), level) for i in judged]
    words = [step.verdict.word for step in steps]
    held, denied, m = words.count("borne out"), words.count("not borne out"), len(steps)
    line = f"both places are sources at {held} of the {m} steps where the word stands in both; at {denied} they are not"
    shots = "" if found.in_shots else f"; no pathway leads to the few-shot block, {OTHER_WORDS}"
    word = "borne out" if 2 * held > m else "not borne out" if 2 * denied >= m else "not decided"
    return Verdict(
        word,
        "; ".join([line + shots, *(s.found for s in steps)]),
        "; ".join(s.null for s in steps),
        data=any(s.verdict.data for s in steps),
    ).of(found.beyond_in_each(PLACES), 0.0)


def _judged(beyond: xr.Dataset, share: xr.Dataset, aside: xr.Dataset, level: float) -> Step:
    def interval(x: xr.Dataset, place: str) -> bootstrap.Interval:
        return bootstrap.Interval(*(x[name].sel(segment=place).values for name in bootstrap.Interval._fields))

    def words(x: xr.Dataset) -> str:
        return f"step {int(x['step'])}: " + ", ".join(f"{place} {interval(x, place).words()}" for place in PLACES)

    parts = {place: is_above(interval(beyond, place), 0.0, level=level) for place in PLACES}
    n = int(interval(beyond, PLACES[0]).n)
    return Step(combined("", parts), f"{words(share)}; n = {n}, {briefly(parts)}", words(aside))


CLAIM = Claim(
    "sources",
    "The pathways take the answer from the question and from the steps that were generated.",
    "abstract; E8",
    judge,
    "pathways to the words beside the answer's",
    by_layer=False,
)
