"""What heads write occurs in the prompt more often in the upper half of the layers (E8)."""

from __future__ import annotations

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
    found = results["context_abidance"]
    half = found.data.sizes["layer"] // 2
    share = found.data["abides"].mean("head").mean("step").transpose("example", "layer").values
    lower, upper = share[:, :half].mean(1), share[:, half:].mean(1)
    rise = bootstrap.mean_interval(upper - lower, within=bootstrap.SHARES_APART)
    low, high = (bootstrap.mean_interval(x, within=bootstrap.SHARE) for x in (lower, upper))
    evidence = (
        f"the likeliest token that a head writes occurs in the prompt in {low.words()} below the middle, {high.words()} above"
    )
    return is_above(rise, 0.0, f"{evidence}; n = {int(rise.n)}")


CLAIM = Claim(
    "abidance",
    "What heads write occurs in the prompt more often in the upper half of the layers than in the lower.",
    "E8, context-abidance",
    judge,
    "the lower half of the layers",
)
