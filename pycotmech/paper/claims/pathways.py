"""Multiple pathways write the answer in parallel (abstract; E8).

Pathways are parallel if several heads write the answer, but do not write every word of the prompt alike, and if the answer
survives the loss of any one of them, but not the loss of all. Each step is judged by itself, against another word of the
prompt that could stand in the answer's place. A step whose prompts have no such word does not count. Intervals are corrected
for the number of steps (Bonferroni), and the claim is borne out if more than half of these steps bear out all its parts.

The verdict's values are, for each example, how many more writers the answer has than the other word, averaged over these steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pycotmech.cot.analyses.answer_writers import AnswerWriters
from pycotmech.paper.claims.verdict import Claim, Results, Verdict, briefly, combined, decided, is_above
from pycotmech.stats import bootstrap

THRESHOLD = 0.1
"""The least probability of the answer in what a head writes that makes the head a writer."""


class Step(NamedTuple):
    """What one step shows. name: its number. verdict: on all parts of the claim. found, null: evidence and null in words."""

    name: int
    verdict: Verdict
    found: str
    null: str


def judge(results: Results) -> Verdict:
    """Judges each step that has another word to compare with, and the claim by the majority of these steps."""
    found = results["answer_writers"]
    data = found.data
    t = int(np.argmin(np.abs(data["threshold"].values - THRESHOLD)))
    has = (data["competitors"] > 0).any("example").values
    names = [int(step) for step in data["step"].values]
    absent = [str(name) for name, there in zip(names, has) if not there]
    none = f"no other word could take the answer's place at steps {', '.join(absent)}, which do not count" if absent else ""
    if not has.any():
        return Verdict("not decided", none, data=False)
    level = 1 - (1 - bootstrap.LEVEL) / int(has.sum())
    steps = [_judged(found, t, int(i), level) for i in np.flatnonzero(has)]
    words = [s.verdict.word for s in steps]
    held, denied, m = words.count("borne out"), words.count("not borne out"), len(steps)
    parts = [f"step {s.name}: {s.found}" for s in steps]
    evidence = "; ".join([f"holds at {held} of {m} steps and fails at {denied}", *([none] if none else []), *parts])
    word = "borne out" if 2 * held > m else "not borne out" if 2 * denied >= m else "not decided"
    null = "; ".join(f"step {s.name}: {s.null}" for s in steps)
    beyond = (data["writers"] - data["competitor_writers"]).isel(threshold=t).where(data["competitors"] > 0).mean("step")
    return Verdict(word, evidence, null, data=any(s.verdict.data for s in steps)).of(beyond.values, 0.0)


def _judged(found: AnswerWriters, t: int, i: int, level: float) -> Step:
    here = found.data.isel(threshold=t, step=i)
    counts = (here["competitors"] > 0).values
    writers, others = (here[name].where(counts).values for name in ("writers", "competitor_writers"))
    number, rival, more = (
        bootstrap.mean_interval(x, level=level, within=within)
        for x, within in ((writers, bootstrap.COUNT), (others, bootstrap.COUNT), (writers - others, None))
    )
    stays = {}
    for name in ("one", "together", "matched"):
        margin = here[f"margin_{name}"].where(counts).values
        stays[name] = np.where(np.isfinite(margin), margin > 0, np.nan)
    one, together, matched = (bootstrap.mean_interval(x, level=level, within=bootstrap.SHARE) for x in stays.values())
    spared = bootstrap.mean_interval(stays["matched"] - stays["together"], level=level)
    parts = {
        "more than one writer": is_above(number, 1.0, level=level),
        "more than of another word": is_above(more, 0.0, level=level),
        "the answer survives the loss of any one": is_above(one, 0.5, level=level),
        "but not of all": decided(float(together.low), float(together.high), 0.5, n=int(together.n), above=False, level=level),
        "which other heads do not carry": is_above(spared, 0.0, level=level),
    }
    words = (
        f"{number.words('{:.1f}')} writers; the answer survives the loss of any one: {one.words()}, of all: "
        f"{together.words()}; n = {int(number.n)}"
    )
    null = (
        f"{rival.words('{:.1f}')} writers of the other word; the answer survives the loss of as many other heads: "
        f"{matched.words()}"
    )
    return Step(int(here["step"]), combined("", parts), f"{words}, {briefly(parts)}", null)


CLAIM = Claim(
    "pathways",
    "Multiple pathways write the answer in parallel.",
    "abstract; E8",
    judge,
    "another word of the prompt in the answer's place; as many other heads of the same layers knocked out",
    by_layer=False,
)
