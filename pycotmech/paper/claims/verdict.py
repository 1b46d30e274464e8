"""What a claim is, and how an interval and a null decide it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.cot.analyses import described
from pycotmech.stats import bootstrap

Word = Literal["borne out", "not borne out", "not decided"]
Results = Mapping[str, Any]
"""Entry name -> its Analysis."""


@dataclass(frozen=True)
class Verdict:
    """What the results say to a claim, and the numbers it rests on. null: what the claim's null gives, in the same units.

    values: if given, the quantity that is compared with `threshold`, of each example (1-D float, NaN where an example does not
        count); of a claim with several parts, of the one that is hardest to decide. By it settings are pooled, and the number
        of examples is found that would decide the claim. share: whether it is a share, whose interval is Wilson's.
    data: whether there was anything to judge by; a claim that is open for want of it has not been tried.
    """

    word: Word
    evidence: str
    null: str = ""
    values: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    threshold: float = 0.0
    share: bool = False
    data: bool = True

    def of(self, values: ArrayLike, threshold: float, *, share: bool = False) -> Verdict:
        """The same with the values that it rests on."""
        return replace(self, values=np.asarray(values, dtype=np.float64), threshold=threshold, share=share)


@dataclass(frozen=True)
class Claim:
    """text: in our words. source: in the paper. judge: from results to a verdict. null: what could bear the claim out by
    accident, and is measured beside it. by_layer: whether it says in which part of the layers something is found, which a
    single layer can neither bear out nor deny."""

    name: str
    text: str
    source: str
    judge: Callable[[Results], Verdict]
    null: str
    by_layer: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The analyses that decide it: those that say so."""
        return tuple(d.name for d in described() if self.name in d.claims)

    def verdict(self, results: Results) -> Verdict:
        missing = [name for name in self.needs if name not in results]
        if missing:
            return Verdict("not decided", f"needs {', '.join(missing)}, which was not run", data=False)
        if self.by_layer and any(_n_layers(results[name]) == 1 for name in self.needs):
            return Verdict("not decided", "the model has one layer, and so no earlier and later ones to compare")
        return self.judge(results)


def _n_layers(result: Any) -> int | None:
    """Of the model that a result is of; None if its axes do not say."""
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
    """Borne out if the whole interval over n examples lies on the claim's side of the threshold, not borne out if on the other.

    Not decided, with the reason after the evidence, if it contains the threshold, if there is none, or if it has no width and
    as many examples as that would agree by chance where the mean is the threshold (`bootstrap.undecidable`, which says what
    `within` is). level: of the interval.
    """
    if why := bootstrap.undecidable(low, high, n, threshold, within, level):
        return Verdict("not decided", _joined(evidence, why), data=bool(np.isfinite(low) and np.isfinite(high)))
    if (low > threshold) if above else (high < threshold):
        return Verdict("borne out", evidence)
    if (high <= threshold) if above else (low >= threshold):
        return Verdict("not borne out", evidence)
    return Verdict("not decided", _joined(evidence, f"the interval holds the threshold {threshold:g}"))


def _joined(evidence: str, why: str) -> str:
    return f"{evidence}; {why}" if evidence else why


def combined(evidence: str, parts: Mapping[str, Verdict], *, null: str = "") -> Verdict:
    """Of a claim with several parts: borne out if each of them is, not borne out if any is not. Parts that are open stand
    with their reason; the claim is open for want of data if each of these is. null: as `Verdict` has it."""
    for word, said in (("not borne out", "not so"), ("not decided", "open")):
        found = [part + (f" ({its.evidence})" if its.evidence else "") for part, its in parts.items() if its.word == word]
        if found:
            data = word != "not decided" or any(its.data for its in parts.values() if its.word == word)
            return Verdict(word, f"{evidence}; {said}: {', '.join(found)}", null, data=data)  # type: ignore[arg-type]
    return Verdict("borne out", evidence, null)


def briefly(parts: Mapping[str, Verdict]) -> str:
    """The word on several parts, and which of them are not so, or open: of one step of many."""
    word = combined("", parts).word
    which = [name for name, its in parts.items() if its.word == word] if word != "borne out" else []
    return f"{word}: {', '.join(which)}" if which else word


def is_above(
    x: bootstrap.Interval,
    threshold: float,
    evidence: str = "",
    *,
    within: bootstrap.Range | None = None,
    level: float = bootstrap.LEVEL,
) -> Verdict:
    """Whether a quantity is above the threshold. within: the range that it lies in (`bootstrap.undecidable`). level: of the
    interval."""
    return decided(float(x.low), float(x.high), threshold, evidence, n=int(x.n), within=within, level=level)


def whether(true: bool | None, why: str = "") -> Verdict:
    """Of what was found to be true or false, or None: open, and why."""
    return Verdict("not decided", why) if true is None else Verdict("borne out" if true else "not borne out", "")
