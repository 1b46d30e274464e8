"""The page of `pycotmech run` and `sweep`: which heads each step depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pycotmech._words import listed, plural
from pycotmech.figures.words import METRIC_NAMES, sample_of
from pycotmech.report import charts
from pycotmech.report.page import Draw, Note, Page, Part, Quote, Section, Sentences, Table, sentence
from pycotmech.runs.head_views import FILE, read_head_views
from pycotmech.runs.report.aggregate import by_step, chosen_first, head_name, intervals, records, top_heads
from pycotmech.runs.report.findings import findings
from pycotmech.runs.report.folder import first_record, headline_of, shown
from pycotmech.runs.results import SweepResults
from pycotmech.runs.results_base import Results
from pycotmech.runs.store import SweepState, read
from pycotmech.stats.bootstrap import ends

STRONG = 0.05
"""A share below which a head is not named."""
WITHOUT_VIEWS = (
    f"What heads attend to and write is not stored in this folder ({FILE} is missing or damaged). The command `pycotmech "
    "report DIR --heads` loads the model and stores it."
)
_SHOWN = 5
_FAILED = 8


def run_page(results: SweepResults) -> Page:
    """The page of a folder of `run` or `sweep`."""
    data = shown(read(results.folder), results.folder)
    steps, inside = by_step(data), intervals(data)
    top = top_heads(steps, _SHOWN)
    record = first_record(results.folder / "examples.jsonl")
    views = read_head_views(results.folder)
    identity, about = data.attrs["identity"], data.attrs["about"]
    pairs = results.kind == "sweep"
    state = data["state"].values
    pending = int((state == SweepState.PENDING).sum())
    notes = [sentence(note) for note in about["model"]["notes"]]
    if pending:
        notes.append(f"{plural(pending, 'sweep')} pending; the results below are those of the finished ones.")
    if damaged := data.attrs["damaged"]:
        which = ", ".join(map(str, damaged))
        notes.append(f"Stored data of {plural(len(damaged), 'example')} ({which}) is damaged and left out.")
    notes += failures_of(results)
    sections = [
        Section(
            "heads",
            "What each head restores" if identity["direction"] == "denoise" else "What each head destroys",
            _heads(steps, inside, record, views, identity),
            lead=_how(identity),
        )
    ]
    if not top.empty:
        sections.append(Section("strongest", "The strongest heads", _strongest(steps, inside, top, identity)))
        sections += _depth(steps)
    if record is not None:
        sections.append(Section("prompts", "The prompts", _prompts(steps, record, pairs)))
    name = about["model"]["name"]
    return Page(
        title=f"{name}: which heads {'these prompts depend' if pairs else 'each step depends'} on",
        kicker="Activation patching, every head of every layer",
        asked=_asked(identity, pairs),
        answer=_answer(steps, inside, top, identity, name),
        facts={
            "Model": name,
            "Size": f"{data.sizes['layer']} layers × {data.sizes['head']} heads",
            "Prompts": _counted(data, pairs),
            "Sweeps": f"{int((state == SweepState.FINISHED).sum())} finished",
            "Metric": METRIC_NAMES.get(identity["metric"], identity["metric"]),
            "Precision": about["model"].get("dtype", identity.get("dtype")),
        },
        sections=sections,
        notes=notes,
        views=views,
        made={**made(results.provenance), "Work": headline_of(data)},
    )  # fmt: skip


def _counted(data: xr.Dataset, pairs: bool) -> str:
    n = data.sizes["example"]
    return plural(n, "pair") if pairs else f"{plural(n, 'problem')}, {plural(data.sizes['step'], 'step')} each"


def _asked(identity: Mapping[str, Any], pairs: bool) -> str:
    what = "a prompt's answer" if pairs else "each step of the reasoning"
    if identity["direction"] == "denoise":
        return (
            f"Which attention heads does {what} depend on? The model runs on a changed prompt, and one head at a time takes "
            "its activation from the clean run. How much of the clean prediction does this restore?"
        )
    return (
        f"Which attention heads does {what} depend on? The model runs on the clean prompt, and one head at a time takes its "
        "activation from a run on a changed prompt. How much of the clean prediction is lost?"
    )


def _answer(steps: xr.Dataset, inside: xr.Dataset, top: pd.DataFrame, identity: Mapping[str, Any], name: str) -> list[str]:
    """The answer in one or two paragraphs, with figures and intervals."""
    if top.empty:
        return ["No sweep is finished yet, so there is no answer."]
    pair = str(steps["kind"].values[0]) == "pair"
    verb = "restores" if identity["direction"] == "denoise" else "destroys"
    metric = METRIC_NAMES.get(identity["metric"], identity["metric"])
    of = "of the clean prediction" if identity["metric"] == "kl" else f"of the {metric}"
    rows = [row for row in records(top) if row["beyond"] and row["restoration"] >= STRONG]
    n_steps = len(set(top["step"]))
    graded, right = int(steps["graded"].sum()), int(steps["right"].sum())
    begin = "" if pair or not graded else f"{name} gets {right} of {graded} steps right, and only these are analysed. "
    if not rows:
        return [f"{begin}No head by itself {verb} {STRONG:.0%} or more {of}, beyond rounding and the random control."]
    with_one = len({row["step"] for row in rows})
    best = chosen_first(steps, rows)
    where = "" if pair else f" at step {best['step']} ({best['kind']})"
    first = (
        f"{begin}The strongest head is {head_name(best['layer'], best['head'])}: by itself it {verb} "
        f"{_share(best, inside, best['step'])} {of}{where}, measured on "
        f"{plural(best['examples'], 'held-out example' if best['held_out'] else 'example')}. "
    )
    if not pair:
        first += (
            f"At {with_one} of {plural(n_steps, 'step')} there is a head that {verb} {STRONG:.0%} or more by itself, beyond "
            "rounding and the random control. "
        )
    often: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        often.setdefault((row["layer"], row["head"]), []).append(row)
    again = sorted((found for found in often.values() if len(found) > 1), key=lambda found: -len(found))[:3]
    second = ""
    if again:
        named = [f"{head_name(f[0]['layer'], f[0]['head'])} at {len(f)} of {n_steps} steps" for f in again]
        second = f"Heads among the strongest at several steps: {listed(named)}. "
    used = steps.where(steps["n"] > 0, drop=True)
    limit = np.fmax(used["noise_floor"], used["control"])
    beyond, total = int((abs(used["restoration"]) > limit).sum()), int(used["restoration"].notnull().sum())
    second += f"In all, {beyond:,} of {total:,} effects of heads exceed noise floor and control."
    return [first.strip(), second.strip()]


def _share(row: Mapping[str, Any], inside: xr.Dataset, step: int) -> str:
    at = inside.sel(step=step, layer=row["layer"], head=row["head"])
    start = "held_out_" if row["held_out"] else ""
    return f"{row['restoration']:.0%}{ends(at[f'{start}low'], at[f'{start}high'])}"


def _how(identity: Mapping[str, Any]) -> str:
    where = identity["positions"]
    at = "at all positions" if where == "all" else f"at position {', '.join(map(str, where))}"
    if identity["direction"] == "denoise":
        cell = f"Each cell is one head, whose output in the corrupted run is replaced by that of the clean run {at}"
        scale, does = "0 %: the prediction is still that of the corrupted run; 100 %: it is that of the clean run", "restore"
    else:
        cell = f"Each cell is one head, whose output in the clean run is replaced by that of the corrupted run {at}"
        scale, does = "0 %: the prediction is still that of the clean run; 100 %: it is that of the corrupted run", "carry"
    metric = METRIC_NAMES.get(identity["metric"], identity["metric"])
    return (
        f"{cell}. {scale}, as measured by {metric}. Blue heads {does} the clean prediction, red heads work against it. Noise "
        "floor: the size of rounding errors. Control: the effect that 95 % of heads do not exceed with activations from an "
        "unrelated prompt."
    )


def _heads(
    steps: xr.Dataset,
    inside: xr.Dataset,
    record: dict | None,
    views: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
) -> list[Part]:
    maps = []
    for i, step in enumerate(steps["step"].values.tolist()):
        here, ends_here = steps.isel(step=i).transpose(..., "layer", "head"), inside.isel(step=i)
        if int(here["n"]) == 0:
            continue
        kind = str(here["kind"].values)
        maps.append(
            charts.head_map(
                "Prompt pairs" if kind == "pair" else f"Step {step}", here["restoration"].values,
                kind="" if kind == "pair" else kind, n=int(here["n"]), step=step,
                low=ends_here["low"].values, high=ends_here["high"].values,
                floor=float(here["noise_floor"]), control=float(here["control"]), own=here["head_control"].values,
            )
        )  # fmt: skip
    if not maps:
        return [Note("No sweep is finished yet: there is no map to show.")]
    label = "share restored" if identity["direction"] == "denoise" else "share destroyed"
    shape = (steps.sizes["layer"], steps.sizes["head"])
    chart = charts.heads("Effect of each head", label, shape, maps, unit="share", views=True, note=WITHOUT_VIEWS)
    parts: list[Part] = [Draw(chart)]
    if views is None:
        parts.append(Note(WITHOUT_VIEWS))
    return parts


def _strongest(steps: xr.Dataset, inside: xr.Dataset, top: pd.DataFrame, identity: Mapping[str, Any]) -> list[Part]:
    rows = []
    for row in records(top):
        at = inside.sel(step=row["step"], layer=row["layer"], head=row["head"])
        start = "held_out_" if row["held_out"] else ""
        within = "yes" if row["beyond"] else "within the control" if row["above_floor"] else "rounding"
        rows.append(
            [
                row["step"], row["kind"], head_name(row["layer"], row["head"]), f"{row['restoration']:+.1%}".replace("-", "−"),
                ends(at[f"{start}low"], at[f"{start}high"], "{:+.1%}").strip().replace("-", "−"), f"{row['noise_floor']:.1%}",
                "–" if np.isnan(row["control"]) else f"{row['control']:.1%}", within,
                f"{round(row['same_sign'] * row['examples'])} of {row['examples']}",
            ]
        )  # fmt: skip
    columns = ["step", "kind", "head", "effect", "95 % interval", "noise floor", "control", "beyond both", "same sign"]
    right = ("step", "effect", "95 % interval", "noise floor", "control", "same sign")
    held = bool(top["held_out"].any())
    how = "ranked on one half of the examples, reported on the other" if held else "ranked and reported on the same examples"
    return [
        Sentences(findings(steps, top)),
        Table(f"The {_SHOWN} strongest heads of each step, {how}", columns, rows, right),
    ]


def _depth(steps: xr.Dataset) -> Sequence[Section]:
    """Where along the layers the effects lie, a line for each kind of step."""
    if steps.sizes["layer"] < 4:
        return []
    positive = steps["restoration"].where(steps["n"] > 0).clip(min=0).sum("head")
    drawn = []
    for kind in dict.fromkeys(steps["kind"].values.tolist()):
        of_kind = positive.where(steps["kind"] == kind, drop=True).mean("step").values
        if of_kind.sum() > 0:
            drawn.append(charts.series("pairs" if kind == "pair" else kind, steps["layer"].values, of_kind / of_kind.sum()))
    if not drawn:
        return []
    chart = charts.lines("Share of the positive effects in each layer", "share", "layer", drawn, unit="share", limits=(0, None))
    return [
        Section(
            "depth", "Where along the layers", [Draw(chart)], lead="The mean over steps of a kind, of all heads of a layer."
        )
    ]


def _prompts(steps: xr.Dataset, record: dict, pairs: bool) -> list[Part]:
    if pairs or "question" not in record:
        shown_pairs = [(name, record.get(name)) for name in ("clean", "corrupted", "answer", "wrong")]
        return [Quote([(name, str(value)) for name, value in shown_pairs if value is not None])]
    rows = []
    for step, kind, n, right, graded in zip(
        steps["step"].values.tolist(), steps["kind"].values, steps["n"].values, steps["right"].values, steps["graded"].values
    ):
        rows.append([step, kind, sample_of(record, step), f"{int(right)} of {int(graded)}" if graded else "–", int(n)])
    return [
        Quote([("Question", f"{record['question']} {record.get('query', '')}"), ("Solution", str(record.get("chain", "")))]),
        Table(
            "Steps of the first problem: the last words before each answer, and how often the model is right",
            ["step", "kind", "text → answer", "right", "used"], rows, ("step", "right", "used"),
        ),
    ]  # fmt: skip


def failures_of(results: Results) -> list[str]:
    """What could not be done, as the folder's log has it."""
    failed = [f"{unit} was not done: {why}" for unit, why in results.status().failures.items()]
    more = [f"{plural(len(failed) - _FAILED, 'unit')} more failed"] if len(failed) > _FAILED else []
    return [sentence(text) for text in [*failed[:_FAILED], *more]]


def made(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance as a person reads it."""
    names = {
        "description": "Model", "weights": "Weights", "prompts": "Prompts", "device": "Device", "threads": "Threads",
        "versions": "Versions", "seed": "Seed", "arguments": "Settings", "created": "Begun",
    }  # fmt: skip
    out = {}
    for name, words in names.items():
        value = provenance.get(name)
        if isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if v is not None}
        if value not in (None, {}, ""):
            out[words] = value
    return out
