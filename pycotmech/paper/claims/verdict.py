"""What a claim is, and how an interval and a null decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.cot.analyses import described
from pycotmech.display import Described, Facts
from pycotmech.stats import bootstrap

Word = Literal["borne out", "not borne out", "not decided"]
Results = Mapping[str, Any]
"""Entry name -> its Analysis."""


@dataclass(frozen=True)
class Verdict(Described):
    """What the results say about a claim, and the numbers that it rests on.

    word, evidence: the verdict, and the reason in words. null: what the claim's null gives, in the same units.
    values: if given, the quantity of each example that is compared with `threshold` (1-D float, NaN where an example does not
        count). For a claim with several parts it is that of the part that is hardest to decide. Settings are pooled by these
        values, and they predict how many examples would decide the claim. share: whether the quantity is a share, whose
        interval is Wilson's.
    data: whether there was anything to judge. A claim that is not decided for lack of data has not been tried.
    """

    word: Word
    evidence: str
    null: str = ""
    values: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    threshold: float = 0.0
    share: bool = False
    data: bool = True

    def described(self) -> Facts:
        return Facts(self.word, {"evidence": self.evidence, **({"by chance": self.null} if self.null else {})})

    def of(self, values: ArrayLike, threshold: float, *, share: bool = False) -> Verdict:
        """Returns this verdict with the values that it rests on."""
        return replace(self, values=np.asarray(values, dtype=np.float64), threshold=threshold, share=share)

    @property
    def interval(self) -> bootstrap.Interval | None:
        """The mean of the values with its interval over examples; None without values."""
        if self.values is None:
            return None
        return bootstrap.mean_interval(self.values, within=bootstrap.SHARE if self.share else None)

    @property
    def form(self) -> str:
        """The format of the quantity in a text."""
        return "{:.0%}" if self.share else "{:.2f}"

    def cell(self, mark: str = "") -> str:
        """The word, and the mean with its interval and the number of examples, as a table has it. mark: around the word."""
        x = self.interval
        return f"{mark}{self.word}{mark}" + ("" if x is None else f", {x.words(self.form)}, n = {int(x.n)}")


@dataclass(frozen=True)
class Claim(Described):
    """A claim of the paper.

    text: the claim in our words. source: where the paper makes it. judge: a function from results to a verdict.
    null: what could bear the claim out by accident; it is measured in the same run.
    by_layer: whether the claim says in which part of the layers something lies. A model with one layer cannot decide it.
    """

    name: str
    text: str
    source: str
    judge: Callable[[Results], Verdict]
    null: str
    by_layer: bool = True

    def described(self) -> Facts:
        facts = {"source": self.source, "by chance": self.null, "decided by": ", ".join(self.needs)}
        return Facts(self.text, facts, go_on=(("claim.verdict(results)", "whether results bear it out"),))

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the analyses that decide the claim: those that list it in their description."""
        return tuple(d.name for d in described() if self.name in d.claims)

    def verdict(self, results: Results) -> Verdict:
        missing = [name for name in self.needs if name not in results]
        if missing:
            return Verdict("not decided", f"needs {', '.join(missing)}, which was not run", data=False)
        if self.by_layer and any(_n_layers(results[name]) == 1 for name in self.needs):
            return Verdict("not decided", "the model has one layer, and so no earlier and later layers to compare")
        return self.judge(results)


def _n_layers(result: Any) -> int | None:
    """Number of layers of the model that a result comes from; None if its axes do not say."""
    sizes = result.data.sizes
    return sizes["layer"] if "layer" in sizes else sizes["depth"] - 1 if "depth" in sizes else None


def decided(
    low: float,
    high: float,
    threshold: float,
    evidence: str = "",
    *,
    n: int,
    above: bool = True,
    within: bootstrap.Range | None = None,
    level: float = bootstrap.LEVEL,
) -> Verdict:
    """Decides a claim by an interval and a threshold.

    It is borne out if the whole interval over n examples lies on the claim's side of the threshold, and not borne out if the
    whole interval lies on the other side. It is not decided, with the reason after the evidence, in three cases:

    * the interval contains the threshold;
    * there is no interval;
    * the interval has no width, and n examples would agree by chance if the mean were the threshold.

    low, high: the ends of the interval. level: of the interval. above: whether the claim's side is above the threshold.
    within: the range of the quantity, as in `bootstrap.undecidable`.
    """
    if why := bootstrap.undecidable(low, high, n, threshold, within, level):
        return Verdict("not decided", _joined(evidence, why), data=bool(np.isfinite(low) and np.isfinite(high)))
    if (low > threshold) if above else (high < threshold):
        return Verdict("borne out", evidence)
    if (high <= threshold) if above else (low >= threshold):
        return Verdict("not borne out", evidence)
    return Verdict("not decided", _joined(evidence, f"the interval contains the threshold {threshold:g}"))


def _joined(evidence: str, why: str) -> str:
    return f"{evidence}; {why}" if evidence else why


def combined(evidence: str, parts: Mapping[str, Verdict], *, null: str = "") -> Verdict:
    """Combines the verdicts on several parts of a claim: borne out if every part is, not borne out if any part is not.

    The evidence names the parts that are not so, or those that are open, with their reasons. The claim has no data if it is
    open and none of its open parts has data. null: as in `Verdict`.
    """
    for word, label in (("not borne out", "not so"), ("not decided", "open")):
        found = [part + (f" ({v.evidence})" if v.evidence else "") for part, v in parts.items() if v.word == word]
        if found:
            data = word != "not decided" or any(v.data for v in parts.values() if v.word == word)
            return Verdict(word, f"{evidence}; {label}: {', '.join(found)}", null, data=data)  # type: ignore[arg-type]
    return Verdict("borne out", evidence, null)


def briefly(parts: Mapping[str, Verdict]) -> str:
    """Returns the combined verdict's word, followed by the parts that are not so, or open. Used for one step of many."""
    word = combined("", parts).word
    which = [part for part, v in parts.items() if v.word == word] if word != "borne out" else []
    return f"{word}: {', '.join(which)}" if which else word


def is_above(
    x: bootstrap.Interval,
    threshold: float,
    evidence: str = "",
    *,
    within: bootstrap.Range | None = None,
    level: float = bootstrap.LEVEL,
) -> Verdict:
    """Decides whether a quantity is above the threshold. within, level: as in `decided`."""
    return decided(float(x.low), float(x.high), threshold, evidence, n=int(x.n), within=within, level=level)


def whether(true: bool | None, why: str = "") -> Verdict:
    """Turns a fact into a verdict. true: None if the fact is open, for the reason `why`."""
    return Verdict("not decided", why) if true is None else Verdict("borne out" if true else "not borne out", "")
