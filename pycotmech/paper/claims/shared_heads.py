"""A minority of the heads is enough for steps of all kinds (abstract; E5, E6)."""

from __future__ import annotations

from typing import Any

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, decided, whether
from pycotmech.stats import bootstrap

ENOUGH = 0.8
"""Share of the steps that a set of heads has to keep right to be called enough for them."""


def judge(results: Results) -> Verdict:
    """A minority of the heads, one set for all steps, keeps most of the steps right, and as many random heads do not. The
    interval of the difference is over examples: with one random set it does not hold what others would keep."""
    found = results["knock_out_curve"]
    points = found.operating_points(order="least")
    row = points[points["step"] == "all"].iloc[0]
    drawn = sum(str(order).startswith("random") for order in found.data["order"].values)
    where = "held out" if "report" in found.data["half"].values else "on which the number of heads was chosen too"
    evidence = (
        f"{int(row.kept)} of {int(row.kept + row.removed)} heads keep {row.accuracy:.0%}{bootstrap.ends(row.low, row.high)} of "
        f"the steps of all kinds right, {_random(drawn, row)}; n = {int(row.n)} {where}"
    )
    return combined(
        evidence,
        {
            "a minority of the heads": whether(2 * row.kept < row.kept + row.removed),
            f"{ENOUGH:.0%} of the steps": decided(row.low, row.high, ENOUGH, n=row.n),
            "more than random heads": decided(row.gain_low, row.gain_high, 0.0, n=row.n)
            if drawn
            else whether(None, "none were tried"),
        },
    )


def _random(drawn: int, row: Any) -> str:
    """What as many random heads keep, of how many draws, and the difference."""
    if drawn == 0:
        return "random heads were not tried"
    what = "one random set of as many" if drawn == 1 else f"the mean of {drawn} random sets of as many"
    return (
        f"{what} {row.random:.0%}{bootstrap.ends(row.random_low, row.random_high)}, a difference of {row.gain:.0%}"
        f"{bootstrap.ends(row.gain_low, row.gain_high)}"
    )


CLAIM = Claim(
    "shared_heads",
    "Steps with different needs use almost the same heads: a minority of them is enough for all.",
    "abstract; E5, E6",
    judge,
    "random sets of as many heads",
    by_layer=False,
)
