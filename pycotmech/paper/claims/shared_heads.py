"""A minority of the heads is enough for steps of all kinds, and the same heads serve each kind (abstract; E5, E6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pycotmech.cot.analyses.set_transfer import exchanged_words
from pycotmech.cot.tools.ablation_results import random_words
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, decided, is_above, whether
from pycotmech.stats import bootstrap

ENOUGH = 0.8
"""Least share of the steps that a set of heads keeps right to count as enough for them."""


def judge(results: Results) -> Verdict:
    """Judges two things:

    * one minority of the heads keeps most of all steps right, and layer-matched random sets do not;
    * the heads of one step keep most of the steps of other kinds right, which they cannot if these steps use other heads, and
      layer-matched random sets do not.

    Intervals of the differences are over examples and random sets. The verdict's values are the share of steps of other kinds
    that the heads of one step keep right, for each example.
    """
    curve, transfer = results["knock_out_curve"], results["set_transfer"]
    points = curve.operating_points(order="least")
    row = points[points["step"] == "all"].iloc[0]
    where = "held out" if "report" in curve.data["half"].values else "also used to choose the number of heads"
    evidence = (
        f"{int(row.kept)} of {int(row.kept + row.removed)} heads keep {row.accuracy:.0%}{bootstrap.ends(row.low, row.high)} of "
        f"the steps of all kinds right; n = {int(row.n)} {where}"
    )
    parts = {
        "a minority of the heads": whether(2 * row.kept < row.kept + row.removed),
        f"{ENOUGH:.0%} of the steps": decided(row.low, row.high, ENOUGH, n=row.n),
        "more than random heads of the same layers": _more(row.gain, row.gain_low, row.gain_high, row.n),
    }
    null = _null(
        f"{random_words(curve.about['settings']['n_random'])} keep",
        (row.random, row.random_low, row.random_high),
        (row.gain, row.gain_low, row.gain_high),
    )
    other = transfer.transfer("other kinds")
    accuracy, gain = other["accuracy"], other["gain"]
    if not accuracy.n:
        parts["one step's heads for steps of other kinds"] = whether(None, "the steps are all of one kind")
        return combined(evidence, parts, null=null)
    evidence += (
        f"; {transfer.about['settings']['k']} heads of one step keep {accuracy.words()} of the steps of other kinds right"
    )
    evidence += f"; n = {int(accuracy.n)}"
    parts[f"{ENOUGH:.0%} of the steps of other kinds by one step's heads"] = is_above(accuracy, ENOUGH)
    parts["more of these than random heads of the same layers"] = _more(*gain)
    words = exchanged_words(transfer.about["settings"]["n_random"])
    verdict = combined(evidence, parts, null=f"{null}; of steps of other kinds, {_null(words, other['random'], gain)}")
    return verdict.of(transfer.by_example("other kinds"), ENOUGH, share=True)


def _more(gain: Any, low: Any, high: Any, n: Any) -> Verdict:
    """Decides whether sets keep more steps right than random ones."""
    return decided(float(low), float(high), 0.0, n=int(n)) if np.isfinite(gain) else whether(None, "none were tried")


def _null(words: str, random: Sequence[Any], gain: Sequence[Any]) -> str:
    """Words for what random sets keep, and for the difference from them: each a mean and the ends of its interval."""
    if not np.isfinite(random[0]):
        return "none were tried"
    found = f"{words} {random[0]:.0%}{bootstrap.ends(random[1], random[2])}"
    return f"{found}, a difference of {bootstrap.points(*gain[:3])}"


CLAIM = Claim(
    "shared_heads",
    "Steps with different needs use almost the same heads: a minority of them is enough for all.",
    "abstract; E5, E6",
    judge,
    "random sets of as many heads in each layer; sets that hold separate heads for each kind of step",
    by_layer=False,
)
