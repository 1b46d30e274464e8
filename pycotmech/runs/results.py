"""One object for a results folder, whichever command wrote it: `pcm.open_results`."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pycotmech.files.arrays import DamagedData, open_arrays, open_group
from pycotmech.files.text import printable
from pycotmech.files.whole import read_sealed
from pycotmech.runs.attention import STORE as ATTENTION
from pycotmech.runs.events import Events, read_events
from pycotmech.runs.export import FORMATS, check_pyarrow, export, long_table
from pycotmech.runs.folder import checked_path, made_folder
from pycotmech.runs.lazy import open_sweeps
from pycotmech.runs.provenance import provenance_of
from pycotmech.runs.status import PAPER, Status, status_of
from pycotmech.runs.store import STORE as SWEEPS
from pycotmech.runs.store import read

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.attention.results import AttentionSummary
    from pycotmech.cot.tools.result import Analysis

SETTINGS = "settings"
"""The subfolder of a paper's folder with a folder for each harder setting."""


def open_results(folder: str | os.PathLike) -> Results:
    """Opens a results folder of `pycotmech run`, `sweep`, `paper` or `attention`, finished or not.

    Nothing is loaded but labels; values are read from disk when they are used, and their checksums are checked then.
    Raises FileNotFoundError naming the folder where it is missing or holds no results, ValueError where its results cannot be
    read. The folder may come from a stranger: nothing in it is executed, and nothing is written into it.
    """
    path = checked_path(folder, "folder")
    if not path.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {printable(path)}")
    if (path / SWEEPS).exists():
        return SweepResults(path)
    if (path / ATTENTION).exists():
        return AttentionResults(path)
    if (path / PAPER).is_file() or (path / "data").is_dir():
        return PaperResults(path)
    raise FileNotFoundError(f"folder: {printable(path)} holds no results of run, sweep, paper or attention")


