"""Heads that move information along relations lie in the first half of the layers (abstract; E10)."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from pycotmech._words import plural
from pycotmech.cot.tools.result import top_cells
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap
from pycotmech.stats.power import examples_needed

LEVEL = 0.05


def judge(results: Results) -> Verdict:
    """Judges whether more than half of the gain over other verbs lies in the first half of the layers, and more than with as
    many heads anywhere. That no head is found denies it only where the questions are enough to exclude such a head."""
    found = results["relation_heads"]
    heads, share, anywhere = found.heads("related"), found.first_half("related"), found.anywhere("related")
    looking, stays = int(found.data["looks"].sel(relation="related").sum()), found.stays("related")
    those = plural(looking, "head")
    null = f"{stays.words()} of the score of {those} remains with {found.verbs}" if looking else ""
    if (least := found.least_p("related")) >= found.about["settings"]["level"]:
        return Verdict("not decided", f"with so few questions to choose on no head can have a p-value below {least:.2g}")
    if not looking:
        return _none(found, "score", "no head attends along related words more than along unrelated ones", null)
    if not heads:
        why = f"of {those} that attend along related words, none attends less with {found.verbs} as the verb"
        return _none(found, "gain", why, null)
    evidence = f"{len(heads)} of {those} that attend along related words attend less with {found.verbs} as the verb"
    if not np.isfinite(share.mean) or not len(anywhere):
        return Verdict("not decided", f"{evidence}, but none does on most halves of the questions; n = {int(share.n)}", null)
    evidence += f"; {share.words()} of their gain over these verbs lies in the first half of the layers; n = {int(share.n)}"
    low, high = np.percentile(anywhere, [2.5, 97.5])
    null += f"; with as many heads anywhere, {anywhere.mean():.0%} [{low:.0%}, {high:.0%}] of the gain lies in the first half"
    by_examples = is_above(share, 0.5)
    if by_examples.word != "borne out":
        return Verdict(by_examples.word, f"{evidence}; {by_examples.evidence}".rstrip("; "), null)
    chance = float((1 + (anywhere >= float(share.mean) - 1e-9).sum()) / (1 + len(anywhere)))  # the heads themselves counted in
    placed = Verdict(
        "borne out" if chance < LEVEL else "not decided", f"as many heads anywhere reach this with p = {chance:.2f}"
    )
    return combined(evidence, {"above one half": by_examples, "beyond where heads lie by chance": placed}, null=null)


def _none(found: Any, variable: Literal["score", "gain"], evidence: str, null: str) -> Verdict:
    """The verdict where the tests select no head. A test that finds nothing excludes nothing: the claim is denied only if the
    strongest head, of those that may have a gain, lies below the least size on the questions that did not choose it."""
    least, half = found.about["settings"]["least"], found.data["half"].values
    every = (found.gain if variable == "gain" else found.data["score"]).sel(relation="related")
    choosing = every.isel(example=np.flatnonzero(half == "choose")).mean("example")
    if variable == "gain":
        choosing = choosing.where(found.data["looks"].sel(relation="related"))
    ((l, h, _),) = top_cells(choosing, 1)
    values = every.isel(example=np.flatnonzero(half == "report")).sel(layer=l, head=h).values
    x = bootstrap.mean_interval(values)
    evidence += f"; the {variable} of the strongest, L{l}H{h}, is {x.words('{:+.2f}')}, n = {int(x.n)}"
    if x.n >= bootstrap.FEWEST_ALIKE and x.high < least:
        return Verdict("not borne out", evidence, null)
    needed = examples_needed(values, least)
    more = f", which about {2 * int(needed)} questions would decide" if int(x.n) < needed < math.inf else ""
    return Verdict("not decided", f"{evidence}, so that {least:g} or more is not excluded{more}", null)


CLAIM = Claim(
    "movers",
    "Heads that move information along the relations of the ontology appear in the first half of the layers.",
    "abstract; E10",
    judge,
    "the same sentences with a verb that relates nothing",
)
