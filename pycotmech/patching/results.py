"""What sweeps return: effects, with the numbers needed to judge them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import did_you_mean
from pycotmech._warnings import warn
from pycotmech._words import plural
from pycotmech.display import Arrays, Displayed, View
from pycotmech.engine.planner import Plan
from pycotmech.figures.words import METRIC_UNITS, effect_label
from pycotmech.model.sites import RESIDUAL_SITES
from pycotmech.patching.control_results import Controls, largest_measured

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Index = tuple[NDArray[np.intp], ...]
"""Positions of E entries along each axis of a result, as `np.nonzero` gives them."""


def largest(score: NDArray, k: int) -> list[tuple[int, ...]]:
    """The indices of the k largest scores in descending order; ties in the order of the array. NaN is left out."""
    order = np.argsort(-score.ravel(), kind="stable")[: min(k, np.count_nonzero(~np.isnan(score)))]
    return list(map(tuple, np.array(np.unravel_index(order, score.shape)).T.tolist()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Result(Displayed):
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
    _GO_ON: ClassVar[tuple[tuple[str, str], ...]] = ()
    """What to ask next: (code, what it gives)."""

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

    def view(self) -> View:
        """The effects, and beside them the values and controls."""
        return View(
            title=self._title(), values=np.where(self._possible(), self.effect, np.nan), axes=self.axes, label=self._label(),
            labels=self._labels(), beside=self._beside(), facts=tuple(self._heading()), go_on=self._GO_ON,
        )  # fmt: skip

    def to_xarray(self) -> xr.Dataset:
        """Every array on named axes, with labels, units and how it was made."""
        data = self._data()
        return Arrays(
            data=data, coords={**self._labels(), **self._more_labels()}, units=self._units(data), attrs=self._facts()
        ).dataset()

    def __str__(self) -> str:
        lines = [
            f"  {self._place_name(place):<{self._WIDTH}} {self._SHOWN} {effect:+.4f}{self._remark(effect)}"
            for place, effect in self.top(10)
        ]
        return "\n".join([*self._heading(), *lines])

    def _array(self, name: str | None = None, argument: str = "of") -> NDArray:
        if name not in (None, *self._ARRAYS):
            first, second = self._ARRAYS[1], self._ARRAYS[0]
            raise ValueError(f"{argument}: got {name!r}; expected {first!r} or {second!r}{did_you_mean(name, self._ARRAYS)}")
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

    def _title(self) -> str:
        """What was asked, in words."""
        raise NotImplementedError

    def _label(self) -> str:
        """What an effect is."""
        return effect_label(self.metric, "", False)

    def _labels(self) -> dict[str, Any]:
        """Labels of the axes."""
        return {}

    def _more_labels(self) -> dict[str, Any]:
        """Further labels of a Dataset: name -> (axes, values)."""
        return {}

    def _beside(self) -> dict[str, NDArray]:
        """What is shown beside each effect."""
        return {}

    def _data(self) -> dict[str, Any]:
        """Every array with its axes."""
        return {"effect": (self.axes, self.effect)}

    def _units(self, data: dict[str, Any]) -> dict[str, str]:
        unit = METRIC_UNITS.get(self.metric, self.metric)
        return {name: unit for name, (_, values) in data.items() if values.dtype != bool}

    def _facts(self) -> dict[str, Any]:
        """What the attributes of a Dataset say."""
        return {"title": self._title(), "model": self.model_name, "metric": self.metric, "source": "docs/design.md"}


@dataclass(frozen=True, kw_only=True, eq=False)
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

    def view(self) -> View:
        return dataclasses.replace(super().view(), floor=self.noise_floor)

    def _data(self) -> dict[str, Any]:
        axes = ("example", *self.axes) if self.raw.ndim > self.effect.ndim else self.axes
        return {**super()._data(), "raw": (axes, self.raw), "above_floor": (self.axes, self.above_floor)}

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "noise_floor": self.noise_floor}

    def _number_columns(self, where: Index) -> dict[str, Any]:
        return {**super()._number_columns(where), "above_floor": self.above_floor[where]}

    def _remark(self, effect: float) -> str:
        return "" if abs(effect) > self.noise_floor else "  (below the noise floor)"


@dataclass(frozen=True, kw_only=True, eq=False)
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

    def _label(self) -> str:
        return effect_label(self.metric, self.direction, self.normalized)

    def _beside(self) -> dict[str, NDArray]:
        return {"value": self.values}

    def _data(self) -> dict[str, Any]:
        ends = {"clean_metric": (("example",), self.clean_metric), "corrupted_metric": (("example",), self.corrupted_metric)}
        return {"values": (self.axes, self.values), **super()._data(), **ends}

    def _units(self, data: dict[str, Any]) -> dict[str, str]:
        share = "share of clean - corrupted"
        scaled = {name: share for name in ("values", "effect", "control", "estimate") if self.normalized and name in data}
        return {**super()._units(data), **scaled}

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "direction": self.direction, "normalized": int(self.normalized)}

    def _runs(self) -> str:
        return f"clean {self.clean_metric.mean():.4g}, corrupted {self.corrupted_metric.mean():.4g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceResult(PairResult):
    """A result with one entry for each layer, position and head, or for those of these axes that it has."""

    site: str
    """Of a key-value site that was edited for each query head on its own: k_per_query, v_per_query."""
    by_position: bool
    groups: tuple[str, ...] | None = None
    """Names of the groups of positions that were patched one at a time."""
    token_texts: tuple[str, ...] | None = field(default=None, repr=False)
    """By position, of one pair and a model with a tokenizer: the tokens of the clean prompt."""

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

    def view(self) -> View:
        words = {"position": [repr(text) for text in self.token_texts]} if self.token_texts and "position" in self.axes else {}
        # By position or group, layers and positions fill a map; of the heads it shows the strongest.
        return dataclasses.replace(super().view(), words=words, strongest_of="head" if len(self.axes) == 3 else None)

    def plot(self, *, title: str | None = None, path: str | PathLike | None = None):
        """Heat map, layers upward, heads to the right, red-blue around 0; a matplotlib figure, saved to `path` if given."""
        from pycotmech.figures.heatmap import effect_figure

        across = "position" if self.by_position else f"group ({', '.join(self.groups)})" if self.groups else "head"
        across = across if self.effect.ndim > 1 else "all positions"
        floor = f", noise floor {self.noise_floor:.1g}" if isinstance(self, Measured) else ""
        return effect_figure(
            self.effect[:, None] if self.effect.ndim == 1 else self.effect,
            title=title or self._title(),
            lines=[f"{self.model_name}, {plural(len(self.clean_metric), 'pair')}{floor}"],
            metric=self.metric,
            direction=self.direction,
            normalised=self.normalized,
            across=across,
            path=path,
        )

    def _title(self) -> str:
        ends = ("clean", "corrupted") if self.direction == "denoise" else ("corrupted", "clean")
        part = " and position" if self.by_position else " and group of positions" if self.groups else ""
        what = "layer" if self.site in RESIDUAL_SITES else "head"
        return f"{self.site} of the {ends[0]} run patched into the {ends[1]} one, one {what}{part} at a time"

    def _labels(self) -> dict[str, Any]:
        names = {"group": list(self.groups)} if self.groups else {}
        return {axis: names.get(axis, list(range(n))) for axis, n in zip(self.axes, self.shape, strict=True)}

    def _more_labels(self) -> dict[str, Any]:
        return {"token": (("position",), list(self.token_texts))} if self.token_texts and self.by_position else {}

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "site": self.site}


@dataclass(frozen=True, kw_only=True, eq=False)
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
    """[L, H, V] float32, of a float64 model float64 (or [B, L, H, V]) if return_logits was asked for."""
    estimate: NDArray[np.float32] | None = field(default=None, repr=False)
    """If screened: `Attribution.effect`, the first-order estimates of all heads, those that were swept among them."""
    controls: Controls | None = field(default=None, repr=False)
    """If controls were asked for."""

    _GO_ON = (
        ("sweep.top(20)", "the 20 strongest"),
        ("pcm.path_patch(model, clean, corrupted, receivers=[(layer, head)])", "what feeds a head"),
        ("pcm.ablate_heads(model, clean, heads=[(layer, head)])", "what the model does without it"),
    )

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

    def _beside(self) -> dict[str, NDArray]:
        more = {} if self.controls is None or not self.controls.n_random else {"random control": self.control}
        return {**super()._beside(), **more}

    def _data(self) -> dict[str, Any]:
        found = super()._data()
        if self.controls is not None and self.controls.n_random:
            found |= {"control": (self.axes, self.control), "beyond": (self.axes, self.beyond)}
        if self.estimate is not None:
            found |= {"estimate": (self.axes, self.estimate), "exact": (self.axes, self.exact)}
        return found

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
