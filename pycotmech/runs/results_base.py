"""What every results folder offers: datasets, tables, plots, provenance, status, exports."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from pycotmech._choices import check_choice, did_you_mean, shortened, unknown_choice
from pycotmech.display import Displayed, View
from pycotmech.files.arrays import open_arrays, open_group
from pycotmech.files.long_table import long_table
from pycotmech.files.text import parse_json, printable
from pycotmech.files.whole import read_sealed
from pycotmech.files.write import subfolder
from pycotmech.runs.events import Events, read_events
from pycotmech.runs.export import FORMATS, check_pyarrow, export
from pycotmech.runs.folder import made_folder
from pycotmech.runs.for_tools import TOOLS, HeadValues, StepScores, export_for_tool, needs_model
from pycotmech.runs.provenance import provenance_of
from pycotmech.runs.save_figures import Drawing, SavedFigures, check_arguments, chosen, save
from pycotmech.runs.status import Status, status_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from plotly.graph_objects import Figure as Interactive

    from pycotmech.cot.tools.result import Analysis


class Results(Displayed):
    """A results folder.

    folder: its path. kind: "run", "sweep" (a run on the user's own pairs), "paper", "attention" or "trace".
    names: its datasets; `results[name]` is one of them, an xarray Dataset with labelled axes whose values are read on demand.
    data: the only dataset, where there is one.
    provenance: how it was made, for each kind under the same names (`pycotmech.runs.provenance`).
    """

    kind: str = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def names(self) -> tuple[str, ...]:
        raise NotImplementedError

    @cached_property
    def provenance(self) -> dict[str, Any]:
        raise NotImplementedError

    def __getitem__(self, name: str) -> xr.Dataset:
        if name not in self.names:
            there = f"{shortened(self.names) or 'none'}{did_you_mean(name, self.names)}"
            raise KeyError(f"{printable(self.folder)} has no dataset {name!r}; it has {there}")
        return self._dataset(name)

    @property
    def data(self) -> xr.Dataset:
        """The dataset of a folder that has one. Raises ValueError naming them where there are several."""
        return self[self._one(None)]

    @property
    def tables(self) -> tuple[str, ...]:
        """The names that `table` takes."""
        raise NotImplementedError

    def table(self, name: str | None = None, **more: Any) -> pd.DataFrame:
        """Returns a table of results. name: one of `tables`; None: the first."""
        raise NotImplementedError

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, path: str | os.PathLike | None = None, **more: Any
    ) -> Figure:
        """Draws results as a matplotlib figure, saved to `path` if given."""
        raise NotImplementedError

    def drawings(self) -> dict[str, Drawing]:
        """The figures that `save_figures` makes, by name. Nothing is drawn before one is asked for."""
        raise NotImplementedError

    def missing_drawings(self) -> dict[str, str]:
        """Figures that the folder has no results for, by name, and why or what would make them."""
        return {}

    def save_figures(
        self,
        out: str | os.PathLike,
        *,
        only: Sequence[str] | None = None,
        formats: Sequence[str] = ("png",),
        dpi: float = 150,
    ) -> SavedFigures:
        """Writes figures of the results as NAME.<format> into the folder `out`, and their captions as captions.md: what each
        shows, the model, how many examples, what the bars are.

        only: names (`drawings`) or experiments of the paper such as "E8"; None: all. formats: "png", "svg" and "pdf". dpi:
        pixels per inch of a PNG. Raises ValueError naming the argument. A figure that cannot be drawn is named in `failures`
        of what is returned, and the others are made. Cost: values are read and intervals computed; the model is not loaded.
        """
        check_arguments(formats, dpi)
        missing = self.missing_drawings()
        drawings = chosen(self.drawings(), only, missing)
        heading = f"Figures of {self.folder.name}"
        missing = missing if only is None else {}
        return save(drawings, out, formats=list(dict.fromkeys(formats)), dpi=dpi, heading=heading, missing=missing)

    def view(self, name: str | None = None) -> View:
        """Returns the main array of a dataset. name: which; it may be left out where there is one."""
        raise NotImplementedError

    def to_xarray(self, name: str | None = None) -> xr.Dataset:
        """Returns a dataset, whose values are read on demand: `results[name]`. name: it may be left out where there is one."""
        return self[self._one(name)]

    def to_plotly(self, name: str | None = None, *, title: str | None = None) -> Interactive:
        """Returns the main array of a dataset as a plotly figure that answers to the mouse.

        name: which; it may be left out where there is one. title: what stands above. Raises ImportError saying what to install
        where plotly is missing.
        """
        from pycotmech.display.interactive import interactive_figure

        return interactive_figure(self.view(name), title)

    def report(self, path: str | os.PathLike | None = None) -> Path:
        """Writes the report of the folder as one HTML file that needs no network, and returns its path. path: the file; None:
        report.html in the folder. See `pycotmech.write_report`."""
        import pycotmech  # the page is made above this package, which the face of the whole may name

        return pycotmech.write_report(self, path)

    def events(self) -> Events:
        """What is recorded of the processes that wrote the folder."""
        return read_events(self.folder)

    def status(self) -> Status:
        """How far the folder is, and whether a process writes to it now."""
        return status_of(self.folder)

    # ---- to other programs ----------------------------------------------------------------------------------------------

    def to_dataframe(  # type: ignore[override]
        self, name: str | None = None, *, variables: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Returns a dataset as a long table in memory: a row for each cell, with the labels of its axes.

        Raises ValueError for more than 20 million rows, before they are made; `to_parquet` and the others have no limit.
        """
        return long_table(self[self._one(name)], variables)

    def to_parquet(self, path: str | os.PathLike, name: str | None = None, **more: Any) -> list[Path]:
        """Writes the long table as Parquet. See `export`."""
        return self.export("parquet", path, name, **more)

    def to_csv(self, path: str | os.PathLike, name: str | None = None, **more: Any) -> list[Path]:
        """Writes the long table as CSV. See `export`."""
        return self.export("csv", path, name, **more)

    def to_json(self, path: str | os.PathLike, name: str | None = None, **more: Any) -> list[Path]:
        """Writes the long table as JSON. See `export`."""
        return self.export("json", path, name, **more)

    def to_safetensors(self, path: str | os.PathLike, name: str | None = None, **more: Any) -> list[Path]:
        """Writes the arrays as they are. See `export`."""
        return self.export("safetensors", path, name, **more)

    def export(
        self,
        to: str,
        path: str | os.PathLike,
        name: str | None = None,
        *,
        variables: Sequence[str] | None = None,
        step: int | None = None,
        task: str | None = None,
        model: str | None = None,
    ) -> list[Path]:
        """Writes results to a file and returns what was written; where there are several datasets and none is named, `path` is
        a folder with a file NAME.<to> for each.

        to: "parquet" (needs pyarrow), "csv", "json" or "safetensors". The first three hold a long table: a row for each cell,
        with a column for each axis, label and variable; safetensors holds the arrays. variables: which; None: all.
        Also "mib" and "circuitsvis" (`pycotmech.runs.for_tools`), for which step, task and model are.
        """
        check_choice("to", to, (*FORMATS, *TOOLS))
        if to in TOOLS:
            if variables is not None:
                raise ValueError(f"variables: belong to tables and arrays; expected none with {to}")
            return [export_for_tool(self, to, path, name, step=step, task=task, model=model)]
        for argument, value in {"step": step, "task": task, "model": model}.items():
            if value is not None:
                raise ValueError(f"{argument}: belongs to mib; expected none with {to}")
        if name is not None or len(self.names) == 1:
            name = self._one(name)
            return [export(self[name], to, path, variables=variables, about=self._about(name))]
        if not self.names:
            raise ValueError(f"folder: {printable(self.folder)} has nothing to export yet")
        if variables is not None:
            raise ValueError("variables: belong to one dataset; expected its name too")
        if to == "parquet":
            check_pyarrow()
        folder = made_folder(path)
        return [export(self[n], to, _file_of(folder, n, to), about=self._about(n)) for n in self.names]

    def head_scores(self, name: str | None = None, *, step: int | None = None) -> StepScores:
        """How much each head matters at a step, [L, H]: the effect of patching it, over the examples.

        Raises ValueError where the folder holds no patching, or `step` is not there; it may be left out if there is one only.
        """
        needs_model("mib", f"which holds no patching of heads ({self.kind})")

    def head_values(self, name: str | None = None) -> HeadValues:
        """A number of each layer, piece of text and head, [L, T, H], as CircuitsVis draws it. Raises ValueError where there is
        none."""
        needs_model("circuitsvis", f"which holds no numbers of each head along a text ({self.kind})")

    def _about(self, name: str) -> dict[str, Any]:
        return {"kind": self.kind, "dataset": name, "provenance": self.provenance}

    def _one(self, name: str | None) -> str:
        if name is not None:
            if name not in self.names:
                raise ValueError(unknown_choice("name", name, self.names, none="nothing is finished"))
            return name
        if len(self.names) != 1:
            raise ValueError(f"name: missing; the folder has {len(self.names)} datasets: {shortened(self.names)}")
        return self.names[0]

    def _dataset(self, name: str) -> xr.Dataset:
        raise NotImplementedError

    # ---- to look at -----------------------------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        made, names = self.provenance, list(self.names)
        versions = ", ".join(
            f"{k} {v}" for k, v in (made.get("versions") or {}).items() if k in ("pycotmech", "torch", "transformers")
        )
        how = [made.get("model"), made.get("dtype"), made.get("device"), versions]
        head = f"{type(self).__name__} ({self.kind}) in {self.folder}"
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return [head, "  " + ", ".join(str(part) for part in how if part), f"  datasets: {shown or 'none'}", *self._details()]

    def _details(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        return printable("\n".join(self._lines()), lines=True)

    def _repr_html_(self) -> str:
        from pycotmech.display.markup import card, facts, going_on, lines

        title, *more = self._lines()
        made = [(name, _short(value)) for name, value in self.provenance.items()]
        return card(title, lines([line.strip() for line in more]), facts(made), going_on(self._go_on()))

    def _go_on(self) -> list[tuple[str, str]]:
        """What to ask next: code, and what it gives."""
        name = "" if len(self.names) == 1 else repr(self.names[0]) if self.names else "name"
        tables = ", ".join(map(repr, self.tables[:4]))
        return [
            (f"results.to_plotly({name})", "a figure that answers to the mouse"),
            (f"results.table({self.tables[0]!r})" if self.tables else "results.table(name)", f"tables: {tables}"),
            ("results.report()", "all of it as one HTML file"),
            (f".plot({name}) · .to_dataframe({name}) · .to_xarray({name})", ""),
        ]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:300]}…"


