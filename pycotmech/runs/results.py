"""One object for a results folder, whichever command wrote it: `pcm.open_results`."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pycotmech._choices import check_choice, unknown_choice
from pycotmech.display import View
from pycotmech.figures.words import effect_label
from pycotmech.files.arrays import DamagedData, open_arrays
from pycotmech.files.text import parse_json, printable
from pycotmech.runs.attention import STORE as ATTENTION
from pycotmech.runs.folder import checked_path
from pycotmech.runs.for_tools import HeadValues, StepScores, chosen_step, needs_model
from pycotmech.runs.lazy import open_sweeps
from pycotmech.runs.provenance import provenance_of
from pycotmech.runs.results_base import AnalysesResults, Results, read_facts
from pycotmech.runs.save_figures import Drawing
from pycotmech.runs.status import NO_RESULTS, PAPER, SETTINGS, holds_traces
from pycotmech.runs.store import STORE as SWEEPS
from pycotmech.runs.store import read
from pycotmech.runs.trace_results import TraceResults

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pycotmech.attention.results import AttentionSummary
    from pycotmech.cot.tools.result import Analysis


def open_results(folder: str | os.PathLike) -> Results:
    """Opens a results folder of `pycotmech run`, `sweep`, `paper`, `attention` or `trace`, finished or not.

    Only labels are loaded; values are read from disk when they are used, and their checksums are verified then.
    Raises FileNotFoundError naming the folder where it is missing or holds no results, ValueError where its results cannot be
    read. The folder may come from someone else: nothing in it is executed, and nothing is written into it.
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
    if holds_traces(path):
        return TraceResults(path)
    raise FileNotFoundError(f"folder: {printable(path)} {NO_RESULTS}")


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

    def view(self, name: str | None = None) -> View:
        """Returns the effect of each head over the examples, of every step that is finished."""
        steps = self._finished_steps(name)
        found = steps["restoration"].transpose("step", "layer", "head")
        metric, direction = (str(self._data.attrs["identity"].get(k, "")) for k in ("metric", "direction"))
        return View(
            title=f"{printable(self.provenance.get('model') or '')}: what each head restores",
            values=found.values,
            axes=("step", "layer", "head"),
            labels={"step": found["step"].values.tolist()},
            words={"step": [str(kind) for kind in steps["kind"].values]},
            label=effect_label(metric, direction, True),
            floor=float(steps["noise_floor"].max()),
            beside={"examples": np.broadcast_to(steps["n"].values[:, None, None], found.shape)},
        )

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
            raise ValueError(unknown_choice("step", step, shown))
        return step_figure(steps, step, path=path)

    def drawings(self) -> dict[str, Drawing]:
        """See `Results.drawings`: "overview", and "step_5" for each step that is finished."""
        steps = self._steps()
        numbers = [int(s) for s, n in zip(steps["step"].values, steps["n"].values, strict=True) if n]
        found = {"overview": Drawing("What each head restores, step by step", "", self.plot)} if len(numbers) > 1 else {}
        for step in numbers:
            found[f"step_{step}"] = Drawing(
                f"What each head restores at step {step}", "", functools.partial(self.plot, step=step)
            )
        return found

    def missing_drawings(self) -> dict[str, str]:
        """See `Results.missing_drawings`: steps of which no sweep is finished."""
        steps = self._steps()
        empty = [int(s) for s, n in zip(steps["step"].values, steps["n"].values, strict=True) if not n]
        return {f"step_{s}": "no sweep of this step is finished, or the model gets it right in no example" for s in empty}

    def head_scores(self, name: str | None = None, *, step: int | None = None) -> StepScores:
        """The effect of each head at a step, over the examples (`by_step`)."""
        steps = self._finished_steps(name)
        step = chosen_step(step, steps["step"].values)
        return StepScores(steps["restoration"].sel(step=step).transpose("layer", "head").values, step)

    def head_values(self, name: str | None = None) -> HeadValues:
        """The effect of each head over the examples, with the steps as the pieces of text."""
        steps = self._finished_steps(name)
        texts = [f" {s} {k}" for s, k in zip(steps["step"].values, steps["kind"].values, strict=True)]
        return HeadValues(steps["restoration"].transpose("layer", "step", "head").values, texts)

    def _finished_steps(self, name: str | None) -> xr.Dataset:
        _known(name, self.names, "name")
        steps = self._steps()
        steps = steps.isel(step=np.flatnonzero(steps["n"].values))
        if not steps.sizes["step"]:
            raise ValueError(f"folder: no sweep in {printable(self.folder)} is finished yet")
        return steps

    def _steps(self) -> xr.Dataset:
        """Effects over the examples, with every stored text made printable."""
        from pycotmech.runs.report import by_step
        from pycotmech.runs.report.folder import shown

        return by_step(shown(read(self.folder), self.folder))

    def _details(self) -> list[str]:
        axes = ", ".join(f"{n} {name}s" for name, n in self._data.sizes.items())
        return [f"  {axes}; variables: {', '.join(map(str, self._data.data_vars))}"]


