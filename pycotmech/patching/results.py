"""What sweeps return: effects, with the numbers needed to judge them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._warnings import warn
from pycotmech.engine.planner import Plan
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching.control_results import Controls, largest_measured

if TYPE_CHECKING:
    import pandas as pd

AnyVariantSweep = TypeVar("AnyVariantSweep", bound="VariantSweep")

Index = tuple[NDArray[np.intp], ...]
"""Positions of E entries along each axis of a result, as `np.nonzero` gives them."""


def largest(score: NDArray, k: int) -> list[tuple[int, ...]]:
    """The indices of the k largest scores in descending order; ties in the order of the array. NaN is left out."""
    order = np.argsort(-score.ravel(), kind="stable")[: min(k, np.count_nonzero(~np.isnan(score)))]
    return list(map(tuple, np.array(np.unravel_index(order, score.shape)).T.tolist()))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What all results have in common. It is indexed, and converted by NumPy, as its first array of `_ARRAYS`.

    effect: the distance from the base run. metric: the metric's name.
    """

    effect: NDArray[np.float32]
    metric: str
    model_name: str

    _ARRAYS: ClassVar[tuple[str, str]] = ("values", "effect")
    """The arrays of one shape that `top` can rank by."""
    _COLUMN: ClassVar[str] = "value"
    """What the first of them is called in a data frame."""
    _SHOWN: ClassVar[str] = "effect"
    """What `effect` is called in print."""
    _WIDTH: ClassVar[int] = 10

    def __getitem__(self, index: Any) -> Any:
        return self._array()[index]

    def __array__(self, dtype=None, copy=None) -> NDArray:
        return np.array(self._array(), dtype=dtype, copy=True if copy is None else copy)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.effect.shape

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes of `effect` count."""
        raise NotImplementedError

    def top(self, k: int = 10, *, by: str = "effect") -> list[tuple[tuple, float]]:
        """The k entries with the largest |effect| (or |value|): [(place, effect), ...], a place having one item per axis.

        Entries that are NaN, or cannot change, are left out; ties are in the order of the array.
        """
        array = self._array(by, "by")
        found = largest(np.where(self._possible(), np.abs(array), np.nan), k)
        return [(self._place(index), float(array[index])) for index in found]

    def to_dataframe(self) -> pd.DataFrame:
        """One row per entry: its place, its value, its effect."""
        import pandas as pd

        where = np.nonzero(self._possible())
        return pd.DataFrame({**self._place_columns(where), **self._number_columns(where)})

    def __str__(self) -> str:
        lines = [
            f"  {self._place_name(place):<{self._WIDTH}} {self._SHOWN} {effect:+.4f}{self._remark(effect)}"
            for place, effect in self.top(10)
        ]
        return "\n".join([*self._heading(), *lines])

    def _array(self, name: str | None = None, argument: str = "of") -> NDArray:
        if name not in (None, *self._ARRAYS):
            raise ValueError(f"{argument}: got {name!r}; expected {self._ARRAYS[1]!r} or {self._ARRAYS[0]!r}")
        return getattr(self, name or self._ARRAYS[0])

    def _possible(self) -> NDArray[np.bool_]:
        """The entries that mean something, in the shape of `effect`."""
        return np.ones(self.shape, dtype=bool)

    def _place(self, index: tuple[int, ...]) -> tuple:
        return index

    def _place_name(self, place: tuple) -> str:
        raise NotImplementedError

    def _place_columns(self, where: Index) -> dict[str, Any]:
        """Columns of a data frame that say which entries these are."""
        raise NotImplementedError

    def _number_columns(self, where: Index) -> dict[str, Any]:
        return {self._COLUMN: self._array()[where], "effect": self.effect[where]}

    def _heading(self) -> list[str]:
        raise NotImplementedError

    def _remark(self, effect: float) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class Measured(Result):
    """A result of exact runs, with what rounding does to them.

    noise_floor: how much rounding may change an effect, estimated from jittered copies of the base run (docs/design.md,
        Exactness). An effect below it may be rounding alone. plan: what the sweep did.
    """

    raw: NDArray[np.float64] = field(repr=False)
    noise_floor: float
    plan: Plan

    def warn_of_nan(self, measured: NDArray[np.bool_] | None = None) -> None:
        """Warns if the metric is no finite number in some results. measured: which were asked for; None: all."""
        bad = ~np.isfinite(self.raw)
        bad = (bad.any(0) if bad.ndim > self.effect.ndim else bad) & (True if measured is None else measured)
        if bad.any():
            first = self._place_name(self._place(largest(bad.astype(float), 1)[0]))
            total = bad.size if measured is None else int(measured.sum())
            warn(f"metric: {self.metric} is no finite number in {int(bad.sum())} of {total} results, the first of them {first}")

    @property
    def above_floor(self) -> NDArray[np.bool_]:
        """The entries whose |effect| is more than rounding, in the shape of `effect`."""
        return np.abs(self.effect) > self.noise_floor

    def _number_columns(self, where: Index) -> dict[str, Any]:
        return {**super()._number_columns(where), "above_floor": self.above_floor[where]}

    def _remark(self, effect: float) -> str:
        return "" if abs(effect) > self.noise_floor else "  (below the noise floor)"


@dataclass(frozen=True, kw_only=True)
class PairResult(Result):
    """A result of B pairs of a clean and a corrupted run.

    values: on the scale corrupted 0, clean 1 if normalised (over several examples the ratio of means), otherwise the raw
        metric's mean. effect: the distance from the base run on the same scale, if normalised positive towards the source.
    clean_metric, corrupted_metric [B]: the metric of the two runs. direction: "denoise" or "noise".
    """

    values: NDArray[np.float32]
    clean_metric: NDArray[np.float64]
    corrupted_metric: NDArray[np.float64]
    direction: str
    normalized: bool

    def _runs(self) -> str:
        return f"clean {self.clean_metric.mean():.4g}, corrupted {self.corrupted_metric.mean():.4g}"


@dataclass(frozen=True, kw_only=True)
class PlaceResult(PairResult):
    """A result with one entry for each layer, position and head, or for those of these axes that it has."""

    site: str
    """Of a key-value site that was edited for each query head on its own: k_per_query, v_per_query."""
    by_position: bool
    groups: tuple[str, ...] | None = None
    """Names of the groups of positions that were patched one at a time."""

    @property
    def axes(self) -> tuple[str, ...]:
        """What the axes of `values` count: ("layer", "head"), ("layer", "position", "head"), ("layer", "group")."""
        heads = () if self.site in RESIDUAL_SITES else ("head",)
        parts = ("position",) if self.by_position else ("group",) if self.groups else ()
        return ("layer", *parts, *heads)

    def _place_name(self, place: tuple) -> str:
        """L2H5, L2H5 at position 7."""
        at = dict(zip(self.axes, place, strict=True))
        name = f"L{at['layer']}" + (f"H{at['head']}" if "head" in at else "")
        if self.groups and "group" in at:
            name += f" in {self.groups[at['group']]!r}"
        return name + (f" at position {at['position']}" if "position" in at else "")

    def _place_columns(self, where: Index) -> dict[str, Any]:
        columns = dict(zip(self.axes, where, strict=True))
        return columns | ({"group": np.array(self.groups)[columns["group"]]} if self.groups else {})


@dataclass(frozen=True, kw_only=True)
class Sweep(PlaceResult, Measured):
    """The result of patching one place at a time. B examples, L layers, H heads (Hkv for k and v), T positions.

    values [L, H] float32: if normalised, on a scale where the corrupted run is 0 and the clean run is 1 (over several
        examples the ratio of means), otherwise the mean of the raw metric; [L, T, H] by position, [L, G, H] for groups of
        positions; without H for residual sites. NaN for heads that were not selected. Indexing gives values: sweep[l, h].
    raw [L, H], or [B, L, H] for a list of pairs: the metric itself, float64.
    effect: the distance from the base run on the scale of `values`, relative to the mean of the self-patches; 0 where nothing
        changes and, if normalised, positive towards the source.
    clean_metric, corrupted_metric [B]: the metric of the two runs.
    noise_floor: how much rounding may change an effect, estimated from jittered copies of the base run (docs/design.md,
        Exactness). An effect below it may be rounding alone.
    """

    logits: Tensor | None = field(default=None, repr=False)
    """[L, H, V] float32 (or [B, L, H, V]) if return_logits was asked for."""
    estimate: NDArray[np.float32] | None = field(default=None, repr=False)
    """If screened: `Attribution.effect`, the first-order estimates of all heads, those that were swept among them."""
    controls: Controls | None = field(default=None, repr=False)
    """If controls were asked for."""

    @property
    def control(self) -> NDArray[np.float32]:
        """The effects of the random control, in the shape of `effect`: NaN where it was not measured."""
        return np.full(self.shape, np.nan, np.float32) if self.controls is None else self.controls.random

    @property
    def sham(self) -> float:
        """The largest |effect| of a patch before the first difference; NaN where there is none, or it was not asked for."""
        return float("nan") if self.controls is None else largest_measured(self.controls.sham)

    @property
    def beyond(self) -> NDArray[np.bool_]:
        """The entries beyond floor and control: their |effect| is more than rounding, and more than all but 5 % of the random
        controls (`Controls.threshold`). Raises ValueError if no random control was measured."""
        if self.controls is None or not self.controls.n_random:
            why = (
                "" if self.controls is None else "".join(f" ({reason})" for reason in list(self.controls.missing.values())[:1])
            )
            raise ValueError(f"controls: no random control was measured{why}; expected controls='all' or ('random',)")
        return self.above_floor & (np.abs(self.effect) > self.controls.threshold)

    @property
    def exact(self) -> NDArray[np.bool_]:
        """The entries that were swept: all except heads that were not asked for or were left out by a screen."""
        return ~np.isnan(self.values)

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

    def _number_columns(self, where: Index) -> dict[str, Any]:
        columns = super()._number_columns(where)
        if self.controls is not None and self.controls.n_random:
            columns |= {"control": self.control[where], "beyond": self.beyond[where]}
        if self.estimate is not None:
            columns |= {"estimate": self.estimate[where], "exact": self.exact[where]}
        return columns

    def _remark(self, effect: float) -> str:
        within = self.controls is not None and abs(effect) <= self.controls.threshold
        return super()._remark(effect) or ("  (within the control)" if within else "")

    def _heading(self) -> list[str]:
        axes = " x ".join(self.axes)
        lines = [
            f"{self.model_name}: {self.site} patched, {self.direction}, metric {self.metric}, {axes} {list(self.shape)}",
            f"{self._runs()}, noise floor {self.noise_floor:.2g}",
        ]
        if self.controls is not None:
            lines.append(str(self.controls))
        if self.estimate is not None:
            heads = self.exact.any(1) if self.by_position else self.exact
            others = ~np.isnan(self.estimate) & ~self.exact
            best = f", the largest {np.abs(self.estimate[others]).max():.2g}" if others.any() else ""
            lines.append(
                f"screened: only the {int(heads.sum())} heads with the largest first-order estimates were swept, exactly; "
                f"the others have estimates alone{best}"
            )
        return lines


@dataclass(frozen=True, kw_only=True)
class VariantSweep(Measured):
    """The result of a sweep over N variants of one run.

    raw [N]: the metric itself, float64. effect [N] float32: the change from the base run, taken against the mean of
        self-patches; indexing gives effects. base_metric: of the run without edits. names: of the variants.
    noise_floor: what rounding may change in an effect, estimated from jittered copies of the base run.
    """

    base_metric: float
    names: tuple[str | None, ...]
    logits: Tensor | None = field(default=None, repr=False)
    """[N, V] float32 if return_logits was asked for."""

    _ARRAYS = ("effect", "raw")
    _WIDTH = 16

    def extended(self, kind: type[AnyVariantSweep], /, **fields: Any) -> AnyVariantSweep:
        """The same result as one of a kind that says more."""
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **fields)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def axes(self) -> tuple[str, ...]:
        return ("variant",)

    def _place_name(self, place: tuple) -> str:
        return self.names[place[0]] or f"variant {place[0]}"

    def _place_columns(self, where: Index) -> dict[str, Any]:
        return {"name": list(self.names)}

    def _number_columns(self, where: Index) -> dict[str, Any]:
        return {"raw": self.raw, "effect": self.effect, "above_floor": self.above_floor}

    def _heading(self) -> list[str]:
        about = f"{len(self)} variant(s), metric {self.metric}: base {self.base_metric:.4g}"
        return [f"{self.model_name}: {about}, noise floor {self.noise_floor:.2g}"]


@dataclass(frozen=True, kw_only=True)
class Ablation(VariantSweep):
    """Heads taken out of a run: all at once (N = 1), each on its own (N = len(heads)), or set by set (N = len(sets)).

    heads: all of them, each once; sets: those replaced together, one for each result.
    replaced_by: what the heads' z was replaced by, in words. n_averaged: the number of prompts in a mean, if it was taken here.
    """

    kind: str
    heads: tuple[tuple[int, int], ...]
    sets: tuple[tuple[tuple[int, int], ...], ...]
    each: bool
    replaced_by: str
    n_averaged: int | None

    def _place_columns(self, where: Index) -> dict[str, Any]:
        """With layer and head if each head was ablated on its own."""
        heads = {"layer": [l for l, _ in self.heads], "head": [h for _, h in self.heads]} if self.each else {}
        return heads | super()._place_columns(where)

    def _heading(self) -> list[str]:
        what = "each head on its own" if self.each else f"{len(self.heads)} head(s) at once"
        what = f"{len(self.sets)} sets of heads" if len(self.sets) > 1 and not self.each else what
        return [f"{what} replaced by {self.replaced_by}", *super()._heading()]


@dataclass(frozen=True, kw_only=True)
class Knockout(VariantSweep):
    """Edges cut in a run: in all places at once (N = 1), or in one after the other.

    places: for each result the (layer, head) in which they were cut, head None for all heads of the layer. from_, to: the
        positions that were no longer seen, and by which.
    """

    places: tuple[tuple[tuple[int, int | None], ...], ...]
    from_: tuple[int, ...]
    to: tuple[int, ...]

    def _place_columns(self, where: Index) -> dict[str, Any]:
        """With layer and head where each result has one of them."""
        columns: dict[str, Any] = {}
        for name, axis in (("layer", 0), ("head", 1)):
            found = [{place[axis] for place in places} for places in self.places]
            if all(len(names) == 1 and None not in names for names in found):
                columns[name] = [next(iter(names)) for names in found]
            else:
                break  # of several layers a head has no name
        return columns | super()._place_columns(where)

    def _heading(self) -> list[str]:
        return [f"attention of {len(self.to)} position(s) to {len(self.from_)} cut", *super()._heading()]
