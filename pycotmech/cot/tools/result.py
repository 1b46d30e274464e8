"""What every analysis returns: labelled arrays with per-example values, intervals, a table, a plot, and how it was made."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

from pycotmech._choices import did_you_mean, shortened, unknown_choice
from pycotmech._words import plural
from pycotmech.display import Displayed, View
from pycotmech.files.arrays import DamagedData, load_arrays, save_arrays
from pycotmech.files.text import parse_json, printable
from pycotmech.stats import bootstrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.cot.task.examples import Examples
    from pycotmech.cot.tools.cells import Cells
    from pycotmech.cot.tools.cost import Meter
    from pycotmech.model import Model

Progress = Callable[[float, float], None]
"""Called with (done, in all)."""
A = TypeVar("A")


class Apart(NamedTuple, Generic[A]):
    """A result in two parts. words: how many examples are reported on, and that nothing was chosen on them, if that is so.
    held_out: whether it is so."""

    choosing: A
    reporting: A
    words: str
    held_out: bool


@dataclass(frozen=True, eq=False)
class Analysis(Displayed):
    """A result. data: an xarray Dataset with labelled axes (example, step, layer, head, ...); NaN where a step of an example
    does not count. about: model, definition, settings, source in the paper, cost.

    Subclasses say what the variables are, and fill in `shown`, `label`, `table`, `plot` and `findings`.
    """

    data: xr.Dataset
    about: Mapping[str, Any] = field(repr=False)

    name: ClassVar[str] = ""
    """As the function is called; the file stem of a stored result."""
    title: ClassVar[str] = ""
    source: ClassVar[str] = ""
    """The experiment in docs/protocol.md, as "E8, stage I"."""
    label: ClassVar[str] = ""
    """What the numbers of `shown` are."""
    share: ClassVar[bool] = False
    """Whether they are shares from 0 to 1."""
    by_size: ClassVar[bool] = True
    """Whether the strongest are the largest by size, or the largest."""
    ranges: ClassVar[Mapping[str, bootstrap.Range]] = {}
    """Variables that can only lie in a range (bootstrap.SHARE, COUNT, ...), to which their intervals are cut."""

    @classmethod
    def made(
        cls,
        model: Model,
        cells: Cells,
        data: Mapping[str, Any] | xr.Dataset,
        axes: Mapping[str, int | Sequence] | None,
        definition: str,
        settings: Mapping[str, Any],
        meter: Meter | None = None,
        *,
        source: str = "",
    ) -> Self:
        """A result on cells. data, axes: as `Cells.dataset` takes them, or its dataset and None. definition: in words.
        source: if not the class's."""
        data = data if isinstance(data, xr.Dataset) else cells.dataset(data, axes or {})
        n, parts = len(cells.examples), len(cells)
        return cls(data, cls.facts(model, cells.examples, n, parts, definition, settings, meter, source=source))

    @classmethod
    def facts(
        cls,
        model: Model,
        examples: Examples | None,
        n: int,
        parts: int,
        definition: str,
        settings: Mapping[str, Any],
        meter: Meter | None = None,
        *,
        source: str = "",
    ) -> dict[str, Any]:
        """How a result was made, for `about`. examples: whose task it is. n: examples of its first axis; parts: cells, or
        other parts of these, that count."""
        names = ("hops", "shots", "ontology", "style", "order", "distractors", "competing", "seed")
        names += ("template", "think") if examples is not None and examples.template is not None else ()
        made: dict[str, Any] = {
            "model": model.name,
            "notes": list(model.notes),
            "dtype": str(model.cfg.dtype).removeprefix("torch."),
            "source": f"docs/protocol.md, {source or cls.source}",
            "definition": definition,
            "settings": dict(settings),
            "task": {k: getattr(examples, k) for k in names} if examples is not None else {},
            "examples": n,
            "cells": parts,
        }
        if meter is not None:
            made["cost"] = {"token_forwards": meter.token_forwards, "flop": meter.flop, "seconds": meter.seconds}
        return made

    # ---- to read ---------------------------------------------------------------------------------------------------

    def interval(self, variable: str, *, over: str = "example", level: float = bootstrap.LEVEL, seed: int = 0) -> xr.Dataset:
        """Mean over examples of a variable, with its bootstrap interval, within `ranges`: mean, low, high, n on the remaining
        axes."""
        if variable not in self.data or over not in self.data[variable].dims:
            known = [name for name, v in self.data.items() if over in v.dims]
            raise ValueError(
                f"variable: got {variable!r}; expected one with the axis {over!r}: {shortened(known)}"
                f"{did_you_mean(variable, known)}"
            )
        values = self.data[variable].transpose(over, ...)
        found = bootstrap.mean_interval(values.values, within=self.ranges.get(variable), level=level, seed=seed)
        return labelled(found, values, over)

    def apart(self, counts: ArrayLike) -> Apart[Self] | None:
        """The same result on the examples to choose on and on those to report on: the halves of those that count.

        counts: bool [example]. A single one is in both parts. None if none counts.
        """
        index = np.flatnonzero(np.asarray(counts))
        if len(index) == 0:
            return None
        halves = bootstrap.halves(len(index), seed=self.about["settings"].get("seed", 0))
        choosing, reporting = (type(self)(self.data.isel(example=index[half]), self.about) for half in halves)
        held_out = len(index) > 1
        return Apart(choosing, reporting, f"n = {len(halves[1])}{' held out' if held_out else ''}", held_out)

    def at_step(self, variable: str, step: int | None, *, held_out: bool = True) -> Apart[Self] | None:
        """One step's result in the parts that its strongest heads are chosen and reported on: the halves of the examples that
        have the variable there, from `bootstrap.HALVED` of them on. With fewer, or without held_out, all of them in both parts.

        step None: all steps. None if no example has the variable there. Raises ValueError for a step that is not there.

        The largest of many means is too large on the examples that made it the largest: it is reported on others.
        """
        known = self.data["step"].values.tolist()
        if step is not None and step not in known:
            raise ValueError(unknown_choice("step", step, known))
        here = self if step is None else type(self)(self.data.isel(step=[known.index(step)]), self.about)
        values = here.data[variable]
        counts = values.notnull().any([d for d in values.dims if d != "example"]).values
        if held_out and counts.sum() >= bootstrap.HALVED:
            return here.apart(counts)
        if not counts.any():
            return None
        same = type(self)(here.data.isel(example=np.flatnonzero(counts)), self.about)
        return Apart(same, same, f"n = {counts.sum()}, chosen on the same", False)

    def shown(self) -> xr.Dataset:
        """Returns the main numbers, averaged over examples: mean, and low, high and n where there are intervals, on the axes of
        the main figure."""
        raise NotImplementedError

    def view(self) -> View:
        """What `shown` gives; beside each number its interval and n."""
        found = self.shown()
        mean = found["mean"]
        axes = tuple(str(d) for d in mean.dims)
        beside = {name: found[name].transpose(*axes).values for name in ("low", "high", "n") if name in found}
        kinds = self.data["kind"].values if "kind" in self.data.coords and self.data["kind"].dims == ("step",) else ()
        steps = self.data["step"].values.tolist() if len(kinds) else []
        kind_of = dict(zip(steps, map(str, kinds), strict=True))
        words = {"step": [kind_of.get(s, "") for s in found["step"].values.tolist()]} if kind_of and "step" in axes else {}
        return View(
            title=f"{self.about['model']}: {self.title}", values=mean.values, axes=axes, label=self.label, share=self.share,
            labels={d: found[d].values.tolist() for d in axes if d in found.coords}, words=words, beside=beside,
            by_size=self.by_size, facts=(self._how(),), go_on=self._go_on(),
        )  # fmt: skip

    def _how(self) -> str:
        """How it was made, in a line: its source and definition."""
        return ": ".join(str(self.about[name]) for name in ("source", "definition") if name in self.about)

    def _go_on(self) -> tuple[tuple[str, str], ...]:
        further = [(f"result.figures()[{name!r}]()", "a further figure") for name in self.figures()]
        return (("result.table()", "the numbers with their intervals"), *further[:3])

    def to_xarray(self) -> xr.Dataset:
        """Returns `data` with how it was made in its attributes: title, model, source, definition, settings, notes."""
        about = {k: v if isinstance(v, (str, int, float)) else json.dumps(v, default=_for_json) for k, v in self.about.items()}
        return self.data.assign_attrs({"title": self.title, **about})

    def to_dataframe(self, variables: Sequence[str] | None = None) -> pd.DataFrame:
        """Returns `data` as a long table: a row for each cell, with the labels of its axes. `table` has means with intervals.

        variables: which; None: all. Variables whose axes are no part of each other's give rows of their own.
        Raises ValueError for more than 20 million rows, before they are made.
        """
        from pycotmech.files.long_table import long_table

        if variables is not None and (unknown := [name for name in variables if name not in self.data.data_vars]):
            raise ValueError(unknown_choice("variables", unknown[0], self.data.data_vars, several=True))
        return long_table(self.data, variables)

    def table(self) -> pd.DataFrame:
        """The numbers one would want in a table, with their intervals."""
        raise NotImplementedError

    def plot(self, *, path: str | PathLike | None = None) -> Figure:  # type: ignore[override]
        """A matplotlib figure, saved to `path` if given."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, Callable[..., Figure]]:
        """What it draws besides `plot`: for each figure a name and a method that takes path=."""
        return {}

    def small_print(self, variable: str = "", about: str = "", *, marks: str = "") -> list[str]:
        """What a figure says below: how many examples have the variable at any step and how many steps count, `about` and
        the definition; without a variable the definition alone. Then the model's notes.

        marks: what shows the intervals, such as "bands"."""
        made = self.definition_words
        if variable:
            values = self.data[variable]
            n = int(values.notnull().any([d for d in values.dims if d != "example"]).sum())
            made = f"{plural(n, 'example')}, {self.about['cells']} steps that are right; {about}{made}"
        shown = [f"{marks}: {bootstrap.LEVEL:.0%} intervals over examples".replace("%", " %")] if marks else []
        return [made, *shown, *self.about["notes"]]

    def step_ticks(self) -> list[str]:
        """Each step's number and the beginning of its kind, for an axis."""
        return [f"{s}\n{str(k)[:3]}." for s, k in zip(self.data["step"].values, self.data["kind"].values)]

    @property
    def definition_words(self) -> str:
        """What was computed, as a phrase."""
        return self.about["definition"]

    def findings(self) -> list[str]:
        """What the numbers say, in sentences that hold only what they bear out."""
        raise NotImplementedError

    def __str__(self) -> str:
        head = f"{self.title} ({self.about['model']}; {self.about['source']})"
        return "\n".join([head, *(f"  {line}" for line in self.findings())])

    def __repr__(self) -> str:
        axes = ", ".join(f"{n} {name}s" for name, n in self.data.sizes.items())
        return f"{type(self).__name__}({printable(self.about['model'])}: {self.title}; {axes})"

    def _repr_html_(self) -> str:
        from pycotmech.display.markup import METHODS, html_of_table

        title, steps = f"{self.about['model']}: {self.title}", (*self._go_on(), METHODS)
        lines = [*self.findings(), self._how()]
        return html_of_table(title, lines, self.table(), steps, type(self).__name__)

    # ---- to keep ---------------------------------------------------------------------------------------------------

    def save(self, folder: str | PathLike) -> Path:
        """Writes <folder>/<name>.zarr (replaced if it is there) and returns its path; `load` reads it back."""
        path = Path(folder) / f"{self.name}.zarr"
        save_arrays(self.data.assign_attrs(about=json.dumps(self.about, default=_for_json)), path)
        return path

    @classmethod
    def load(cls, folder: str | PathLike) -> Self:
        """Reads what `save` wrote into the folder.

        Raises FileNotFoundError if it is not there, DamagedData if it is not what was written, ValueError for a store that
        holds more than plain arrays.
        """
        path = Path(folder) / f"{cls.name}.zarr"
        if not path.is_dir():
            raise FileNotFoundError(f"folder: {folder} holds no {cls.name}.zarr; expected one written by {cls.__name__}.save")
        data = load_arrays(path)
        try:
            about = parse_json(data.attrs.pop("about"))
        except (KeyError, ValueError) as error:
            raise DamagedData(f"{path} does not state how it was made") from error
        return cls(data, about)


