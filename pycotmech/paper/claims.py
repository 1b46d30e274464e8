"""The claims of the paper's abstract, and what a model's results say to each: borne out, not borne out, or not decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

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


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "rift",
        "There is a functional rift in the middle of the model: residual streams follow bigrams of pretraining before it "
        "and the prompt behind it, abruptly.",
        "abstract; E11",
        ("functional_rift",),
        _rift,
    ),
)