def _file_of(folder: Path, name: str, ending: str) -> Path:
    """The file of a dataset in a folder. A name such as "trace_000/suppress" is a file in a folder of it."""
    above, _, stem = name.rpartition("/")
    return (subfolder(folder, above) if above else folder) / f"{stem}.{ending}"


class AnalysesResults(Results):
    """A folder that holds a dataset for each finished analysis, and a file that says how they were made."""

    def _store(self, name: str) -> Path:
        """The Zarr folder of an analysis."""
        raise NotImplementedError

    def _classes(self) -> Mapping[str, type[Analysis]]:
        """The results of this version by the name of their analysis."""
        raise NotImplementedError

    def _facts(self) -> dict[str, Any]:
        """What the folder's file of settings and costs holds; empty where it is lost or damaged."""
        raise NotImplementedError

    @cached_property
    def provenance(self) -> dict[str, Any]:
        facts = dict(self._facts())
        identity = facts.pop("identity", None)
        if not isinstance(identity, dict):
            identity = next((found for n in self.names if isinstance(found := self._made(n).get("identity"), dict)), {})
        return provenance_of(identity, facts)

    def _made(self, name: str) -> Mapping[str, Any]:
        try:
            about = parse_json(str(open_group(self._store(name)).attrs.get("about")))
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def _about(self, name: str) -> dict[str, Any]:
        return {**super()._about(name), "analysis": dict(self._made(name))}

    def _dataset(self, name: str) -> xr.Dataset:
        return open_arrays(self._store(name))

    def analysis(self, name: str) -> Analysis:
        """Returns a finished analysis as the object that made its table and its figures."""
        name = self._one(name)
        known, stem = self._classes(), name.rpartition("/")[2]
        if stem not in known:
            hint = did_you_mean(stem, known)
            raise ValueError(f"name: {name!r} is no analysis of this version; expected one of {', '.join(known)}{hint}")
        return known[stem].load(self._store(name).parent)

    def view(self, name: str | None = None) -> View:
        """Returns the main array of an analysis."""
        return self.analysis(self._one(name)).view()

    @property
    def tables(self) -> tuple[str, ...]:
        return self.names

    def table(self, name: str | None = None) -> pd.DataFrame:  # type: ignore[override]
        """Returns the table of an analysis, with intervals."""
        return self.analysis(self._one(name)).table()

    def drawings(self) -> dict[str, Drawing]:
        """See `Results.drawings`. Names are those of analyses, and ANALYSIS_FIGURE for their further figures."""
        found: dict[str, Drawing] = {}
        known = self._classes()
        for name in self.names:
            if (result := known.get(name.rpartition("/")[2])) is None:
                continue
            for figure in (None, *self._further(name)):
                full = name if figure is None else f"{name}_{figure}"
                found[full] = Drawing(result.title, result.source, functools.partial(self.plot, name, figure=figure))
        return found

    def _further(self, name: str) -> tuple[str, ...]:
        """Names of the further figures of an analysis; none where its values cannot be read, which its own figure then says."""
        try:
            return tuple(self.analysis(name).figures())
        except ValueError:
            return ()

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, figure: str | None = None, path: str | os.PathLike | None = None
    ) -> Figure:
        """Draws an analysis. figure: one of its further figures (`Analysis.figures`)."""
        found = self.analysis(self._one(name))
        if figure is None:
            return found.plot(path=path)
        further = found.figures()
        if figure not in further:
            raise ValueError(unknown_choice("figure", figure, further, none="there is one figure only"))
        return further[figure](path=path)


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON object in a sealed file; empty where it is missing or damaged."""
    try:
        return read_sealed(path)
    except (OSError, ValueError):
        return {}