class Results:
    """A results folder.

    folder: its path. kind: "run", "sweep" (a run on the user's own pairs), "paper" or "attention".
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
            raise KeyError(f"{printable(self.folder)} has no dataset {name!r}; it has {', '.join(self.names) or 'none'}")
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

    def plot(self, name: str | None = None, *, path: str | os.PathLike | None = None, **more: Any) -> Figure:
        """Draws results as a matplotlib figure, saved to `path` if given."""
        raise NotImplementedError

    def events(self) -> Events:
        """What is recorded of the processes that wrote the folder."""
        return read_events(self.folder)

    def status(self) -> Status:
        """How far the folder is, and whether a process writes to it now."""
        return status_of(self.folder)

    # ---- to other programs ----------------------------------------------------------------------------------------------

    def to_dataframe(self, name: str | None = None, *, variables: Sequence[str] | None = None) -> pd.DataFrame:
        """Returns a dataset as a long table in memory: a row for each cell, with the labels of its axes."""
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
        self, to: str, path: str | os.PathLike, name: str | None = None, *, variables: Sequence[str] | None = None
    ) -> list[Path]:
        """Writes results to a file and returns what was written; where there are several datasets and none is named, `path` is
        a folder with a file NAME.<to> for each.

        to: "parquet" (needs pyarrow), "csv", "json" or "safetensors". The first three hold a long table: a row for each cell,
        with a column for each axis, label and variable; safetensors holds the arrays. variables: which; None: all.
        """
        if to not in FORMATS:
            raise ValueError(f"to: got {to!r}; expected one of {', '.join(FORMATS)}")
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
        return [export(self[n], to, folder / f"{n}.{to}", about=self._about(n)) for n in self.names]

    def _about(self, name: str) -> dict[str, Any]:
        return {"kind": self.kind, "dataset": name, "provenance": self.provenance}

    def _one(self, name: str | None) -> str:
        if name is not None:
            if name not in self.names:
                raise ValueError(f"name: got {name!r}; expected one of {', '.join(self.names) or 'none: nothing is finished'}")
            return name
        if len(self.names) != 1:
            raise ValueError(f"name: missing; the folder has {len(self.names)} datasets: {', '.join(self.names)}")
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
        rows = "".join(
            f"<tr><th>{html.escape(printable(k))}</th><td>{html.escape(printable(_short(v)))}</td></tr>"
            for k, v in self.provenance.items()
        )
        return f"<pre>{html.escape(repr(self))}</pre><table>{rows}</table>"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 300 else f"{text[:300]}…"


class SweepResults(Results):
    """Results of `pycotmech run`, on the task or on the user's pairs. `data` has the axes example, step, layer, head."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data = open_sweeps(folder)

    @property
    def kind(self) -> str:  # type: ignore[override]
        return "sweep" if "pairs" in self._data.attrs["identity"] else "run"

    @property
    def names(self) -> tuple[str, ...]:
        return ("sweeps",)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return provenance_of(self._data.attrs["identity"], self._data.attrs["about"])

    def _dataset(self, name: str) -> xr.Dataset:
        return self._data

    @property
    def tables(self) -> tuple[str, ...]:
        return ("top_heads", "steps")

    def table(self, name: str | None = None, *, top: int = 5) -> pd.DataFrame:  # type: ignore[override]
        """Returns "top_heads", the strongest heads of each step over the examples, or "steps", a line for each step.

        top: heads of each step. Damaged examples are left out. Cost: all values are read.
        """
        from pycotmech.runs.report import top_heads

        name = _known(name, self.tables, "table")
        steps = self._steps()
        if name == "top_heads":
            return top_heads(steps, top)
        return steps[[n for n, v in steps.data_vars.items() if v.dims == ("step",)]].to_dataframe().reset_index()

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, step: int | None = None, path: str | os.PathLike | None = None
    ) -> Figure:
        """Draws what each head restores: of one step, or (step=None) of all on one scale."""
        from pycotmech.runs.report import overview_figure, step_figure

        _known(name, ("sweeps",), "plot")
        steps = self._steps()
        shown = [int(s) for s, n in zip(steps["step"].values, steps["n"].values, strict=True) if n]
        if not shown:
            raise ValueError(f"folder: no sweep in {printable(self.folder)} is finished yet")
        if step is None:
            return overview_figure(steps, path=path) if len(shown) > 1 else step_figure(steps, shown[0], path=path)
        if step not in shown:
            raise ValueError(f"step: got {step}; expected one of {', '.join(map(str, shown))}")
        return step_figure(steps, step, path=path)

    def _steps(self) -> xr.Dataset:
        """Effects over the examples, with every stored text made printable."""
        from pycotmech.runs.report import by_step
        from pycotmech.runs.report.folder import shown

        return by_step(shown(read(self.folder), self.folder))

    def _details(self) -> list[str]:
        axes = ", ".join(f"{n} {name}s" for name, n in self._data.sizes.items())
        return [f"  {axes}; variables: {', '.join(map(str, self._data.data_vars))}"]


class PaperResults(Results):
    """Results of `pycotmech paper`: a dataset for each finished analysis."""

    kind = "paper"

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted(path.name.removesuffix(".zarr") for path in (self.folder / "data").glob("*.zarr")))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        try:
            facts = read_sealed(self.folder / PAPER)
        except (OSError, ValueError):
            facts = {}
        identity = facts.pop("identity", None)
        if not isinstance(identity, dict):
            identity = next((found for n in self.names if isinstance(found := self._made(n).get("identity"), dict)), {})
        return provenance_of(identity, facts)

    def _made(self, name: str) -> Mapping[str, Any]:
        try:
            about = json.loads(str(open_group(self.folder / "data" / f"{name}.zarr").attrs.get("about")))
        except ValueError:
            return {}
        return about if isinstance(about, dict) else {}

    def _about(self, name: str) -> dict[str, Any]:
        return {**super()._about(name), "analysis": dict(self._made(name))}

    def _dataset(self, name: str) -> xr.Dataset:
        return open_arrays(self.folder / "data" / f"{name}.zarr")

    def analysis(self, name: str) -> Analysis:
        """Returns a finished analysis as the object that made its table and its figures."""
        from pycotmech.cot import analyses

        known = {d.name: d.result for d in analyses.described()}
        name = self._one(name)
        if name not in known:
            raise ValueError(f"name: {name!r} is no analysis of this version; expected one of {', '.join(known)}")
        return known[name].load(self.folder / "data")

    @property
    def settings(self) -> dict[str, PaperResults]:
        """The results of the harder settings that the folder holds, by name."""
        places = self.folder / SETTINGS
        found = sorted(places.iterdir()) if places.is_dir() and not places.is_symlink() else []
        return {p.name: PaperResults(p) for p in found if p.is_dir() and not p.is_symlink() and (p / "data").is_dir()}

    @property
    def tables(self) -> tuple[str, ...]:
        return self.names

    def table(self, name: str | None = None) -> pd.DataFrame:  # type: ignore[override]
        """Returns the table of an analysis, with intervals."""
        return self.analysis(self._one(name)).table()

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, figure: str | None = None, path: str | os.PathLike | None = None
    ) -> Figure:
        """Draws an analysis. figure: one of its further figures (`Analysis.figures`)."""
        found = self.analysis(self._one(name))
        if figure is None:
            return found.plot(path=path)
        further = found.figures()
        if figure not in further:
            raise ValueError(
                f"figure: got {figure!r}; expected one of {', '.join(further) or 'none: there is one figure only'}"
            )
        return further[figure](path=path)

    def _details(self) -> list[str]:
        return [f"  settings: {', '.join(self.settings)}"] if self.settings else []


