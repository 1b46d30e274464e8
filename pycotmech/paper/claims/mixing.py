"""Residual streams of related words hold their relation by the middle layers (abstract; E9)."""

from __future__ import annotations

from pycotmech.cot.analyses.pair_probes import alone
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap

LEAST = 0.05
"""A gain in accuracy whose whole interval lies below this shows no relation, even if it is above zero."""


def judge(results: Results) -> Verdict:
    """Judges whether a probe distinguishes words related only by entailment from unrelated words at the same places, better
    than each of the nulls does. Depth (in the lower two thirds) and probe are those that did best on other questions."""
    found = results["pair_probes"]
    if found.about["settings"]["definition"] == "paper":
        return Verdict(
            "not decided", "the three classes differ in their surface and cannot show that a model encodes the relation"
        )
    probe, depth = found.choice()
    at, last = {"probe": probe, "depth": depth}, found.about["settings"]["n_layers"]
    accuracy, gains = found.accuracy().sel(at), found.gains()
    inside = bootstrap.ends(accuracy["low"], accuracy["high"])
    above = ", ".join(f"{bootstrap.points(*gain[:3])} above {name}" for name, gain in gains.items())
    evidence = (
        f"a {probe} probe distinguishes words related only by entailment from unrelated words at the same places with accuracy "
        f"{float(accuracy['mean']):.0%}{inside} at depth {depth} of {last}, the best of the lower two thirds: {above}; "
        f"n = {int(accuracy['n'])}"
    )
    known = bootstrap.mean_interval(found.data["stated"].sel(at).values, within=bootstrap.SHARE)
    if known.n:
        evidence += f"; on words that one sentence relates, its accuracy is {known.words()}"
    evidence += f". {found.conclusion().capitalize()}"
    null = ", ".join(f"{name} {alone(x)}" for name, x in found.baselines().items())
    verdict = combined(evidence, {f"above {name}": _gained(gain) for name, gain in gains.items()}, null=null)
    if verdict.word == "not borne out" and known.n and not known.low > found.chance:
        why = "open: the probe does not find relations stated in one sentence either, and may miss what is there"
        return Verdict("not decided", f"{evidence}; {why}", null)
    return verdict


def _gained(gain: bootstrap.Interval) -> Verdict:
    """Borne out above 0, not borne out below `LEAST`, open otherwise."""
    low, high, n = float(gain.low), float(gain.high), int(gain.n)
    if low <= 0 and high < LEAST and not bootstrap.undecidable(low, high, n):
        return Verdict("not borne out", "")
    return is_above(gain, 0.0)


CLAIM = Claim(
    "mixing",
    "Residual streams of words that are related only by entailment encode their relation in the lower and middle layers.",
    "abstract; E9",
    judge,
    "surface (positions, neighbouring tokens); embedding; random weights",
)
