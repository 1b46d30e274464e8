"""The claims of the paper's abstract, and what a model's results say to each: borne out, not borne out, or not decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pycotmech.cot.analyses import described
from pycotmech.stats import bootstrap

Word = Literal["borne out", "not borne out", "not decided"]
Results = Mapping[str, Any]
"""Entry name -> its Analysis."""
ENOUGH = 0.8
"""Share of the steps that a set of heads has to keep right to be called enough for them."""


@dataclass(frozen=True)
class Verdict:
    """What the results say to a claim, and the numbers it rests on."""

    word: Word
    evidence: str


@dataclass(frozen=True)
class Claim:
    """text: in our words. source: in the paper. judge: from results to a verdict. by_layer: whether it says in which part of
    the layers something is found, which a single layer can neither bear out nor deny."""

    name: str
    text: str
    source: str
    judge: Callable[[Results], Verdict]
    by_layer: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The analyses that decide it: those that say so."""
        return tuple(d.name for d in described() if self.name in d.claims)

    def verdict(self, results: Results) -> Verdict:
        missing = [name for name in self.needs if name not in results]
        if missing:
            return Verdict("not decided", f"needs {', '.join(missing)}, which was not run")
        if self.by_layer and any(_n_layers(results[name]) == 1 for name in self.needs):
            return Verdict("not decided", "the model has one layer, and so no earlier and later ones to compare")
        return self.judge(results)


def _n_layers(result: Any) -> int | None:
    """Of the model that a result is of; None if its axes do not say."""
    sizes = result.data.sizes
    return sizes["layer"] if "layer" in sizes else sizes["depth"] - 1 if "depth" in sizes else None


def decided(low: float, high: float, threshold: float, evidence: str = "", *, n: int, above: bool = True) -> Verdict:
    """Borne out if the whole interval over n examples lies on the claim's side of the threshold, not borne out if on the other.

    Not decided, with the reason after the evidence, if it contains the threshold, if there is none, or if it has no width and
    too few examples (see `bootstrap.undecidable`).
    """
    if why := bootstrap.undecidable(low, high, n):
        return Verdict("not decided", _joined(evidence, why))
    if (low > threshold) if above else (high < threshold):
        return Verdict("borne out", evidence)
    if (high <= threshold) if above else (low >= threshold):
        return Verdict("not borne out", evidence)
    return Verdict("not decided", _joined(evidence, f"the interval holds the threshold {threshold:g}"))


def _joined(evidence: str, why: str) -> str:
    return f"{evidence}; {why}" if evidence else why


def combined(evidence: str, parts: Mapping[str, Verdict]) -> Verdict:
    """Of a claim with several parts: borne out if each of them is, not borne out if any is not. Parts that are open stand
    with their reason."""
    for word, said in (("not borne out", "not so"), ("not decided", "open")):
        found = [part + (f" ({its.evidence})" if its.evidence else "") for part, its in parts.items() if its.word == word]
        if found:
            return Verdict(word, f"{evidence}; {said}: {', '.join(found)}")  # type: ignore[arg-type]
    return Verdict("borne out", evidence)


def _above(x: bootstrap.Interval, threshold: float, evidence: str = "") -> Verdict:
    """Whether a quantity is above the threshold."""
    return decided(float(x.low), float(x.high), threshold, evidence, n=int(x.n))


def _verdict(true: bool | None, why: str = "") -> Verdict:
    """Of what was found to be true or false, or None: open, and why."""
    return Verdict("not decided", why) if true is None else Verdict("borne out" if true else "not borne out", "")


