"""Heads write words of their own prompt rather than of others, and more so in the upper half of the layers (E8)."""

from __future__ import annotations

from dataclasses import replace

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, is_above
from pycotmech.stats.bootstrap import ends


def judge(results: Results) -> Verdict:
    """Judges whether the excess of a prompt's own words over those of other prompts rises from the lower to the upper half."""
    found = results["context_abidance"]
    half = found.data.sizes["layer"] // 2
    parts = (slice(0, half), slice(half, None))
    own, other = ([f"{float(found.shares(k, draws=1).over(part).mean):.1%}" for part in parts] for k in ("own", "elsewhere"))
    rise = found.rise()
    if not rise.n:
        why = "no head's token could be compared with another example's prompt of the same step"
        return Verdict("not decided", why, data=False)
    evidence = (
        f"the likeliest token that a head writes occurs in its own prompt in {own[0]} of cases in the lower half of the layers "
        f"and in {own[1]} in the upper half; its excess over other examples' prompts rises by {100 * float(rise.mean):.1f} "
        f"percentage points{ends(100 * rise.low, 100 * rise.high, '{:.1f}')}; n = {int(rise.n)}"
    )
    verdict = is_above(rise, 0.0, evidence)
    return replace(verdict, null=f"{other[0]} -> {other[1]}").of(found.rises(), 0.0)


CLAIM = Claim(
    "abidance",
    "What heads write occurs in the prompt more often in the upper half of the layers than in the lower.",
    "E8, context-abidance",
    judge,
    "occurrence in other examples' prompts",
)
