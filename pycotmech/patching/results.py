"""What a sweep returns: effects by layer and head, with the figures needed to judge them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech.engine.planner import Plan
from pycotmech.model.sites import RESIDUAL_SITES

if TYPE_CHECKING:
    import pandas as pd


class Indexed:
    """A result that is indexed, and taken by NumPy, as its `values`."""

    values: NDArray[np.float32]

    def __getitem__(self, index: Any):
        """values[index]: sweep[l, h], sweep[l], sweep[l, t, h]."""
        return self.values[index]

    def __array__(self, dtype=None, copy=None) -> NDArray:
        return np.array(self.values, dtype=dtype, copy=True if copy is None else copy)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


class Grid(Indexed):
    """What results with one entry for each layer, head and position share: `values` and `effect`, indexed alike."""

    effect: NDArray[np.float32]
    site: str
    by_position: bool
    groups: tuple[str, ...] | None = None

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes of `values` count: ("layer", "head"), ("layer", "position", "head"), ("layer", "group")."""
        heads = () if self.site in RESIDUAL_SITES else ("head",)
        parts = ("position",) if self.by_position else ("group",) if self.groups else ()
        return ("layer", *parts, *heads)

    def top(self, k: int = 10, *, by: str = "effect") -> list[tuple[tuple[int, ...], float]]:
        """The k entries with the largest |effect| (or |value|): [((layer, head), value), ...], as in `axes`."""
        if by not in ("effect", "values"):
            raise ValueError(f"by: got {by!r}; expected 'effect' or 'values'")
        score = getattr(self, by)
        flat = np.where(np.isnan(score), -1.0, np.abs(score)).ravel()
        order = np.argsort(-flat, kind="stable")[: min(k, int((flat >= 0).sum()))]
        return [(tuple(int(i) for i in np.unravel_index(o, score.shape)), float(score.ravel()[o])) for o in order]

    def _named(self, k: int) -> list[tuple[str, float]]:
        """`top`, with the places' names: L2H5, L2H5 at position 7."""
        out = []
        for where, value in self.top(k):
            place = dict(zip(self.axes, where, strict=True))
            name = f"L{place['layer']}" + (f"H{place['head']}" if "head" in place else "")
            if self.groups and "group" in place:
                name += f" in {self.groups[place['group']]!r}"
            out.append((name + (f" at position {place['position']}" if "position" in place else ""), value))
        return out

    def _frame(self) -> pd.DataFrame:
        """One row per entry: its place as in `axes`, value, effect."""
        import pandas as pd

        grid = np.indices(self.values.shape).reshape(len(self.axes), -1)
        frame = pd.DataFrame(dict(zip(self.axes, grid, strict=True)))
        if self.groups:
            frame["group"] = np.array(self.groups)[frame["group"]]
        frame["value"] = self.values.ravel()
        frame["effect"] = self.effect.ravel()
        return frame


