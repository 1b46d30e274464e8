"""The main array of a result with the names of its axes: which cells are the strongest, what they are called, how they lie in a
figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.files.text import printable

LONGEST = 80
"""Characters of a label that are shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What a result shows of itself.

    title: what was asked, in words. values: the main array; NaN where there is no number.
    axes: the names of its axes. labels: of an axis, by its name: numbers or texts; 0, 1, ... by default.
    words: of an axis, a text after each label, such as the token at a position in quotes, or the kind of a step.
    label: what a value is. floor: what rounding may change in it. share: whether values are shares from 0 to 1.
    beside: further numbers or texts of each cell, by name, in the shape of `values`.
    by_size: whether the strongest cells are those with the largest |value|, or with the largest value.
    strongest_of: an axis of which a figure shows the strongest entry alone, because two axes fill it already.
    called: the name of a cell, given its place on each axis; None: its labels.
    facts: lines that stand below the title. go_on: what to ask next: (code, what it gives).
    """

    title: str
    values: NDArray
    axes: tuple[str, ...]
    label: str
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    floor: float | None = None
    share: bool = False
    beside: Mapping[str, NDArray] = field(default_factory=dict)
    by_size: bool = True
    strongest_of: str | None = None
    called: Callable[[tuple[int, ...]], str] | None = None
    facts: tuple[str, ...] = ()
    go_on: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.values.ndim != len(self.axes):
            raise ValueError(f"axes: got {self.axes} for values of shape {list(self.values.shape)}; expected a name for each")

    # ---- cells -------------------------------------------------------------------------------------------------------

    def tick(self, axis: str, i: int) -> str:
        """A place on one axis: "7", or "7 ' the'" where there are words."""
        text = shown(self.labels[axis][i]) if axis in self.labels else str(i)
        return f"{text} {shown(self.words[axis][i])}" if axis in self.words else text

    def place(self, index: Sequence[int]) -> str:
        """The name of a cell: "L2H5", "step 3, L2H5", "position 7 ' the', L2"."""
        if self.called is not None:
            return shown(self.called(tuple(index)))
        at = dict(zip(self.axes, index, strict=True))
        parts = [self._named(axis, i) for axis, i in at.items() if axis not in ("layer", "head") or "layer" not in at]
        if "layer" in at:
            head = f"H{self.tick('head', at['head'])}" if "head" in at else ""
            parts.insert(0 if self.strongest_of else len(parts), f"L{self.tick('layer', at['layer'])}{head}")
        return ", ".join(parts)

    def _named(self, axis: str, i: int) -> str:
        """Texts say what they are; a number needs the name of its axis."""
        is_text = axis in self.labels and isinstance(self.labels[axis][i], str)
        return self.tick(axis, i) if is_text else f"{axis} {self.tick(axis, i)}"

    def strongest(self, k: int = 8) -> list[tuple[tuple[int, ...], float]]:
        """The k cells with the largest |value| (or value), as (index, value); 0 and NaN are left out, ties in the order of the
        array."""
        score = np.abs(self.values) if self.by_size else self.values
        flat = np.where(np.isfinite(score) & (score != 0), score, -np.inf).ravel()
        best = np.argsort(-flat, kind="stable")[:k]
        where = [tuple(int(i) for i in np.unravel_index(at, self.values.shape)) for at in best if flat[at] > -np.inf]
        return [(index, float(self.values[index])) for index in where]

    def number(self, value: float) -> str:
        """A value as it is written."""
        return f"{value:.3f}" if self.share else f"{value:+.4g}"

    def line(self) -> str:
        """The result in one line: what it is, its axes, its strongest cell."""
        sizes = ", ".join(f"{axis}: {n}" for axis, n in zip(self.axes, self.values.shape, strict=True))
        found = [f"largest {self.place(index)} {self.number(value)}" for index, value in self.strongest(1)]
        floor = [] if self.floor is None else [f"noise floor {self.floor:.2g}"]
        return "; ".join([f"{printable(self.title)} [{sizes}]", *found, *floor])

    # ---- figures -----------------------------------------------------------------------------------------------------

    @property
    def limit(self) -> float:
        """The end of a colour scale that is the same to both sides of 0."""
        finite = np.abs(self.values[np.isfinite(self.values)])
        return (float(finite.max()) if finite.size else 0.0) or 1.0

    @property
    def drawn(self) -> tuple[str | None, str]:
        """The axes of a figure: rows (None for bars) and columns."""
        left = [axis for axis in self.axes if axis != self.strongest_of]
        if len(left) == 1:
            return None, left[0]
        if "layer" not in left:
            return left[-2], left[-1]
        return "layer", "head" if "head" in left else [axis for axis in left if axis != "layer"][-1]

    def panels(self) -> list[Panel]:
        """The array cut into parts that fill one figure each, with what every cell of it is."""
        where = np.arange(self.values.size).reshape(self.values.shape)
        axes = list(self.axes)
        if self.strongest_of is not None:
            at = axes.index(self.strongest_of)
            best = np.abs(np.nan_to_num(self.values)).argmax(at)
            where = np.take_along_axis(where, np.expand_dims(best, at), at).squeeze(at)
            axes.remove(self.strongest_of)
        rows, columns = self.drawn
        kept = [axis for axis in (rows, columns) if axis is not None]
        others = [axis for axis in axes if axis not in kept]
        where = where.transpose([axes.index(axis) for axis in (*others, *kept)])
        out = []
        for index in product(*(range(n) for n in where.shape[: len(others)])):
            name = ", ".join(self._named(axis, i) for axis, i in zip(others, index, strict=True))
            out.append(Panel(name, where[index]))
        return out

    def name_of(self, flat: int) -> str:
        """The name of the cell with this place in the flattened array."""
        return self.place([int(i) for i in np.unravel_index(flat, self.values.shape)])


class Panel(NamedTuple):
    """One part of a view. where: [rows, columns] or [bars], the place of each cell in the flattened array."""

    name: str
    where: NDArray[np.intp]

    def of(self, values: NDArray) -> NDArray:
        """An array of the view's shape in the shape of the part."""
        return values.reshape(-1)[self.where]


def shown(label: Any) -> str:
    """A label as a short printable text."""
    if isinstance(label, (float, np.floating)):
        return f"{label:g}"
    text = printable(label)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def plain(value: Any) -> str:
    """A further number or text of a cell as it is written; "" for NaN."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return "" if math.isnan(value) else f"{value:.4g}"
    return shown(value)