class PaperResults(AnalysesResults):
    """Results of `pycotmech paper`: a dataset for each finished analysis."""

    kind = "paper"

    @cached_property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(sorted(path.name.removesuffix(".zarr") for path in (self.folder / "data").glob("*.zarr")))

    def _facts(self) -> dict[str, Any]:
        return read_facts(self.folder / PAPER)

    def _store(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.zarr"

    def _classes(self) -> Mapping[str, type[Analysis]]:
        from pycotmech.cot import analyses

        return {d.name: d.result for d in analyses.described()}

    def head_scores(self, name: str | None = None, *, step: int | None = None) -> StepScores:
        """The effect of each head at a step, over the examples. Source: docs/protocol.md, E1."""
        found = self._effects("mib", name)
        step = chosen_step(step, found["step"].values)
        return StepScores(found.sel(step=step).transpose("layer", "head").values, step)

    def head_values(self, name: str | None = None) -> HeadValues:
        """The effect of each head over the examples (E1), with the steps as the pieces of text."""
        found = self._effects("circuitsvis", name)
        texts = [f" {s} {printable(k)}" for s, k in zip(found["step"].values, found["kind"].values, strict=True)]
        return HeadValues(found.transpose("layer", "step", "head").values, texts)

    def _effects(self, to: str, name: str | None) -> xr.DataArray:
        """[step, layer, head], of the steps at which an example counts."""
        from pycotmech.cot.analyses.patch_steps import PatchSteps

        if "patch_steps" not in self.names:
            needs_model(to, "which holds no patch_steps (E1)")
        found = self.analysis(_known(name, ("patch_steps",), "name"))
        assert isinstance(found, PatchSteps)
        scores = found.scores()
        counts = np.flatnonzero((scores["n"] > 0).any(("layer", "head")).values)
        return scores["mean"].isel(step=counts)

    @property
    def settings(self) -> dict[str, PaperResults]:
        """The results of the harder settings that the folder holds, by name."""
        places = self.folder / SETTINGS
        found = sorted(places.iterdir()) if places.is_dir() and not places.is_symlink() else []
        return {p.name: PaperResults(p) for p in found if p.is_dir() and not p.is_symlink() and (p / "data").is_dir()}

    def drawings(self) -> dict[str, Drawing]:
        """See `Results.drawings`; those of a harder setting are named "SETTING/patch_steps"."""
        harder = {f"{s}/{n}": d for s, found in self.settings.items() for n, d in found.drawings().items()}
        return super().drawings() | harder

    def missing_drawings(self) -> dict[str, str]:
        """See `Results.missing_drawings`: analyses that the folder does not hold. Those of harder settings are not listed."""
        failed = self.status().failures
        return {
            name: f"the analysis failed: {failed[name]}"
            if name in failed
            else f"no results of {name}; the folder's pycotmech paper command computes them with --only {name}"
            for name in self._classes()
            if name not in self.names
        }

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
            made = parse_json(attrs.get("provenance", "{}"))
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

    def view(self, name: str | None = None) -> View:
        """Returns the attention of every head on each segment."""
        _known(name, self.names, "name")
        return self.summary().view()

    @property
    def tables(self) -> tuple[str, ...]:
        return ("heads", "tokens")

    def table(self, name: str | None = None) -> pd.DataFrame:  # type: ignore[override]
        """Returns "heads", a line for each head, or "tokens", a line for each token with the attention that it receives."""
        from pycotmech.attention.scores import KINDS

        summary = self.summary()
        if _known(name, self.tables, "table") == "heads":
            heads = summary.per_head()
            scores = {kind: f"score_{kind}" for kind in KINDS if f"score_{kind}" in self._data}
            return heads.assign(**{kind: self._data[name].values.ravel() for kind, name in scores.items()})
        return summary.per_token(self._data["text"].values if "text" in self._data.coords else None)

    def plot(  # type: ignore[override]
        self, name: str | None = None, *, path: str | os.PathLike | None = None
    ) -> Figure:
        """Draws the attention of every head on each segment."""
        _known(name, ("attention",), "plot")
        return self.summary().plot(path=None if path is None else os.fspath(path))

    def drawings(self) -> dict[str, Drawing]:
        """See `Results.drawings`: "attention"."""
        return {"attention": Drawing("The attention of every head on each segment", "", self.plot)}

    def head_values(self, name: str | None = None) -> HeadValues:
        """The attention that each token receives from each head: its mean weight in the rows from the token on."""
        _known(name, self.names, "name")
        summary = self.summary()
        assert summary.tokens is not None  # of a text
        texts = self._data["text"].values if "text" in self._data.coords else summary.tokens
        return HeadValues(summary.received_per_row().transpose(0, 2, 1), [str(text) for text in texts])

    def _details(self) -> list[str]:
        return [f"  {', '.join(f'{n} {name}s' for name, n in self._data.sizes.items())}"]


def _known(name: str | None, names: Sequence[str], argument: str) -> str:
    if name is None:
        return names[0]
    check_choice(argument, name, names)
    return name
