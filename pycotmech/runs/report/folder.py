"""The report of a results folder: tables, figures and a summary, built from what is finished.

A folder may come from a stranger: files are replaced and never written through links, and stored text is shown, not obeyed.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from pycotmech._optional import missing
from pycotmech._words import plural
from pycotmech.figures.words import sample_of
from pycotmech.files.text import markdown, printable
from pycotmech.files.write import replacing, write_text
from pycotmech.runs.folder import checked_path, naming_full_disk
from pycotmech.runs.report import table
from pycotmech.runs.report.aggregate import by_step, records, top_heads
from pycotmech.runs.report.figures import overview_figure, step_figure
from pycotmech.runs.report.findings import findings
from pycotmech.runs.store import SweepState, read


@dataclass(frozen=True)
class Report:
    """What `build_report` made. steps, top: see `pycotmech.runs.report.aggregate`. files: everything written, in order."""

    folder: Path
    steps: xr.Dataset
    top: pd.DataFrame
    table: str
    legend: str
    headline: str
    notes: list[str]
    sentences: list[str]
    files: list[Path]


def build_report(folder: str | os.PathLike, *, top: int = 5, figures: bool = True) -> Report:
    """Writes top_heads.csv, summary.md, summary.json and the heat maps into a results folder, from what is finished there.

    top: heads per step in tables. figures: also the PNGs, one for each step and one of all.
    Raises FileNotFoundError where there are no results. Nothing is recomputed; the results themselves are not touched.
    """
    if top < 1:
        raise ValueError(f"top: got {top}; expected 1 or more")
    folder = checked_path(folder, "folder")
    data = shown(read(folder), folder)
    steps = by_step(data)
    heads = top_heads(steps, top)
    record = first_record(folder / "examples.jsonl")
    samples = {int(step): sample_of(record, int(step)) for step in steps["step"].values}
    identity, notes = data.attrs["identity"], [str(note) for note in data.attrs["about"]["model"]["notes"]]
    if damaged := data.attrs["damaged"]:
        names = ", ".join(str(example) for example in damaged)
        notes.append(f"stored data of {plural(len(damaged), 'example')} ({names}) is damaged and left out; "
                     "the command that made it computes it again")  # fmt: skip
    if figures and (why := missing("matplotlib")):
        figures = False
        notes.append(f"no heat maps were drawn: {why}")
    report = Report(
        folder, steps, heads, table.text(steps, heads, samples), table.legend(identity["metric"], identity["direction"]),
        headline_of(data), notes, findings(steps, heads), [],
    )  # fmt: skip
    with naming_full_disk(folder):
        _write(folder / "top_heads.csv", heads.to_csv(index=False, lineterminator="\n", float_format="%.6g"), report)
        if figures:
            report.files.extend(_figures(folder, steps, samples))
        _write(folder / "summary.md", _markdown(report, record), report)
        _write(folder / "summary.json", json.dumps(_summary(report, data), indent=1, ensure_ascii=False) + "\n", report)
    return report


def shown(data: xr.Dataset, folder: Path) -> xr.Dataset:
    """The results with every stored text made printable. Raises ValueError where they do not say what they are."""
    identity, about = _texts(data.attrs["identity"]), _texts(data.attrs["about"])
    try:
        _ = identity["metric"], identity["direction"], identity["positions"], about["created"], about["threads"]
        _ = about["model"]["name"], about["model"]["description"], list(about["model"]["notes"]), about["versions"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"folder: the results in {folder} do not say how they were made ({printable(error)})") from error
    kinds = [printable(kind) for kind in data["kind"].values]
    return data.assign_coords(kind=("step", kinds)).assign_attrs(identity=identity, about=about)


def _texts(value: Any) -> Any:
    """A JSON value with all its strings printable."""
    if isinstance(value, dict):
        return {printable(k): _texts(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_texts(v) for v in value]
    return printable(value) if isinstance(value, str) else value


def headline_of(data: xr.Dataset) -> str:
    """What was done, in one line. data: as `shown` gives it."""
    identity, about = data.attrs["identity"], data.attrs["about"]
    state = data["state"].values
    finished, pending = int((state == SweepState.FINISHED).sum()), int((state == SweepState.PENDING).sum())
    how = "clean heads into the corrupted run" if identity["direction"] == "denoise" else "corrupted heads into the clean run"
    where = identity["positions"]
    at = "" if where == "all" else f" at position{'s' if len(where) > 1 else ''} {', '.join(map(str, where))}"
    n_heads = data.sizes["layer"] * data.sizes["head"]
    seconds = float(data["seconds"].where(data["state"] == SweepState.FINISHED).sum())
    text = (
        f"{about['model']['name']}: {how}{at}, {n_heads} heads one at a time, metric {identity['metric']}; "
        f"{plural(finished, 'sweep')} in {_duration(seconds)}"
    )
    return text + (f"; {pending} still to do" if pending else "")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _figures(folder: Path, steps: xr.Dataset, samples: dict[int, str]) -> list[Path]:
    made = []
    shown = [int(s) for s, n in zip(steps["step"].values, steps["n"].values, strict=True) if n]
    for step in shown:
        path = folder / ("pairs.png" if str(steps["kind"].sel(step=step).values) == "pair" else f"step_{step:02d}.png")
        with replacing(path) as temporary:
            step_figure(steps, step, sample=samples[step], path=temporary)
        made.append(path)
    if len(shown) > 1:
        with replacing(folder / "overview.png") as temporary:
            overview_figure(steps, path=temporary)
        made.append(folder / "overview.png")
    return made


def _markdown(report: Report, record: dict | None) -> str:
    about, identity = report.steps.attrs["about"], report.steps.attrs["identity"]
    lines = [f"# {markdown(about['model']['name'])}: which heads each step depends on", "", markdown(report.headline) + ".", ""]
    lines += [f"> Note: {markdown(note)}." for note in report.notes] + ([""] if report.notes else [])
    lines += ["## What it shows", "", *[f"* {markdown(s)}" for s in report.sentences], ""]
    lines += [
        "## Strongest heads",
        "",
        table.markdown_table(report.steps, report.top),
        "",
        report.legend.replace("\n", " "),
        "",
    ]
    if record is not None and "question" in record:
        question, query, chain = (markdown(record.get(name)) for name in ("question", "query", "chain"))
        lines += ["## An example", "", f"{question} {query}", "", f"Solution: {chain}", ""]
    pictures = [p.name for p in report.files if p.suffix == ".png"]
    if pictures:
        lines += ["## Heat maps", ""]
        lines += [f"![{name.removesuffix('.png')}]({name})\n" for name in reversed(pictures)]
    lines += ["## How it was made", "", *[f"* {markdown(k)}: {_listed(v)}" for k, v in identity.items()]]
    lines += [f"* {markdown(k)}: {_listed(v)}" for k, v in about["versions"].items() if k != "pycotmech"]
    lines += [f"* {markdown(about['model']['description'])}"]
    lines += [f"* begun {markdown(about['created'])}, {markdown(about['threads'])} threads", ""]
    return "\n".join(lines)


def _listed(value: Any) -> str:
    return markdown(", ".join(map(str, value)) if isinstance(value, list) else value)


def _summary(report: Report, data: xr.Dataset) -> dict[str, Any]:
    """summary.json: the same as the Markdown, for programs."""
    steps = report.steps
    per_step = []
    for i in range(steps.sizes["step"]):
        here = steps.isel(step=i)
        step = int(here["step"])
        names = (
            "n", "held_out_n", "right", "graded", "pending", "noise_floor", "control", "n_controls", "sham", "clean_metric",
            "corrupted_metric", "seconds",
        )  # fmt: skip
        per_step.append(
            {
                "step": step,
                "kind": str(here["kind"].values),
                **{name: _number(here[name].item()) for name in names},
                "top_heads": [
                    {k: _number(v) for k, v in row.items() if k not in ("step", "kind")} for row in records(report.top, step)
                ],
            }
        )
    return {
        "headline": report.headline,
        "notes": report.notes,
        "findings": report.sentences,
        "steps": per_step,
        "complete": bool((data["state"] != SweepState.PENDING).all()),
        "settings": data.attrs["identity"],
        "about": data.attrs["about"],
    }


def _number(value: Any) -> Any:
    """A JSON number; None for NaN, which JSON has not."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def first_record(path: Path) -> dict | None:
    """The first example, all its texts printable; None where there is none: the report does not need it."""
    try:
        with path.open(encoding="utf-8") as file:
            found = _texts(json.loads(file.readline()))
        for step in found.get("steps", []):
            _ = step["step"], step["prefix_text"].split(), step["answer_word"]
        return found
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _write(path: Path, text: str, report: Report) -> None:
    write_text(path, text)
    report.files.append(path)