@dataclass(frozen=True)
class Sweep(Grid):
    """The result of patching one place at a time. B examples, L layers, H heads (Hkv for k and v), T positions.

    values [L, H] float32: on the scale corrupted 0, clean 1 if normalised (over several examples the ratio of means),
        else the raw metric's mean; [L, T, H] by position, [L, G, H] for groups of positions; without H for residual sites.
        NaN where a head was not asked for, or was left out by a screen.
    raw [L, H], or [B, L, H] for a list of pairs: the metric itself, float64.
    effect: the distance from the base run on the scale of `values`, 0 where nothing changes, if normalised positive towards
        the source; taken against the mean of the self-patches.
    clean_metric, corrupted_metric [B]: the metric of the two runs.
    noise_floor: the largest |effect| of self-patches that move z by one unit in the last place of the model's dtype; an
        effect below it is rounding.
    """

    values: NDArray[np.float32]
    raw: NDArray[np.float64]
    effect: NDArray[np.float32]
    clean_metric: NDArray[np.float64]
    corrupted_metric: NDArray[np.float64]
    noise_floor: float
    metric: str
    direction: str
    site: str
    """Of a key-value site that was edited for each query head on its own: k_per_query, v_per_query."""
    normalized: bool
    by_position: bool
    plan: Plan
    model_name: str
    groups: tuple[str, ...] | None = None
    """Names of the groups of positions that were patched one at a time."""
    logits: Tensor | None = field(default=None, repr=False)
    """[L, H, V] float32 (or [B, L, H, V]) if return_logits was asked for."""
    estimate: NDArray[np.float32] | None = field(default=None, repr=False)
    """If screened: `Attribution.effect`, the first-order estimates of all heads, those that were swept among them."""

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Which entries were swept: all, but for heads that were not asked for or that a screen left out."""
        return ~np.isnan(self.values)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per entry: its place as in `axes`, value, effect, above_floor; if screened also estimate, exact."""
        frame = self._frame()
        frame["above_floor"] = np.abs(frame["effect"]) > self.noise_floor
        if self.estimate is not None:
            frame["estimate"] = self.estimate.ravel()
            frame["exact"] = self.exact.ravel()
        return frame

    def plot(self, *, title: str | None = None, path: str | None = None):
        """Heat map, layers upward, heads to the right, red-blue around 0; a matplotlib figure, saved to `path` if given."""
        from pycotmech.figures.heatmap import effect_figure

        across = "position" if self.by_position else f"group ({', '.join(self.groups)})" if self.groups else "head"
        return effect_figure(
            self.effect,
            title=title or f"{self.site} patched, one head at a time",
            lines=[f"{self.model_name}, {len(self.clean_metric)} pair(s), noise floor {self.noise_floor:.1g}"],
            metric=self.metric,
            direction=self.direction,
            normalised=self.normalized,
            across=across,
            path=path,
        )

    def __str__(self) -> str:
        axis = " x ".join(self.axes)
        lines = [
            f"{self.model_name}: {self.site} patched, {self.direction}, metric {self.metric}, {axis} {list(self.shape)}",
            f"clean {self.clean_metric.mean():.4g}, corrupted {self.corrupted_metric.mean():.4g}, "
            f"noise floor {self.noise_floor:.2g}",
        ]
        if self.estimate is not None:
            heads = self.exact.any(1) if self.by_position else self.exact
            others = ~np.isnan(self.estimate) & ~self.exact
            best = f", the largest {np.abs(self.estimate[others]).max():.2g}" if others.any() else ""
            lines.append(
                f"screened: only the {int(heads.sum())} heads with the largest first-order estimates were swept, exactly; "
                f"the others have estimates alone{best}"
            )
        for name, value in self._named(10):
            note = "" if abs(value) > self.noise_floor else "  (below the noise floor)"
            lines.append(f"  {name:<10} effect {value:+.4f}{note}")
        return "\n".join(lines)


@dataclass(frozen=True)
class VariantSweep:
    """The result of a sweep over N variants of one run.

    raw [N]: the metric itself, float64. effect [N] float32: the change from the base run, taken against the mean of
        self-patches. base_metric: of the run without edits.
    noise_floor: the largest |effect| of self-patches that move z by one unit in the last place of the model's dtype.
    """

    raw: NDArray[np.float64]
    effect: NDArray[np.float32]
    base_metric: float
    noise_floor: float
    metric: str
    names: tuple[str | None, ...]
    plan: Plan
    model_name: str
    logits: Tensor | None = field(default=None, repr=False)
    """[N, V] float32 if return_logits was asked for."""

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: Any):
        """effect[index]."""
        return self.effect[index]

    def __array__(self, dtype=None, copy=None) -> NDArray:
        return np.array(self.effect, dtype=dtype, copy=True if copy is None else copy)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per variant: name, raw, effect, above_floor."""
        import pandas as pd

        above = np.abs(self.effect) > self.noise_floor
        return pd.DataFrame({"name": list(self.names), "raw": self.raw, "effect": self.effect, "above_floor": above})

    def __str__(self) -> str:
        lines = [f"{self.model_name}: {len(self)} variant(s), metric {self.metric}: base {self.base_metric:.4g}, "]
        lines[0] += f"noise floor {self.noise_floor:.2g}"
        for n in np.argsort(-np.abs(self.effect), kind="stable")[:10].tolist():
            note = "" if abs(self.effect[n]) > self.noise_floor else "  (below the noise floor)"
            lines.append(f"  {self.names[n] or f'variant {n}':<16} effect {self.effect[n]:+.4f}{note}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Ablation(VariantSweep):
    """Heads taken out of a run: all at once (N = 1), each on its own (N = len(heads)), or set by set (N = len(sets)).

    heads: all of them, each once; sets: those replaced together, one for each result.
    replaced_by: what stands in the heads' place, in words. n_averaged: the number of prompts in a mean, if it was taken here.
    """

    kind: str
    heads: tuple[tuple[int, int], ...]
    sets: tuple[tuple[tuple[int, int], ...], ...]
    each: bool
    replaced_by: str
    n_averaged: int | None

    def to_dataframe(self) -> pd.DataFrame:
        """`VariantSweep.to_dataframe`, with layer and head if each head was ablated on its own."""
        frame = super().to_dataframe()
        if self.each:
            frame.insert(0, "layer", [l for l, _ in self.heads])
            frame.insert(1, "head", [h for _, h in self.heads])
        return frame

    def __str__(self) -> str:
        what = "each head on its own" if self.each else f"{len(self.heads)} head(s) at once"
        what = f"{len(self.sets)} sets of heads" if len(self.sets) > 1 and not self.each else what
        return f"{what} replaced by {self.replaced_by}\n{super().__str__()}"
