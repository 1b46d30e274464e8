"""Results with one score for each head: how they are tabled and drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import xarray as xr

from pycotmech.cot.tools.result import Analysis, top_cells
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class HeadAnalysis(Analysis):
    """An analysis whose main variable is a score per head, [example, step, layer, head]."""

    main: ClassVar[str] = ""
    """The variable that is tabled and drawn."""

    def scores(self, variable: str | None = None) -> xr.Dataset:
        """Mean over examples with its interval: mean, low, high, n [step, layer, head]."""
        return self.interval(variable or self.main)

    def shown(self) -> xr.Dataset:
        return self.scores()

    def floors(self) -> xr.DataArray | None:
        """The noise floor of `scores`, of the example where it is largest: [step]; None for scores without one."""
        if (floor := self.data.get("noise_floor")) is None:
            return None
        return floor.max([axis for axis in floor.dims if axis != "step"])

    def top(self, step: int, k: int = 5, *, held_out: bool = True) -> list[tuple[int, int, float]]:
        """The k strongest heads of a step, ranked and reported as in `table`: [(layer, head, mean score), ...]."""
        parts = self.at_step(self.main, step, held_out=held_out)
        if parts is None:
            return []
        mean = parts.reporting.scores()["mean"].sel(step=step)
        return [(l, h, float(mean.sel(layer=l, head=h))) for l, h in parts.choosing._ranked(step, k)]

    def _ranked(self, step: int, k: int) -> list[tuple[int, int]]:
        """The k strongest heads of a step on all examples."""
        mean = self.scores()["mean"].sel(step=step)
        return [(int(l), int(h)) for l, h, _ in top_cells(mean, k, by_size=self.by_size)]

    def table(self, k: int = 5, *, held_out: bool = True) -> pd.DataFrame:
        """The k strongest heads of each step: step, kind, rank, layer, head, mean, low, high, n, held_out, clear (interval
        without 0).

        held_out: heads are ranked on one half of the examples that count at the step, and the numbers are of the other, n
        examples; with fewer than four that count, and with False, both are of all of them. The column says which it was.
        """
        import pandas as pd

        rows = []
        for i, step in enumerate(self.data["step"].values.tolist()):
            parts = self.at_step(self.main, step, held_out=held_out)
            if parts is None:
                continue
            found, heads = parts.reporting.scores().sel(step=step), parts.choosing._ranked(step, k)
            more = parts.reporting._beside(step, heads)
            for rank, ((l, h), beside) in enumerate(zip(heads, more, strict=True), 1):
                mean, low, high, n = (float(found[name].sel(layer=l, head=h)) for name in ("mean", "low", "high", "n"))
                row = {"step": step, "kind": str(self.data["kind"].values[i]), "rank": rank, "layer": l, "head": h}
                row |= {"mean": mean, "low": low, "high": high, "n": int(n), "held_out": parts.held_out}
                rows.append(row | {"clear": bool(low > 0 or high < 0)} | beside)
        names = ("step", "kind", "rank", "layer", "head", "mean", "low", "high", "n", "held_out", "clear")
        return pd.DataFrame(rows, columns=None if rows else list(names))

    def _beside(self, step: int, heads: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """What a table says of each of these heads besides, on all examples."""
        return [{} for _ in heads]

    def plot(self, *, path: str | PathLike | None = None) -> Figure:
        """Heat maps of the mean over examples, one for each step, layers upward."""
        from pycotmech.figures.heatmap import maps_figure

        found = self.scores()
        count = found["n"].max(("layer", "head")).values
        shown = [i for i in range(len(count)) if count[i] > 0] or list(range(len(count)))
        kinds, steps = self.data["kind"].values, self.data["step"].values
        return maps_figure(
            [found["mean"].isel(step=i).transpose("layer", "head").values for i in shown],
            [f"{steps[i]} {kinds[i]}\nn = {count[i]}" for i in shown],
            title=f"{self.about['model']}: {self.title}",
            lines=[self._largest(found), *self._limits(), *self.small_print(self.main)],
            label=self.label,
            path=path,
        )

    def _largest(self, found: xr.Dataset) -> str:
        """What the colours are, and the largest of them with its interval. found: as `scores` gives it."""
        words = "colours: means over the n examples of each map"
        for step, l, h, mean in top_cells(found["mean"], 1, ("step", "layer", "head"), by_size=True):
            at = found.sel(step=step, layer=l, head=h)
            inside = bootstrap.ends(at["low"], at["high"], "{:.2f}")
            inside = f"{inside} (95 % interval)" if inside else " (one example: no interval)"
            words += f"; the largest, L{l}H{h} at step {step}: {mean:.2f}{inside}"
        return words

    def _limits(self) -> list[str]:
        """What a score must exceed to be more than rounding or chance, for the small print."""
        return []

    def strongest(self) -> Iterator[tuple[int, str, Self, int, int]]:
        """For each step the head that is strongest on one half of the examples that count there, and the other half:
        (step, what it is in words, result on the other half, layer, head).

        The largest of many scores is too large on the examples that made it the largest: it is reported on others.
        """
        for i, step in enumerate(self.data["step"].values.tolist()):
            here = type(self)(self.data.isel(step=[i]), self.about)
            parts = here.apart(here.data[self.main].notnull().any(("step", "layer", "head")).values)
            if parts is None:
                continue
            top = parts.choosing._ranked(step, 1)
            if not top:  # nothing to restore in that half
                continue
            l, h = top[0]
            yield step, f"step {step} ({self.data['kind'].values[i]}, {parts.words})", parts.reporting, l, h

    def _strongest(self, number: str = "{:+.3f}") -> list[str]:
        """For each step the head that is strongest on one half of the examples, with its interval on the other, in words."""
        out = []
        for step, words, result, l, h in self.strongest():
            row = result.scores().sel(step=step, layer=l, head=h)
            mean, low, high = (float(row[k]) for k in ("mean", "low", "high"))
            inside = f" [{number.format(low)}, {number.format(high)}]" if np.isfinite(low) else ""
            out.append(f"{words}: L{l}H{h} {number.format(mean)}{inside}")
        return out


def layer_share(score: xr.DataArray, first: int) -> bootstrap.Interval:
    """Share of the positive score that lies in layers from `first` on, a ratio of means over examples with its interval.

    score [example, ..., layer, head]; the axes between are summed with the heads.
    """
    positive = score.clip(min=0)
    rest = [d for d in score.dims if d not in ("example", "layer")]
    by_layer = positive.sum(rest, min_count=1)
    above = by_layer.isel(layer=slice(first, None)).sum("layer", min_count=1)
    return bootstrap.ratio_interval(above.values, by_layer.sum("layer", min_count=1).values, within=bootstrap.SHARE)