class AttentionResults(Results):
    """Results of `pycotmech attention`: the attention of every head over one text."""

    kind = "attention"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._data = open_arrays(folder / ATTENTION)

    @property
    def names(self) -> tuple[str, ...]:
        return ("attention",)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        attrs = self._data.attrs
        try:
            made = json.loads(attrs.get("provenance", "{}"))
        except ValueError as error:
            raise DamagedData(f"{self.folder / ATTENTION} does not say how it was made") from error
        identity = {"model": attrs.get("model"), "dtype": attrs.get("dtype"), **made.get("identity", {})}
        return provenance_of(identity, {"notes": list(np.atleast_1d(attrs.get("notes", []))), **made.get("about", {})})

    def _dataset(self, name: str) -> xr.Dataset:
        return self._data

    def summary(self) -> AttentionSummary:
        """Returns the summary as `pcm.attention_summary` gave it. Cost: all values are read."""
        from pycotmech.attention.results import AttentionSummary

        names = [printable(name) for name in self._data["segment"].values]
        shown = self._data.load().assign_coords(segment=np.array(names, dtype=object))
        return AttentionSummary.from_xarray(shown.assign_attrs(model=printable(self._data.attrs.get("model", ""))))

    @property
    def tables(self) -> tuple[str, ...]:
        return ("heads", "tokens")

    def table(self, name: str | None = None) -> pd.DataFrame:  # type: ignore[override]
        """Returns "heads", a line for each head, or "tokens", a line for each token with the attention that it receives."""
        import pandas as pd

        from pycotmech.attention.scores import KINDS

        summary = self.summary()
        if _known(name, self.tables, "table") == "heads":
            heads = summary.per_head()
            scores = {kind: f"score_{kind}" for kind in KINDS if f"score_{kind}" in self._data}
            return heads.assign(**{kind: self._data[name].values.ravel() for kind, name in scores.items()})
        assert summary.tokens is not None and summary.received is not None  # of a text, all rows
        labels = ["" if g < 0 else summary.segment_names[g] for g in summary.labels]
        n = len(summary.tokens)
        received = summary.received.mean((0, 1)) / np.arange(n, 0, -1)
        texts = {"text": self._data["text"].values} if "text" in self._data.coords else {}
        table = {"position": np.arange(n), "token": summary.tokens, **texts, "segment": labels, "received": received}
        return pd.DataFrame(table)

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, path: str | os.PathLike | None = None
    ) -> Figure:
        """Draws the attention of every head on each segment."""
        _known(name, ("attention",), "plot")
        return self.summary().plot(path=None if path is None else os.fspath(path))

    def _details(self) -> list[str]:
        return [f"  {', '.join(f'{n} {name}s' for name, n in self._data.sizes.items())}"]


def _known(name: str | None, names: Sequence[str], argument: str) -> str:
    if name is None:
        return names[0]
    if name not in names:
        raise ValueError(f"{argument}: got {name!r}; expected one of {', '.join(names)}")
    return name
