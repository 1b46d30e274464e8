"""The claims of the paper's abstract, and what a model's results say to each: borne out, not borne out, or not decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pycotmech.cot.analyses import bootstrap

Word = Literal["borne out", "not borne out", "not decided"]
Results = Mapping[str, Any]
"""Entry name -> its Analysis."""


@dataclass(frozen=True)
class Verdict:
    """What the results say to a claim, and the numbers it rests on."""

    word: Word
    evidence: str


@dataclass(frozen=True)
class Claim:
    """text: in our words. source: in the paper. needs: results that decide it. judge: from these to a verdict."""

    name: str
    text: str
    source: str
    needs: tuple[str, ...]
    judge: Callable[[Results], Verdict]

    def verdict(self, results: Results) -> Verdict:
        missing = [name for name in self.needs if name not in results]
        if missing:
            return Verdict("not decided", f"needs {', '.join(missing)}, which was not run")
        return self.judge(results)


def decided(low: float, high: float, threshold: float, evidence: str, *, above: bool = True) -> Verdict:
    """Borne out if the whole interval lies on the claim's side of the threshold, not borne out if on the other."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return Verdict("not decided", f"{evidence}; too few examples for an interval")
    if (low > threshold) if above else (high < threshold):
        return Verdict("borne out", evidence)
    if (high <= threshold) if above else (low >= threshold):
        return Verdict("not borne out", evidence)
    return Verdict("not decided", f"{evidence}; the interval holds the threshold {threshold:g}")


def _rift(results: Results) -> Verdict:
    found = results["functional_rift"]
    r, last = found.rift(), int(found.data["depth"].max())
    if r.n == 0 or not np.isfinite(r.change):
        return Verdict("not borne out", "context minus prior rises nowhere along the layers")
    evidence = (
        f"context minus prior changes most at depth {r.change:.0f} of {last} [{r.low:.0f}, {r.high:.0f}], n = {r.n}; "
        f"{r.abruptness:.0%} of its rise within one layer of it; "
        + ("the prompt takes over" if r.turned else "the prompt does not clearly take over")
    )
    middle = last / 3 <= r.low and r.high <= 2 * last / 3
    if r.turned and middle and r.abruptness >= 0.5:
        return Verdict("borne out", evidence)
    what = [
        text
        for text, bad in (
            ("no take-over", not r.turned),
            ("not in the middle third", not middle),
            ("gradual rather than abrupt", not r.abruptness >= 0.5),
        )
        if bad
    ]
    return Verdict("not borne out", f"{evidence}: {', '.join(what)}")


def _pathways(results: Results) -> Verdict:
    """More than one head says the answer, taking it from more than one place."""
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    mean = data[["writers", "control_writers", "sources"]].isel(threshold=at).mean("step")
    found = {name: bootstrap.mean_interval(mean[name].values) for name in mean.data_vars}
    w, c, s = found["writers"], found["control_writers"], found["sources"]
    evidence = (
        f"{_numbers(w)} heads at a time write the answer with probability 0.1 or more (the counterfactual's word: "
        f"{_numbers(c)}), looking themselves at {_numbers(s)} places where it stands; n = {int(w.n)}"
    )
    return decided(float(w.low), float(w.high), 1.0, evidence)


def _sources(results: Results) -> Verdict:
    """Pathways lead to the question and to the generated text alike."""
    found = results["answer_sources"]
    number = found.data["pathways"].sum("step", min_count=1).transpose("example", "place")
    whole = number.sum("place").values
    share = {p: bootstrap.ratio_interval(number.sel(place=p).values, whole) for p in ("question", "generated", "few_shot")}
    evidence = "pathways take the answer from " + ", ".join(
        f"{place.replace('_', '-')} {_shares(x)}" for place, x in share.items()
    )
    low, high = (min(float(getattr(share[p], end)) for p in ("question", "generated")) for end in ("low", "high"))
    return decided(low, high, 0.05, f"{evidence}; n = {int(share['question'].n)}")


def _late_writers(results: Results) -> Verdict:
    data = results["answer_writers"].data
    at = int(np.argmin(np.abs(data["threshold"].values - 0.1)))
    late = bootstrap.mean_interval(data["late"].isel(threshold=at).mean("step").values)
    return decided(
        float(late.low),
        float(late.high),
        0.9,
        f"{_shares(late)} of the answer's writers lie in the later half; n = {int(late.n)}",
    )


