"""A functional rift in the middle of the model (abstract; E11)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, decided, is_above, whether
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    """Judges whether the prompt's next word overtakes the memorised one abruptly and in the middle third of the depths, and is
    above other words of the prompt at the end. A model that merely repeats its prompt favours all of these words."""
    found = results["functional_rift"]
    r, last = found.rift(), int(found.data["depth"].max())
    if r.n == 0:
        return Verdict("not decided", "no position has a memorised next word and another one in the prompt", data=False)
    other, more = found.beyond()
    null = f"{other.words('{:.3f}')} at the last layer; the prompt's next word exceeds it by {more.words('{:+.3f}')}"
    if not np.isfinite(r.change):  # nothing rises, or what rises may be noise
        if not np.isfinite(r.rise[0]):  # of a few examples the mean may fall by chance
            return combined(r.none_found(), {"the prompt takes over": _turned(r)}, null=null)
        parts = {"the prompt takes over": _turned(r), "a change": whether(None, "what rises may be noise")}
        return combined(r.none_found(), parts, null=null)
    evidence = (
        f"context minus prior changes most at depth {r.words('change')} of {last}, n = {r.n}; {r.words('abruptness')} of its "
        "rise lies within one layer of that depth"
    )
    inside, outside = last / 3 <= r.low and r.high <= 2 * last / 3, r.high < last / 3 or r.low > 2 * last / 3
    why = bootstrap.undecidable(r.low, r.high, r.n)
    where = whether(None if why else True if inside else False if outside else None, why or "the interval lies partly outside")
    return combined(
        evidence,
        {
            "the prompt takes over": _turned(r),
            "in the middle third": where,
            "half of the rise within one layer": decided(r.abrupt[0], r.abrupt[1], 0.5, n=r.n),
            "beyond other words of the prompt": is_above(more, 0.0),
        },
        null=null,
    )


def _turned(rift: Any) -> Verdict:
    few = "" if rift.n >= bootstrap.FEWEST_ALIKE else f"{rift.n} examples are few"
    return whether(rift.turned, "one example has no interval" if rift.n == 1 else few)


CLAIM = Claim(
    "rift",
    "There is a functional rift in the middle of the model: residual streams follow bigrams of pretraining before it "
    "and the prompt after it, abruptly.",
    "abstract; E11",
    judge,
    "as many other words of the prompt, which did not follow the same word",
)