def _rift(results: Results) -> Verdict:
    found = results["functional_rift"]
    r, last = found.rift(), int(found.data["depth"].max())
    if r.n == 0:
        return Verdict("not decided", "no position has a memorised next word and another one in the prompt")
    if not np.isfinite(r.change):  # nothing rises, or what rises may be noise
        if not np.isfinite(r.rise[0]):
            return Verdict("not borne out", r.none_found())
        parts = {"the prompt takes over": _turned(r), "a change": _verdict(None, "what rises may be noise")}
        return combined(r.none_found(), parts)
    evidence = (
        f"context minus prior changes most at depth {r.words('change')} of {last}, n = {r.n}; {r.words('abruptness')} of its "
        "rise within one layer of it"
    )
    inside, outside = last / 3 <= r.low and r.high <= 2 * last / 3, r.high < last / 3 or r.low > 2 * last / 3
    why = bootstrap.undecidable(r.low, r.high, r.n)
    where = _verdict(None if why else True if inside else False if outside else None, why or "the interval lies in and outside")
    return combined(
        evidence,
        {
            "the prompt takes over": _turned(r),
            "in the middle third": where,
            "half of the rise within one layer": decided(r.abrupt[0], r.abrupt[1], 0.5, n=r.n),
        },
    )


def _turned(rift: Any) -> Verdict:
    return _verdict(rift.turned, "one example has no interval" if rift.n == 1 else "")


def _pathways(results: Results) -> Verdict:
    """More than one head at a time says the answer, and more than say the counterfactual's word."""
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    mean = data[["writers", "control_writers", "sources"]].isel(threshold=at).mean("step")
    found = {name: bootstrap.mean_interval(mean[name].values, within=bootstrap.COUNT) for name in mean.data_vars}
    w, c, s = found["writers"], found["control_writers"], found["sources"]
    evidence = (
        f"{w.words('{:.1f}')} heads at a time write the answer with probability 0.1 or more (the counterfactual's word: "
        f"{c.words('{:.1f}')}), looking themselves at {s.words('{:.1f}')} places where it occurs; n = {int(w.n)}"
    )
    more = bootstrap.mean_interval((mean["writers"] - mean["control_writers"]).values)
    return combined(
        evidence,
        {
            "more than one writer": _above(w, 1.0),
            "more than of the counterfactual's word": _above(more, 0.0),
        },
    )


def _sources(results: Results) -> Verdict:
    """Pathways lead to the question and to the generated text alike."""
    found = results["answer_sources"]
    number = found.data["pathways"].sum("step", min_count=1).transpose("example", "place")
    total = number.sum("place").values
    if not np.nansum(total) > 0:
        return Verdict("not decided", "no head writes the answer, so there is no pathway")
    share = {
        p: bootstrap.ratio_interval(number.sel(place=p).values, total, within=bootstrap.SHARE)
        for p in ("question", "generated", "few_shot")
    }
    evidence = "pathways take the answer from " + ", ".join(
        f"{place.replace('_', '-')} {x.words()}" for place, x in share.items()
    )
    parts = {f"more than 5 % from the {place} text": _above(share[place], 0.05) for place in ("question", "generated")}
    return combined(f"{evidence}; n = {int(share['question'].n)}", parts)


def _late_writers(results: Results) -> Verdict:
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    late = bootstrap.mean_interval(data["late"].isel(threshold=at).mean("step").values, within=bootstrap.SHARE)
    if late.n == 0:
        return Verdict("not decided", "no head writes the answer with probability 0.1 or more")
    evidence = f"{late.words()} of the answer's writers lie in the later half; n = {int(late.n)}"
    return _above(late, 0.9, evidence)


def _movers(results: Results) -> Verdict:
    found = results["relation_heads"]
    heads, share = found.heads("related"), found.first_half("related")
    if not heads:
        return Verdict("not borne out", "no head looks along related words beyond chance")
    evidence = (
        f"{len(heads)} heads look along related words; {share.words()} of their score lies in the first half of the layers"
    )
    return _above(share, 0.5, f"{evidence}; n = {int(share.n)}")


def _shared_heads(results: Results) -> Verdict:
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
            "a minority of the heads": _verdict(2 * row.kept < row.kept + row.removed),
            f"{ENOUGH:.0%} of the steps": decided(row.low, row.high, ENOUGH, n=row.n),
            "more than random heads": decided(row.gain_low, row.gain_high, 0.0, n=row.n)
            if drawn
            else _verdict(None, "none were tried"),
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