def _movers(results: Results) -> Verdict:
    found = results["relation_heads"]
    heads, share = found.heads("related"), found.first_half("related")
    if not heads:
        return Verdict("not borne out", "no head looks along related words beyond chance")
    evidence = (
        f"{len(heads)} heads look along related words; {_shares(share)} of their score lies in the first half of the layers"
    )
    return decided(float(share.low), float(share.high), 0.5, f"{evidence}; n = {int(share.n)}")


def _shared_heads(results: Results) -> Verdict:
    """Far fewer heads than all keep most of the steps, and no other random set of the same size does."""
    points = results["knock_out_curve"].operating_points(order="least")
    row = points[points["step"] == "all"].iloc[0]
    evidence = (
        f"{int(row.kept)} of {int(row.kept + row.removed)} heads keep {row.accuracy:.0%} [{row.low:.0%}, {row.high:.0%}] of "
        f"the steps of all kinds right, as many random heads {row.random:.0%}; n = {int(row.n)} examples held out"
    )
    return decided(float(row.low), float(row.high), float(row.random), evidence)


def _mixing(results: Results) -> Verdict:
    found = results["pair_probes"]
    depth = found.best("mlp")
    at = list(found.data["depth"].values).index(depth)
    confusion = found.data["confusion"].sel(probe="mlp").transpose("example", "depth", "label", "predicted").values
    hits, whole = np.diagonal(confusion, axis1=-2, axis2=-1).sum(-1), confusion.sum((-2, -1))
    accuracy = hits / np.where(whole > 0, whole, np.nan)
    syntax = found.data["neighbours"].values
    gain = bootstrap.mean_interval(accuracy[:, at] - np.maximum(accuracy[:, 0], syntax))
    first = bootstrap.ratio_interval(hits[:, at], whole[:, at])
    evidence = (
        f"a non-linear probe tells related, negated and unrelated words with {_shares(first)} at depth {depth} of "
        f"{int(found.data['depth'].max())}, {_shares(gain)} above the better of embedding and local syntax; n = {int(gain.n)}"
    )
    return decided(float(gain.low), float(gain.high), 0.0, evidence)


def _abidance(results: Results) -> Verdict:
    found = results["context_abidance"]
    half = found.data.sizes["layer"] // 2
    share = found.data["abides"].mean("head").mean("step").transpose("example", "layer").values
    lower, upper = share[:, :half].mean(1), share[:, half:].mean(1)
    rise = bootstrap.mean_interval(upper - lower)
    low, high = bootstrap.mean_interval(lower), bootstrap.mean_interval(upper)
    evidence = (
        f"the likeliest token that a head writes stands in the prompt in {_shares(low)} below the middle, {_shares(high)} above"
    )
    return decided(float(rise.low), float(rise.high), 0.0, f"{evidence}; n = {int(rise.n)}")


def _numbers(x: bootstrap.Interval) -> str:
    return f"{float(x.mean):.1f} [{float(x.low):.1f}, {float(x.high):.1f}]"


def _shares(x: bootstrap.Interval) -> str:
    return f"{float(x.mean):.0%} [{float(x.low):.0%}, {float(x.high):.0%}]"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "shared_heads",
        "Steps with different needs use almost the same heads: a minority of them is enough for all.",
        "abstract; E5, E6",
        ("knock_out_curve",),
        _shared_heads,
    ),
    Claim(
        "movers",
        "Heads that move information along the relations of the ontology appear in the first half of the layers.",
        "abstract; E10",
        ("relation_heads",),
        _movers,
    ),
    Claim(
        "mixing",
        "Residual streams of related words come to hold their relation in the lower and middle layers.",
        "abstract; E9",
        ("pair_probes",),
        _mixing,
    ),
    Claim(
        "pathways",
        "Multiple pathways write the answer in parallel.",
        "abstract; E8",
        ("answer_writers",),
        _pathways,
    ),
    Claim(
        "sources",
        "The pathways take the answer from the question and from the steps that were generated.",
        "abstract; E8",
        ("answer_sources",),
        _sources,
    ),
    Claim(
        "writers",
        "The heads that write the answer lie in the later half of the layers.",
        "abstract; E8",
        ("answer_writers",),
        _late_writers,
    ),
    Claim(
        "rift",
        "There is a functional rift in the middle of the model: residual streams follow bigrams of pretraining before it "
        "and the prompt behind it, abruptly.",
        "abstract; E11",
        ("functional_rift",),
        _rift,
    ),
    Claim(
        "abidance",
        "Heads of the upper half write tokens of the prompt, those of the lower half do not.",
        "E8, context-abidance",
        ("context_abidance",),
        _abidance,
    ),
)