def labelled(found: bootstrap.Interval, values: xr.DataArray, over: str = "example") -> xr.Dataset:
    """An interval with the labels of the values that it was taken of, without the axis that was averaged."""
    first = values.isel({over: 0}, drop=True)
    return xr.Dataset({k: first.copy(data=v) for k, v in found._asdict().items()})


def interval_table(
    found: Mapping[str, xr.Dataset], dims: Sequence[str], *, main: str = "", more: Callable[[dict], dict] | None = None
) -> pd.DataFrame:
    """A row for each place along dims: its labels (of a step its kind), each interval as `columns` has it, and the first
    one's n.

    main: whose interval is called low and high. more: columns before n, from the labels of the place.
    """
    import pandas as pd

    first, rows = next(iter(found.values())), []
    for place in itertools.product(*(first[d].values.tolist() for d in dims)):
        at = dict(zip(dims, place))
        row: dict[str, Any] = {}
        for d in dims:
            row |= {d: at[d]} | ({"kind": str(first["kind"].sel(step=at[d]).values)} if d == "step" else {})
        for name, one in found.items():
            row |= headline(name, one.sel(at)) if name == main else columns(name, one.sel(at))
        rows.append(row | (more(at) if more else {}) | {"n": int(first["n"].sel(at))})
    return pd.DataFrame(rows)


