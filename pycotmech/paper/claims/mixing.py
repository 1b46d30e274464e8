"""Residual streams of related words come to hold their relation by the middle layers (abstract; E9)."""

from __future__ import annotations

from pycotmech.cot.analyses.pair_probes import alone
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap

LEAST = 0.05
"""If the whole interval of a gain in accuracy lies below this, streams do not hold the relation, whether it is zero or not."""


def judge(results: Results) -> Verdict:
    """At the depth and with the probe that did best on other questions, of the lower two thirds, words that only entailment
    relates are distinguished from unrelated ones at the same places, better than by each of the nulls."""
    found = results["pair_probes"]
    if found.about["settings"]["definition"] == "paper":
        return Verdict(
            "not decided", "the three classes differ in their surface and cannot show that a model holds the relation"
        )
    probe, depth = found.choice()
    at, last = {"probe": probe, "depth": depth}, found.about["settings"]["n_layers"]
    accuracy, gains = found.accuracy().sel(at), found.gains()
    inside = bootstrap.ends(accuracy["low"], accuracy["high"])
    above = ", ".join(f"{bootstrap.points(*gain[:3])} above {name}" for name, gain in gains.items())
    evidence = (
        f"a {probe} probe distinguishes words that only entailment relates from unrelated ones at the same places with "
        f"{float(accuracy['mean']):.0%}{inside} at depth {depth} of {last}, the best of the lower two thirds, {above}; "
        f"n = {int(accuracy['n'])}"
    )
    known = bootstrap.mean_interval(found.data["stated"].sel(at).values, within=bootstrap.SHARE)
    if known.n:
        evidence += f"; words that one sentence relates it distinguishes with {known.words()}"
    evidence += f". {found.conclusion().capitalize()}"
    null = ", ".join(f"{name} {alone(x)}" for name, x in found.baselines().items())
    verdict = combined(evidence, {f"above {name}": _gained(gain) for name, gain in gains.items()}, null=null)
    if verdict.word == "not borne out" and known.n and not known.low > found.chance:
        why = "open: the probe does not find what one sentence relates either, and may miss what is there"
        return Verdict("not decided", f"{evidence}; {why}", null)
    return verdict


def _gained(gain: bootstrap.Interval) -> Verdict:
    """Above 0, or below `LEAST`, or open."""
    low, high, n = float(gain.low), float(gain.high), int(gain.n)
    if low <= 0 and high < LEAST and not bootstrap.undecidable(low, high, n):
        return Verdict("not borne out", "")
    return is_above(gain, 0.0)


CLAIM = Claim(
    "mixing",
    "Residual streams of words that are related only by entailment come to hold their relation in the lower and middle layers.",
    "abstract; E9",
    judge,
    "surface (positions, neighbouring tokens); embedding; random weights",
)