def _mixing(results: Results) -> Verdict:
    """At a depth of the lower two thirds, chosen on other questions, a probe gains on the embedding and on local syntax, and
    calls most subjects and objects of different sentences unrelated: what knows the words' roles alone does not."""
    found = results["pair_probes"]
    last = int(found.data["depth"].max())
    depth = found.best("mlp", upto=2 / 3 * last)
    at = list(found.data["depth"].values).index(depth)
    confusion = found.data["confusion"].sel(probe="mlp").transpose("example", "depth", "label", "predicted").values
    hits, judged = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1), confusion.sum((-2, -1))
    accuracy = hits / np.where(judged > 0, judged, np.nan)
    first = bootstrap.ratio_interval(hits[:, at], judged[:, at], within=bootstrap.SHARE)
    beside = {"embedding": accuracy[:, 0], "two tokens before each word": found.data["neighbours"].values}
    gains = {
        f"above the {name}": bootstrap.mean_interval(accuracy[:, at] - x, within=bootstrap.SHARES_APART)
        for name, x in beside.items()
    }
    apart = found.data["across"].sel(probe="mlp").transpose("example", "depth").values[:, at]
    across = bootstrap.mean_interval(apart, within=bootstrap.SHARE)
    above = ", ".join(f"{x.words()} {name}" for name, x in gains.items())
    evidence = (
        f"a non-linear probe separates related, negated and unrelated words with {first.words()} at depth {depth} of {last}, "
        f"the best of the lower two thirds, {above}; of unrelated subjects and objects of different sentences it calls "
        f"{across.words()} unrelated; n = {int(first.n)}"
    )
    parts = {name: _above(x, 0.0) for name, x in gains.items()}
    parts["most of these called unrelated"] = _above(across, 0.5)
    return combined(evidence, parts)


def _abidance(results: Results) -> Verdict:
    found = results["context_abidance"]
    half = found.data.sizes["layer"] // 2
    share = found.data["abides"].mean("head").mean("step").transpose("example", "layer").values
    lower, upper = share[:, :half].mean(1), share[:, half:].mean(1)
    rise = bootstrap.mean_interval(upper - lower, within=bootstrap.SHARES_APART)
    low, high = (bootstrap.mean_interval(x, within=bootstrap.SHARE) for x in (lower, upper))
    evidence = (
        f"the likeliest token that a head writes occurs in the prompt in {low.words()} below the middle, {high.words()} above"
    )
    return _above(rise, 0.0, f"{evidence}; n = {int(rise.n)}")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "shared_heads",
        "Steps with different needs use almost the same heads: a minority of them is enough for all.",
        "abstract; E5, E6",
        _shared_heads,
        by_layer=False,
    ),
    Claim(
        "movers",
        "Heads that move information along the relations of the ontology appear in the first half of the layers.",
        "abstract; E10",
        _movers,
    ),
    Claim(
        "mixing",
        "Residual streams of related words come to hold their relation in the lower and middle layers.",
        "abstract; E9",
        _mixing,
    ),
    Claim(
        "pathways",
        "Multiple pathways write the answer in parallel.",
        "abstract; E8",
        _pathways,
        by_layer=False,
    ),
    Claim(
        "sources",
        "The pathways take the answer from the question and from the steps that were generated.",
        "abstract; E8",
        _sources,
        by_layer=False,
    ),
    Claim(
        "writers",
        "The heads that write the answer lie in the later half of the layers.",
        "abstract; E8",
        _late_writers,
    ),
    Claim(
        "rift",
        "There is a functional rift in the middle of the model: residual streams follow bigrams of pretraining before it "
        "and the prompt after it, abruptly.",
        "abstract; E11",
        _rift,
    ),
    Claim(
        "abidance",
        "What heads write occurs in the prompt more often in the upper half of the layers than in the lower.",
        "E8, context-abidance",
        _abidance,
    ),
)
