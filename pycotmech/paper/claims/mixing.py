"""Residual streams of related words come to hold their relation by the middle layers (abstract; E9)."""

from __future__ import annotations

import numpy as np

from pycotmech.paper.claims.verdict import Claim, Results, Verdict, combined, is_above
from pycotmech.stats import bootstrap


def judge(results: Results) -> Verdict:
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
    parts = {name: is_above(x, 0.0) for name, x in gains.items()}
    parts["most of these called unrelated"] = is_above(across, 0.5)
    return combined(evidence, parts)


CLAIM = Claim(
    "mixing",
    "Residual streams of related words come to hold their relation in the lower and middle layers.",
    "abstract; E9",
    judge,
    "embedding; two tokens before each word",
)