def counting(progress: Progress | None, total: float) -> Callable[[], None]:
    """Returns what is to be called each time one of `total` parts is done."""
    done = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress(next(done), total)

    return tick


def headline(name: str, found: Mapping[Any, Any]) -> dict[str, float]:
    """The main number of a table with its interval: name, low, high."""
    return {name: float(found["mean"]), "low": float(found["low"]), "high": float(found["high"])}


def columns(name: str, found: Mapping[Any, Any]) -> dict[str, float]:
    """One number with its interval as a table has it: name, name_low, name_high."""
    return {f"{name}{end}": float(found[key]) for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))}


def in_words(row: Mapping[str, Any], name: str, form: str = "{:.2f}", *, main: bool = False) -> str:
    """A number of a table's row with its interval, as `columns` has it (main: as `headline` does)."""
    low, high = ("low", "high") if main else (f"{name}_low", f"{name}_high")
    return bootstrap.number(row[name], form) + bootstrap.ends(row[low], row[high], form)


def top_cells(values: xr.DataArray, k: int, dims: Sequence[str] = ("layer", "head"), *, by_size: bool = False) -> list[tuple]:
    """The k largest entries (by_size: largest |entries|) of values over `dims`: (*place, value); ties to the lower place."""
    grid = values.transpose(*dims).values
    score = np.abs(grid) if by_size else grid
    flat = np.where(np.isnan(score), -np.inf, score).ravel()
    order = np.argsort(-flat, kind="stable")[: min(k, int(np.isfinite(flat).sum()))]
    places = (np.unravel_index(int(o), grid.shape) for o in order)
    return [(*(values[d].values[i] for d, i in zip(dims, place)), float(grid[place])) for place in places]


def _for_json(value: Any) -> Any:
    """What JSON does not know, as something it knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
