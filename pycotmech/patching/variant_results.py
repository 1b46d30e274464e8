"""What sweeps over variants of one run return: any edits, ablated heads, cut edges."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._words import plural
from pycotmech.display import View
from pycotmech.patching.results import Index, Measured

AnyVariantSweep = TypeVar("AnyVariantSweep", bound="VariantSweep")

_MAPPED = 8
"""Heads from which on a map shows them better than bars."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VariantSweep(Measured):
    """The result of a sweep over N variants of one run.

    raw [N]: the metric itself, float64. effect [N] float32: the change from the base run, taken against the mean of
        self-patches; indexing gives effects. base_metric: of the run without edits. names: of the variants.
    noise_floor: what rounding may change in an effect, estimated from jittered copies of the base run.
    """

    base_metric: float
    names: tuple[str | None, ...]
    logits: Tensor | None = field(default=None, repr=False)
    """[N, V] float32, of a float64 model float64, if return_logits was asked for."""

    _ARRAYS = ("effect", "raw")
    _WIDTH = 16
    _GO_ON = (("result.top(20)", "the 20 strongest"),)

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

    def _title(self) -> str:
        return f"What {plural(len(self), 'variant')} of one run change"

    def _labels(self) -> dict[str, Any]:
        return {"variant": [self._place_name((i,)) for i in range(len(self))]}

    def _beside(self) -> dict[str, NDArray]:
        return {"metric": self.raw}

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "base_metric": self.base_metric}

    def _place_columns(self, where: Index) -> dict[str, Any]:
        return {"name": list(self.names)}

    def _number_columns(self, where: Index) -> dict[str, Any]:
        return {"raw": self.raw, "effect": self.effect, "above_floor": self.above_floor}

    def _heading(self) -> list[str]:
        about = f"{plural(len(self), 'variant')}, metric {self.metric}: base {self.base_metric:.4g}"
        return [f"{self.model_name}: {about}, noise floor {self.noise_floor:.2g}"]


@dataclass(frozen=True, kw_only=True, eq=False)
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

    def view(self) -> View:
        """With each head on its own a map of layers and heads; otherwise a bar for each set."""
        found = super().view()
        if not self.each or len(self) < _MAPPED:
            return found
        where = tuple(np.array(self.heads).T)
        grids = [np.full(np.max(self.heads, 0) + 1, np.nan) for _ in range(2)]
        for grid, values in zip(grids, (self.effect, self.raw), strict=True):
            grid[where] = values
        return dataclasses.replace(found, values=grids[0], axes=("layer", "head"), labels={}, beside={"metric": grids[1]})

    def _title(self) -> str:
        what = "each head on its own" if self.each else f"{plural(len(self.sets), 'set')} of heads"
        return f"What the run changes without {what}"

    def _more_labels(self) -> dict[str, Any]:
        if not self.each:
            return {}
        return {name: (("variant",), [head[i] for head in self.heads]) for i, name in enumerate(("layer", "head"))}

    def _heading(self) -> list[str]:
        what = "each head on its own" if self.each else f"{plural(len(self.heads), 'head')} at once"
        what = f"{len(self.sets)} sets of heads" if len(self.sets) > 1 and not self.each else what
        return [f"{what} replaced by {self.replaced_by}", *super()._heading()]


@dataclass(frozen=True, kw_only=True, eq=False)
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

    def _title(self) -> str:
        return "What the run changes where heads do not see some positions"

    def _heading(self) -> list[str]:
        return [f"attention of {plural(len(self.to), 'position')} to {len(self.from_)} cut", *super()._heading()]
