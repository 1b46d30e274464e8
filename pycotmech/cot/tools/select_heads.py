"""Which heads count, from their scores: the k best, those outside a window of the histogram, those beyond chance (E5)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pycotmech._choices import check_choice
from pycotmech._words import plural
from pycotmech.cot.tools.head_sets import Head, HeadSet, Scores, scores_of
from pycotmech.cot.tools.set_words import score_words
from pycotmech.display import Arrays, Displayed, View
from pycotmech.stats import significance
from pycotmech.stats.histogram import freedman_diaconis

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

Rule = Literal["top_k", "window", "significant"]
_WINDOWS = tuple(range(10))


@dataclass(frozen=True, eq=False)
class Selection(Displayed):
    """Sets of important heads, nested: the first is the largest. What is not in a set is what a curve ablates.

    scores [L, H]: what the rule was applied to. ranking: all heads with a score, the most important first.
    thresholds: for each set, k, t or alpha. bounds: for "window" the scores (low, high) within which heads are ablated.
    p [L, H]: for "significant" the p-values after correction. rule: in words. source: the scores that the rule was applied
    to, per example if they were given so. options: of `select_heads`.
    """

    sets: tuple[HeadSet, ...]
    scores: NDArray[np.float64] = field(repr=False)
    ranking: tuple[Head, ...] = field(repr=False)
    thresholds: tuple[float, ...]
    rule: str
    about: str
    bounds: tuple[tuple[float, float], ...] = ()
    p: NDArray[np.float64] | None = field(default=None, repr=False)
    source: Scores | None = field(default=None, repr=False)
    options: dict = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.sets)

    def __iter__(self) -> Iterator[HeadSet]:
        return iter(self.sets)

    def __getitem__(self, i: int) -> HeadSet:
        return self.sets[i]

    @property
    def masks(self) -> NDArray[np.bool_]:
        """bool [sets, L, H]."""
        return np.stack([s.mask for s in self.sets])

    @property
    def examples(self) -> tuple[int, ...] | None:
        """The examples that the scores are of, if they are known."""
        return None if self.source is None else self.source.examples

    @property
    def scored(self) -> NDArray[np.int64]:
        """Places among `examples` of those that have a score; none if they are not known."""
        return np.empty(0, np.int64) if self.source is None or self.examples is None else self.source.scored

    def again(self, rows: Sequence[int] | NDArray) -> Selection:
        """The same rule on the scores of these examples, by row of the scores, repeats counted: for a bootstrap."""
        if self.source is None or self.source.examples is None:
            raise ValueError("rows: the scores are averages; expected scores per example, to select again on some of them")
        s, examples, rows = self.source, self.source.examples, np.asarray(rows)
        drawn = Scores(s.values[rows], tuple(examples[i] for i in rows), s.steps, s.name, s.labelled)
        return select_heads(drawn, **self.options)

    def of(self, examples: Sequence[int]) -> Selection:
        """The same rule on the scores of these examples only, by their numbers on the axis `example`."""
        assert self.source is not None
        return select_heads(self.source.of(examples), **self.options)

    def at(self, step: int) -> Selection:
        """The same rule on the scores of one step. Raises ValueError if the scores have no axis step, or not this one."""
        if self.source is None or self.source.steps is None:
            raise ValueError(f"step: got {step}; the scores have no steps")
        return select_heads(self.source, step=step, **self.options)

    def table(self) -> pd.DataFrame:
        """One row for each head, the most important first: rank (missing where there is no score), layer, head, score, p (of
        "significant"), sets (how many of the nested sets it is in), threshold (k, t or alpha of the smallest of them; NaN
        if it is in none). The scores are those that the heads were chosen by: of the first ones too large."""
        import pandas as pd

        depth, ranked = self.masks.sum(0), set(self.ranking)  # in the first so many sets, for they shrink
        rest = [head for head in np.ndindex(self.scores.shape) if head not in ranked]
        rows = []
        for at, (l, h) in enumerate([*self.ranking, *rest]):
            n = int(depth[l, h])
            row: dict[str, Any] = {"rank": at + 1 if at < len(self.ranking) else pd.NA, "layer": l, "head": h}
            row["score"] = float(self.scores[l, h])
            if self.p is not None:
                row["p"] = float(self.p[l, h])
            rows.append(row | {"sets": n, "threshold": self.thresholds[n - 1] if n else math.nan})
        return pd.DataFrame(rows).astype({"rank": "Int64"})

    def view(self) -> View:
        """The scores that the rule was applied to, and in how many of the nested sets each head is."""
        return View(
            title=f"Heads that count: {self.about}",
            values=self.scores,
            axes=("layer", "head"),
            label="score",
            beside={"in sets": self.masks.sum(0)},
            facts=tuple(line.strip() for line in str(self).splitlines()),
            go_on=(("selection[0]", "the largest set"), ("selection.table()", "all heads by rank")),
        )

    def to_xarray(self) -> xr.Dataset:
        """scores [layer, head], mask [set, layer, head], threshold [set], and p [layer, head] where there are p-values."""
        heads = ("layer", "head")
        data = {"scores": (heads, self.scores), "mask": (("set", *heads), self.masks)}
        data |= {"threshold": (("set",), np.array(self.thresholds))} | ({} if self.p is None else {"p": (heads, self.p)})
        coords = {axis: np.arange(n) for axis, n in zip(heads, self.scores.shape, strict=True)}
        attrs = {"title": self.view().title, "rule": self.rule, "source": "docs/protocol.md, E5"}
        return Arrays(data=data, coords=coords, attrs=attrs).dataset()

    def to_dataframe(self) -> pd.DataFrame:
        """The same as `table`."""
        return self.table()

    def plot(self, *, path: str | PathLike | None = None) -> Figure:  # type: ignore[override]
        """Histogram of the scores, each nested set in a darker colour than the one around it, and where the window ends."""
        from pycotmech.cot.tools.select_heads_figure import selection_figure

        both = "both tails" in self.rule
        return selection_figure(
            self.scores,
            self.masks,
            [f"{self.letter} = {t:g}: {plural(len(s), 'head')}" for t, s in zip(self.thresholds, self.sets)],
            [(low, high) if both else (high,) for low, high in self.bounds],
            lines=[f"{self.rule}; {self.about}"],
            path=path,
        )

    @property
    def letter(self) -> str:
        """What the thresholds are: "k", "t" or "alpha"."""
        return {"top_k": "k", "window": "t", "significant": "alpha"}[self.options["rule"]]

    def __str__(self) -> str:
        lines = [f"{self.rule}; {self.about}"]
        lines += [f"  {self.options['name'] or 'set'} {t:g}: {len(s)} heads" for t, s in zip(self.thresholds, self.sets)]
        return "\n".join(lines)


def select_heads(
    scores: Any,
    *,
    rule: Rule = "top_k",
    variable: str | None = None,
    step: int | None = None,
    k: int | Sequence[int] | None = None,
    t: int | Sequence[int] | None = None,
    alpha: float | Sequence[float] = 0.05,
    by: Literal["value", "size", "low"] = "value",
    tails: Literal["upper", "both"] | None = None,
    test: significance.Test = "sign_flip",
    control: significance.Control | None = None,
    definition: Literal["exact", "paper"] = "exact",
    name: str = "",
    seed: int = 0,
) -> Selection:
    """Sets of important heads from their scores (docs/protocol.md, E5).

    scores: an `Analysis` (variable: which of its variables), a `Sweep`, or an array [L, H], [n, L, H] or [n, steps, L, H].
    step: the scores of one step; None: the mean over steps of each step's mean over examples.
    rule:
      "top_k": the k best. k: how many, one or several; None: about 12 numbers from all heads down to none. by: the best are
        those with the largest value, the largest |value| ("size"), or the smallest value ("low"). Ties to the lower head.
      "window": those outside a window of t bins around the modal bin of a histogram with Freedman and Diaconis' bins.
        t: one or several; None: 0 to 9. tails "upper" (default): only heads above the window count; "both": those below
        it too. definition "paper": both tails, and the window ends at the left edge of its last bin, as in the authors'
        code: from edge m - t to edge m + t, not m + t + 1.
      "significant": those whose mean score is above 0 beyond chance (tails "both": differs from 0), from scores per
        example, corrected for the number of heads. alpha: error rate, one or several. test "sign_flip": sign flips of
        whole examples, the largest t statistic of all heads (Westfall and Young 1993); "sign": exact sign test. control: "max"
        for sign flips; for the sign test "holm" (the default: the chance of any false head) or "bh" (the share of false
        heads, Benjamini and Hochberg). Both need scores that are symmetric about 0 where nothing is there: of 64 heads with
        exponential scores less their mean, turned to the negative, sign flips find a false one in 29 to 73 % of draws at 5 to
        64 examples (`pycotmech.stats.significance`).
    name: of the sets.

    Returns a `Selection`: .sets (nested, the largest first), .ranking, .masks [sets, L, H]. Heads without a score (NaN) are
    in no set, except in top_k's whole set.
    Raises TypeError or ValueError naming the argument; for "significant" also if so few examples could never be significant.
    """
    table = scores_of(scores, variable).at(step)
    options = dict(rule=rule, k=k, t=t, alpha=alpha, by=by, tails=tails, test=test, control=control)
    options |= dict(definition=definition, name=name, seed=seed)
    check_choice("rule", rule, ("top_k", "window", "significant"))
    check_choice("by", by, ("value", "size", "low"))
    check_choice("definition", definition, ("exact", "paper"))
    check_choice("tails", tails, (None, "upper", "both"))
    grid = table.mean()
    if not np.isfinite(grid).any():
        raise ValueError(f"scores: no head has a score{_why(table)}")
    bounds: tuple[tuple[float, float], ...] = ()
    p = None
    words = f"{score_words(table.name)}, {_counted(table)}"
    key = grid
    if rule == "top_k":
        key = {"value": grid, "size": np.abs(grid), "low": -grid}[by]
        found = _top_k(key, k)
        criterion = {"value": "the k largest scores", "size": "the k largest |scores|", "low": "the k smallest scores"}[by]
    elif rule == "window":
        both = (definition == "paper") if tails is None else tails == "both"
        found, bounds, center = _window(grid, t, both=both, paper=definition == "paper")
        key = np.abs(grid - center) if both else grid
        criterion = f"outside a window of t bins about the modal bin, {'both tails' if both else 'upper tail'}"
        criterion += ", left edge of the last bin (the authors')" if definition == "paper" else ""
    else:
        if table.examples is None:
            raise ValueError("scores: got averages; rule 'significant' needs scores per example, [n, L, H]")
        by_example = table.by_example()
        p = significance.p_values(
            by_example, test=test, control=control, two_sided=tails == "both", alpha=_least(alpha), seed=seed
        )
        found = [(float(a), p <= a) for a in sorted(_several("alpha", alpha, 0, 1, float), reverse=True)]
        key = np.abs(grid) if tails == "both" else grid
        criterion = f"beyond chance by {significance.words(test, control)}"
    ranking = _ranked(key)
    chosen_on = tuple(table.examples[i] for i in table.scored) if table.labelled and table.examples else ()
    sets = []
    for _, mask in found:
        rest = [(int(l), int(h)) for l, h in np.argwhere(mask & np.isnan(key))]
        sets.append(HeadSet(mask, name, tuple([*(head for head in ranking if mask[head]), *rest]), chosen_on))
    thresholds = tuple(float(threshold) for threshold, _ in found)
    return Selection(tuple(sets), grid, tuple(ranking), thresholds, criterion, words, bounds, p, table, options)


def _top_k(key: NDArray, k: int | Sequence[int] | None) -> list[tuple[float, NDArray]]:
    size, known = key.size, int(np.isfinite(key).sum())
    asked = _several("k", k, 0, size, int) if k is not None else spread(size)
    order = _ranked(key)
    found = []
    for n in sorted(set(asked), reverse=True):
        if known < n < size:
            raise ValueError(f"k: got {n}, but only {known} of {size} heads have a score")
        mask = np.full(key.shape, n == size)
        for head in order[:n]:
            mask[head] = True
        found.append((n, mask))
    return found


def spread(n: int, about: int = 12) -> list[int]:
    """About 12 numbers from 0 to n, evenly spread, both ends in."""
    return sorted({round(n * i / about) for i in range(about + 1)})


def _window(grid: NDArray, t, *, both: bool, paper: bool) -> tuple[list[tuple[float, NDArray]], tuple, float]:
    values = grid[np.isfinite(grid)]
    edges = freedman_diaconis(values)
    counts, _ = np.histogram(values, edges)
    m = int(counts.argmax())
    asked = _several("t", _WINDOWS if t is None else t, 0, math.inf, int)
    found, bounds = [], []
    for n in sorted(set(asked)):
        low = edges[max(m - n, 0)]
        high = edges[min(m + n + (0 if paper else 1), len(edges) - 1)]
        bounds.append((float(low), float(high)))
        found.append((n, (grid > high) | (grid < low) if both else grid > high))
    return found, tuple(bounds), float((edges[m] + edges[m + 1]) / 2)


def _ranked(key: NDArray) -> list[Head]:
    """Heads with a score, the largest first, ties to the lower layer and head."""
    flat = key.ravel()
    order = np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind="stable")[: int(np.isfinite(flat).sum())]
    return [(int(i) // key.shape[1], int(i) % key.shape[1]) for i in order]


def _counted(table: Scores) -> str:
    n = "averages as given" if table.examples is None else f"mean over {plural(len(table.scored), 'example')}"
    return n + ("" if table.steps is None or len(table.steps) == 1 else f" and {len(table.steps)} steps")


def _why(table: Scores) -> str:
    if table.examples is None:
        return ""
    steps = f"step {table.steps[0]}" if table.steps is not None and len(table.steps) == 1 else "these steps"
    which = f" ({', '.join(map(str, table.examples))})" if table.labelled else ""
    return f": none of the {len(table.examples)} examples to choose on{which} is right at {steps}"


def _least(alpha: float | Sequence[float]) -> float:
    return max(_several("alpha", alpha, 0, 1, float))


def _several(argument: str, given: Any, low: float, high: float, kind: type) -> list:
    """One number or several, checked."""
    numbers = [given] if isinstance(given, (int, float, np.number)) else list(given)
    if not numbers or not all(low <= x <= high and kind(x) == x for x in numbers):
        raise ValueError(f"{argument}: got {given}; expected {kind.__name__}s in {low}..{high}, at least one")
    return [kind(x) for x in numbers]
