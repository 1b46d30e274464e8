"""The page of `pycotmech trace`: whether the chain is used, then each trace's sentences, and the receiver heads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycotmech.files.text import printable
from pycotmech.report import charts
from pycotmech.report.page import Claim, Draw, Note, Page, Part, Quote, Section, Sentences, capital, sentence, table_of
from pycotmech.report.run import failures_of, made
from pycotmech.runs.trace_results import TraceResults
from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean
from pycotmech.traces.analyses.chain_use import CONDITION_NAMES

_TRACES = 12
"""Traces with sections of their own; the folder has all of them."""
_READ = 20_000_000
"""Bytes of traces.jsonl that are read."""
_OF_ONE = ("suppress", "early_answers", "answer_paths")
_SENTENCES = 8


def trace_page(results: TraceResults) -> Page:
    """The page of a folder of `trace`, finished or not."""
    found: dict[str, Any] = {}
    notes = []
    for name in results.names:
        try:
            found[name] = results.analysis(name)
        except (ValueError, OSError) as error:
            notes.append(f"{name} cannot be shown: {error}.")
    provenance = results.provenance
    model = str(provenance.get("model") or "the model")
    places = sorted({name.rpartition("/")[0] for name in found if "/" in name})
    records = _records(results.folder / "traces.jsonl")
    sections = []
    if "chain_use" in found:
        sections.append(_chain_use(found["chain_use"]))
    left_out = [str(line) for line in (provenance.get("plan") or {}).get("left_out") or []]
    if "chain_use" not in found and places and not any(line.startswith("chain_use") for line in left_out):
        notes.append(
            "Whether the chain is used is judged at the end of a run, over two traces with answers or more; this folder has no "
            "such verdict yet."
        )
    notes += [sentence(f"Left out: {line}") for line in left_out]
    for i, place in enumerate(places[:_TRACES]):
        number = int(place.rpartition("_")[2]) if place.rpartition("_")[2].isdigit() else i
        record = records[number] if number < len(records) else {}
        sections.append(_trace(place, {n: found.get(f"{place}/{n}") for n in _OF_ONE}, record))
    if len(places) > _TRACES:
        notes.append(f"The first {_TRACES} of {len(places)} traces are shown; the folder has tables and figures of all.")
    if "receiver_heads" in found:
        sections.append(_receivers(found["receiver_heads"], found.get("chain_use")))
    notes += failures_of(results)
    if not found:
        notes.append("No analysis is finished yet.")
    return Page(
        title=f"{model}: which sentences and heads matter in its chains of thought",
        kicker="Analyses of chains of thought",
        asked="Does the answer depend on the chain of thought, on which of its sentences, and through which heads?",
        answer=_answer(found, places),
        facts={
            "Model": model,
            "Traces": len(places) or None,
            "Sentences": sum(len(r.about["sentences"][0]) for n, r in found.items() if n.endswith("/suppress")) or None,
            "Analyses": f"{len(found)} finished",
            "Precision": provenance.get("dtype"),
        },
        sections=sections,
        notes=[*(sentence(note) for note in provenance.get("notes") or []), *notes],
        made=made(provenance),
    )


def _records(path: Path) -> list[dict[str, Any]]:
    """The traces as they were read; empty where the file is missing or damaged: the page does not need them."""
    try:
        if path.is_symlink() or path.stat().st_size > _READ:
            return []
        lines = path.read_text("utf-8").split("\n")  # splitlines would also cut inside texts
        found = [json.loads(line) for line in lines if line.strip()]
        return [r if isinstance(r, dict) else {} for r in found]
    except (OSError, ValueError, RecursionError):
        return []


def _answer(found: dict[str, Any], places: Sequence[str]) -> list[str]:
    use = found.get("chain_use")
    if use is not None:
        verdicts = use.verdicts()
        fall = use.falls("none")
        first = {
            "yes": "The answers depend on the chain of thought",
            "no": "The answers do not depend on the chain of thought",
            "not decided": "Whether the answers depend on the chain of thought is not decided",
        }[verdicts[0].word]
        out = [f"{first}: {verdicts[0].evidence}."]
        others = [f"{v.question} {v.word.capitalize()}." for v in verdicts[1:]]
        return [*out, " ".join(others)] if np.isfinite(fall.mean) else out
    for place in places:
        early = found.get(f"{place}/early_answers")
        if early is not None:
            return [f"{capital(line)}." for line in early.findings()[:2]]
    cut = next((found[f"{p}/suppress"] for p in places if f"{p}/suppress" in found), None)
    return [f"{capital(line)}." for line in cut.findings()[:2]] if cut is not None else ["Nothing is finished yet."]


def _chain_use(result: Any) -> Section:
    data = result.data
    x = result.interval("probability", over="trace")
    names = [CONDITION_NAMES.get(str(c), str(c)) for c in data["condition"].values.tolist()]
    bars = charts.bars(
        "Probability of the answer after different reasoning",
        "probability",
        names,
        {"mean over traces": x["mean"].values},
        {"mean over traces": x["low"].values},
        {"mean over traces": x["high"].values},
        unit="share",
        across="reasoning before the answer",
    )
    grid, rows = np.linspace(0, 1, 21), []
    for row, n in zip(data["early"].values, data["sentences"].values.tolist()):
        if n > 0:
            rows.append(np.interp(grid, np.arange(n + 1) / n, row[: n + 1]))
    along = bootstrap.mean_interval(np.array(rows), within=bootstrap.SHARE) if rows else None
    parts: list[Part] = [Claim(v.question, v.word, capital(v.evidence)) for v in result.verdicts()]
    parts.append(Draw(bars))
    if along is not None:
        curves = [
            charts.series("probability, mean over traces", grid, along.mean, along.low, along.high),
            charts.series("share of traces whose answer is decided", grid, result.decided_by(grid)),
        ]
        title = "Probability of the answer if it is asked for early"
        across = "share of the sentences before it is asked for"
        parts.append(Draw(charts.lines(title, "probability, or share of traces", across, curves, unit="share", limits=(0, 1))))
    parts.append(table_of("Each trace (chain_use.csv)", result.table()))
    lead = "Each question has a verdict, which rests on an interval over traces and on controls."
    return Section("chain-use", result.title, parts, lead=lead, short="Is the chain used?")


def _trace(place: str, found: dict[str, Any], record: dict[str, Any]) -> Section:
    first = next(r for r in found.values() if r is not None)
    sentences = [printable(s) for s in first.about["sentences"][0]]
    title = printable(first.about["traces"][0])
    numbers = [str(i) for i in range(len(sentences))]
    parts: list[Part] = []
    if isinstance(record.get("prompt"), str):
        quoted = [("Prompt", record["prompt"]), ("Chain of thought", str(record.get("completion", "")))]
        parts.append(Quote([*quoted, *([("Answer", str(record["answer"]))] if record.get("answer") else [])]))
    if (early := found.get("early_answers")) is not None:
        drawn = [charts.series("probability of the answer", early.data["after"].values, early.values)]
        across = "sentences before it is asked for"
        parts.append(Draw(charts.lines(early.title, "probability", across, drawn, unit="share", limits=(0, 1))))
        parts.append(Sentences([sentence(line) for line in early.findings()]))
        lens = early.data["lens"].transpose("layer", "after").values
        if np.isfinite(lens).any():
            layers = [str(l) for l in early.data["layer"].values.tolist()]
            parts.append(
                Draw(
                    charts.matrix(
                        "In which layers the answer can be read (logit lens)",
                        "probability",
                        lens[::-1],
                        layers[::-1],
                        [str(a) for a in early.data["after"].values.tolist()],
                        up="layer",
                        across="after sentence",
                        unit="share",
                        scale="sequential",
                    )
                )
            )
    if (cut := found.get("suppress")) is not None:
        by_distance = cut.normalised("distance")
        label = "log KL less the mean at its distance"
        parts.append(
            Draw(
                charts.matrix(
                    "What cutting attention to a sentence changes at later ones",
                    label,
                    by_distance,
                    numbers,
                    numbers,
                    up="later sentence",
                    across="earlier sentence",
                    texts=sentences,
                )
            )
        )
        change, control = (cut.data[n].values for n in ("answer_change", "control_answer_change"))
        if np.isfinite(change).any():
            drawn_bars = {"without the sentence": change, "without an equally long span elsewhere": control}
            chart = charts.bars(
                "How much the answer's log probability falls", "nats", numbers, drawn_bars, texts=sentences, across="sentence"
            )
        else:
            effect = {"mean over later sentences": nanmean(by_distance)}
            chart = charts.bars("What each sentence changes later", label, numbers, effect, texts=sentences, across="sentence")
        parts += [Draw(chart), Sentences([sentence(line) for line in cut.findings()])]
        parts.append(table_of(f"Each sentence ({place}/suppress.csv)", cut.table()))
    if (paths := found.get("answer_paths")) is not None:
        parts += _paths(paths, sentences)
    return Section(place.replace("_", "-"), title, parts, short=title if len(title) < 30 else place.replace("_", " "))


def _paths(result: Any, sentences: Sequence[str]) -> list[Part]:
    names = [str(p) for p in result.data["part"].values.tolist()]
    texts = [sentences[int(p.split()[1])] if p.startswith("sentence ") and p.split()[1].isdigit() else "" for p in names]
    short = [p.removeprefix("sentence ") for p in names]
    values = result.data["contribution"].transpose("layer", "head", "part").values
    details = {}
    for l, h in np.ndindex(values.shape[:2]):
        best = np.argsort(-np.abs(values[l, h]), kind="stable")[:_SENTENCES]
        size = values[l, h]
        rows = [[f"{names[p]} {texts[p]}".strip(), charts.number(size[p])] for p in best if abs(size[p]) > 1e-3]
        if rows:
            details[f"{l}.{h}"] = {"title": "What it reads from each part (logits)", "rows": rows}
    shape = values.shape[:2]
    chart = charts.heads(
        result.title,
        f"added to the logit of {result.about['settings']['token']!r}",
        shape,
        [charts.head_map("All parts", result.values)],
        details=details,
    )
    sources = charts.bars(
        "What heads add from each part",
        "logits, sum over heads",
        short,
        {"contribution": result.sources.values},
        texts=texts,
        across="part: a sentence, by its number, or another part of the text",
    )
    return [Draw(chart), Draw(sources), Sentences([sentence(line) for line in result.findings()])]


def _receivers(result: Any, use: Any) -> Section:
    data = result.data
    found = result.interval("kurtosis", over="trace")
    null, high = data["null_mean"], data["null_high"]
    grid = lambda x: x.transpose("layer", "head").values  # noqa: E731
    maps = [
        charts.head_map(
            "Kurtosis beyond its null",
            _beyond_rounding(grid(found["mean"] - null)),
            n=data.sizes["trace"],
            low=grid(found["low"] - null),
            high=grid(found["high"] - null),
            own=grid(high - null),
            marked=grid(data["p"] <= result.about["settings"]["alpha"]),
            mark="beyond the null",
        )
    ]
    if use is not None:
        influence = use.interval("influence", over="trace")
        maps.append(
            charts.head_map(
                "Fall of the answer's log probability when its attention to the reasoning is blocked",
                grid(influence["mean"]),
                kind="nats",
                n=data.sizes["trace"],
                low=grid(influence["low"]),
                high=grid(influence["high"]),
            )
        )
    details = {}
    vertical = data["vertical"].transpose("trace", "layer", "head", "sentence").values
    for l, h in result.top:
        rows = []
        for t, title in enumerate(result.about["traces"]):
            scores = vertical[t, l, h]
            if np.isfinite(scores).any():
                for s in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:3].tolist():
                    if np.isfinite(scores[s]) and s < len(result.about["sentences"][t]):
                        rows.append([f"{title}: {s} {result.about['sentences'][t][s]}", charts.number(scores[s])])
        details[f"{l}.{h}"] = {"title": "Sentences that receive its attention (vertical score)", "rows": rows[:12]}
    shape = (data.sizes["layer"], data.sizes["head"])
    note = "Which sentences a head attends to is shown for the receiver heads."
    chart = charts.heads("Receiver heads", "kurtosis less null", shape, maps[:1], details=details, note=note)
    parts: list[Part] = [Draw(chart), Sentences([sentence(line) for line in result.findings()])]
    if len(maps) > 1:
        parts.append(Draw(charts.heads("Heads through which the reasoning reaches the answer", "nats", shape, maps[1:])))
    if not result.named:
        parts.append(Note("No head's kurtosis exceeds the null; the largest are shown anyway."))
    return Section(
        "receiver-heads", result.title, parts, lead="Heads that attend to the same few sentences from any later position."
    )


def _beyond_rounding(values: np.ndarray) -> np.ndarray:
    """The values, with 0 for what is rounding of numbers near 1: a map of such alone would look like a finding."""
    return np.where(np.abs(values) < 1e-9, 0.0, values)
