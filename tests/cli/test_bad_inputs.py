"""What the shell refuses: one line that names the option or the file, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pycotmech as pcm

RUN, SWEEP = ("run", "--model", "tiny-cot", "--out", "{out}"), ("sweep", "--model", "tiny-cot")
PAIR = ("--clean", "Max is a", "--corrupted", "Sam is a")
PAPER, TRACE = ("paper", "--model", "tiny-cot", "--out", "{out}"), ("trace", "--model", "tiny-cot", "--out", "{out}")
ATTENTION = ("attention", "--model", "tiny-cot", "--out", "{out}")

TABLE: dict[str, tuple[tuple[str, ...], str]] = {
    # ---- run: workers, points, dry runs, controls --------------------------------------------------------------------
    "engine": ((*RUN, "--engine", "spark"), "engine: got 'spark'; expected"),
    "engine empty": ((*RUN, "--engine", ""), "engine: got ''; expected"),
    "workers 0": ((*RUN, "--workers", "0"), "workers: got 0; expected"),
    "workers -2": ((*RUN, "--workers", "-2"), "workers: got -2; expected"),
    "workers many": ((*RUN, "--workers", "many"), "--workers"),
    "workers of serial": ((*RUN, "--engine", "serial", "--workers", "2"), "workers: "),
    "ray address of local": ((*RUN, "--engine", "local", "--ray-address", "auto"), "ray_address: "),
    "points text": ((*RUN, "--points", "first"), "points: got 'first'; expected START:STOP"),
    "points without a colon": ((*RUN, "--points", "3"), "points: got '3'; expected START:STOP"),
    "points empty": ((*RUN, "--points", ""), "points: got ''; expected START:STOP"),
    "points backwards": ((*RUN, "--points", "5:2"), "points: got 5:2; expected START:STOP with"),
    "points none": ((*RUN, "--points", "4:4"), "points: got 4:4; expected"),
    "points beyond": ((*RUN, "--examples", "4", "--points", "0:5"), "points: got 0:5; expected"),
    "points from beyond": ((*RUN, "--examples", "4", "--points", "9:"), "points: got 9"),
    "points negative": ((*RUN, "--points=-2:"), "points: got -2"),
    "points with a step": ((*RUN, "--points", "0:9:2"), "points: got '0:9:2'; expected START:STOP"),
    "points of a fraction": ((*RUN, "--points", "0.5:2"), "points: got '0.5:2'; expected START:STOP"),
    "dry run of bad settings": ((*RUN, "--dry-run", "--steps", "99"), "steps: got 99; expected"),
    "dry run into a file": (("run", "--model", "tiny-cot", "--out", "{file}", "--dry-run"), "is a file; expected a folder"),
    "estimate of bad settings": ((*RUN, "--estimate", "--metric", "loss"), "metric: got 'loss'; expected one of"),
    "estimate without a folder": (("run", "--model", "tiny-cot", "--estimate"), "Missing option '--out'"),
    "plan for a run": ((*RUN, "--plan-for", "h100"), "plan_for: got 'h100' for a run here; expected it with --dry-run"),
    "plan for an abacus": ((*RUN, "--dry-run", "--plan-for", "abacus"), "plan_for: got 'abacus'; expected one of a100"),
    "sweep's plan for": ((*SWEEP, *PAIR, "--plan-for", "h100"), "plan_for: got 'h100' for a run here; expected it with"),
    "controls with a value": ((*RUN, "--controls", "maybe"), "unexpected extra argument"),
    "examples 0": ((*RUN, "--examples", "0"), "examples: got 0; expected 1 or more"),
    "shots -1": ((*RUN, "--shots", "-1"), "shots: got -1; expected 0 or more"),
    "seed too large": ((*RUN, "--seed", "4294967296"), "seed: got 4294967296; expected at most 4294967295"),
    "seed negative": ((*RUN, "--seed", "-1"), "seed: got -1; expected 0 or more"),
    "threads 0": ((*RUN, "--threads", "0"), "threads: got 0; expected 1 or more"),
    "threads 100000": ((*RUN, "--threads", "100000"), "threads: got 100000; expected at most"),
    "memory 0": ((*RUN, "--memory-gb", "0"), "memory_gb: got 0.0; expected a positive number"),
    "memory nan": ((*RUN, "--memory-gb", "nan"), "memory_gb: got nan; expected a positive number"),
    "memory inf": ((*RUN, "--memory-gb", "inf"), "memory_gb: got inf; expected a positive number"),
    "positions": ((*RUN, "--positions", "everywhere"), "positions: got 'everywhere'; expected all, last, or numbers"),
    "top 0": ((*RUN, "--top", "0"), "top: got 0; expected 1 or more"),
    "out empty": (("run", "--model", "tiny-cot", "--out", ""), "out: the name is empty"),
    "out too long": (("run", "--model", "tiny-cot", "--out", "{dir}/" + 300 * "x"), "out: "),
    "unknown option": ((*RUN, "--wrokers", "2"), "No such option"),
    # ---- pairs -------------------------------------------------------------------------------------------------------
    "pairs missing": ((*RUN, "--pairs", "{dir}/nowhere.jsonl"), "pairs: there is no file"),
    "pairs empty name": ((*RUN, "--pairs", ""), "pairs: the name is empty"),
    "pairs empty file": ((*RUN, "--pairs", "{file}"), "pairs: "),
    "pairs with task": ((*RUN, "--pairs", "{pairs}", "--hops", "2"), "hops: has no meaning with pairs"),
    "pairs points beyond": ((*RUN, "--pairs", "{pairs}", "--points", "0:7"), "points: got 0:7; expected"),
    "pairs csv without a column": ((*SWEEP, "--pairs", "{half.csv}"), "column 'corrupted' is missing"),
    "pairs csv torn": ((*SWEEP, "--pairs", "{torn.csv}"), "cells under a header of"),
    "pairs csv typo": ((*SWEEP, "--pairs", "{typo.csv}"), "unknown column"),
    "pairs csv empty": ((*SWEEP, "--pairs", "{empty.csv}"), "pairs: "),
    "pairs csv latin": ((*SWEEP, "--pairs", "{latin.csv}"), "is not UTF-8 text"),
    "pairs parquet that is none": ((*SWEEP, "--pairs", "{none.parquet}"), "is not a readable Parquet file"),
    "pairs parquet empty": ((*SWEEP, "--pairs", "{empty.parquet}"), "is not a readable Parquet file"),
    "pairs a folder": ((*SWEEP, "--pairs", "{dir}"), "is a folder, but not one that datasets"),
    "pairs a list": ((*SWEEP, "--pairs", "{list.jsonl}"), "expected a JSON object"),
    "pairs twice a field": ((*SWEEP, "--pairs", "{twice.jsonl}"), "field 'clean' is given twice"),
    "pairs unknown field": ((*SWEEP, "--pairs", "{field.jsonl}"), "unknown field"),
    "pairs nested": ((*SWEEP, "--pairs", "{deep.jsonl}"), "not valid JSON"),
    "pairs torn": ((*SWEEP, "--pairs", "{torn.jsonl}"), "not valid JSON"),
    # ---- sweep -------------------------------------------------------------------------------------------------------
    "sweep of nothing": (SWEEP, "clean"),
    "sweep of both": ((*SWEEP, *PAIR, "--pairs", "{pairs}"), "pairs"),
    "sweep png without ending": ((*SWEEP, *PAIR, "--png", "{dir}/heads"), "png: "),
    "sweep png a folder": ((*SWEEP, *PAIR, "--png", "{dir}"), "png: "),
    "sweep csv a folder": ((*SWEEP, *PAIR, "--csv", "{dir}"), "csv: "),
    "sweep top 0": ((*SWEEP, *PAIR, "--top", "0"), "top: got 0; expected 1 or more"),
    "sweep csv empty": ((*SWEEP, *PAIR, "--csv", ""), "csv: the name is empty"),
    "sweep csv below a file": ((*SWEEP, *PAIR, "--csv", "{file}/x.csv"), "csv: "),
    "sweep screen with a folder": ((*SWEEP, "--pairs", "{pairs}", "--out", "{out}", "--screen", "3"), "screen: "),
    "sweep out without pairs": ((*SWEEP, *PAIR, "--out", "{out}"), "out: "),
    "sweep metric": ((*SWEEP, *PAIR, "--metric", "loss"), "metric: got 'loss'; expected one of"),
    "sweep direction": ((*SWEEP, *PAIR, "--direction", "up"), "direction: got 'up'; expected one of"),
    # ---- merge -------------------------------------------------------------------------------------------------------
    "merge nothing": (("merge", "{out}"), "Missing argument 'parts'"),
    "merge nowhere": (("merge", "{out}", "{dir}/nowhere"), "parts: there is no folder"),
    "merge no results": (("merge", "{out}", "{dir}"), "parts: {dir} holds no results"),
    "merge twice": (("merge", "{out}", "{run}", "{run}"), "parts: a folder is given twice"),
    "merge into itself": (("merge", "{run}", "{run}"), "is one of the parts; expected another folder"),
    "merge a file": (("merge", "{out}", "{file}"), "{file}"),
    "merge top": (("merge", "{out}", "{run}", "--top", "0"), "top: got 0; expected 1 or more"),
    "merge damaged examples": (("merge", "{out}", "{other}"), "does not hold the examples of these results"),
    "merge into a file": (("merge", "{file}", "{run}"), "is a file; expected a folder"),
    # ---- status, report, export --------------------------------------------------------------------------------------
    "status nowhere": (("status", "{dir}/nowhere"), "folder: there is no folder"),
    "status no results": (("status", "{dir}"), "holds no results of run, sweep, paper, attention or trace"),
    "status a file": (("status", "{file}"), "{file}"),
    "status empty": (("status", ""), "folder: the name is empty"),
    "status of a damaged store": (("status", "{broken}"), "zarr.json cannot be read"),
    "report nowhere": (("report", "{dir}/nowhere"), "there is no"),
    "report no results": (("report", "{dir}"), "holds no results"),
    "report empty": (("report", ""), "the name is empty"),
    "report top": (("report", "{run}", "--top", "0"), "top: got 0; expected 1 or more"),
    "export nowhere": (("export", "{dir}/nowhere", "--to", "csv", "--out", "{dir}/x.csv"), "folder: there is no folder"),
    "export no results": (("export", "{dir}", "--to", "csv", "--out", "{dir}/x.csv"), "holds no results"),
    "export format": (("export", "{run}", "--to", "xlsx", "--out", "{dir}/x"), "to: got 'xlsx'; expected one of"),
    "export format empty": (("export", "{run}", "--to", "", "--out", "{dir}/x"), "to: got ''; expected one of"),
    "export without a format": (("export", "{run}", "--out", "{dir}/x"), "Missing option '--to'"),
    "export no file": (("export", "{run}", "--to", "csv", "--out", ""), "out: the name is empty"),
    "export into a folder": (("export", "{run}", "--to", "csv", "--out", "{dir}"), "is a folder; expected a file"),
    "export below nothing": (("export", "{run}", "--to", "csv", "--out", "{dir}/no/x.csv"), "out: there is no folder"),
    "export dataset": (("export", "{run}", "--to", "csv", "--out", "{dir}/x", "--name", "remove"), "got 'remove'; expected"),
    "export variable": (("export", "{run}", "--to", "csv", "--out", "{dir}/x", "--variables", "efect"), "got 'efect'"),
    "export no variable": (("export", "{run}", "--to", "csv", "--out", "{dir}/x", "--variables", ","), "variables: "),
    # ---- trace, paper, attention -------------------------------------------------------------------------------------
    "trace nowhere": ((*TRACE, "--traces", "{dir}/nowhere.jsonl"), "traces: there is no file"),
    "trace empty": ((*TRACE, "--traces", "{file}"), "traces: "),
    "trace of pairs": ((*TRACE, "--traces", "{pairs}"), "traces: "),
    "trace splitter": ((*TRACE, "--traces", "{traces}", "--splitter", "regex"), "splitter: got 'regex'; expected"),
    "trace definition": ((*TRACE, "--traces", "{traces}", "--definition", "mine"), "definition: got 'mine'; expected"),
    "trace top": ((*TRACE, "--traces", "{traces}", "--top", "0"), "top: got 0; expected"),
    "trace controls": ((*TRACE, "--traces", "{traces}", "--controls", "-1"), "controls: got -1; expected"),
    "trace proximity": ((*TRACE, "--traces", "{traces}", "--proximity", "-1"), "proximity: got -1; expected"),
    "trace threads": ((*TRACE, "--traces", "{traces}", "--threads", "0"), "threads: got 0; expected"),
    "trace memory": ((*TRACE, "--traces", "{traces}", "--memory-gb", "0"), "memory_gb: got 0.0; expected"),
    "paper only": ((*PAPER, "--only", "E99"), "E99"),
    "paper settings": ((*PAPER, "--settings", "impossible"), "impossible"),
    "paper minutes": ((*PAPER, "--minutes", "0"), "minutes: got 0.0; expected a positive number"),
    "paper minutes and examples": ((*PAPER, "--minutes", "3", "--examples", "4"), "minutes: "),
    "paper's plan for": ((*PAPER, "--plan-for", "h100"), "plan_for: got 'h100' for a run here; expected it with --plan, --"),
    "paper pilot": ((*PAPER, "--pilot", "{dir}/nowhere"), "pilot: there is no folder"),
    "attention no text": ((*ATTENTION, "--text", "{dir}/nowhere.txt"), "text: there is no file"),
    "attention top": ((*ATTENTION, "--text", "{text}", "--top-k", "-1"), "top_k: got -1; expected"),
    "attention segments": ((*ATTENTION, "--text", "{text}", "--segments", "a"), "segments: got 'a'; expected"),
}  # fmt: skip


@pytest.fixture(scope="module")
def places(finished, tmp_path_factory) -> dict[str, str]:
    """Files and folders that the table names."""
    place = tmp_path_factory.mktemp("places")
    pair = {"clean": [1, 5, 6], "corrupted": [1, 7, 6]}
    texts = {
        "half.csv": "clean,answer\na b,c\n",
        "torn.csv": "clean,corrupted\na b\n",
        "typo.csv": "clean,corupted\na b,a c\n",
        "empty.csv": "",
        "none.parquet": "PAR1 but no more",
        "empty.parquet": "",
        "list.jsonl": "[1, 2]\n",
        "twice.jsonl": '{"clean": "a", "clean": "b", "corrupted": "c"}\n',
        "field.jsonl": '{"clean": "a", "corrupted": "b", "answr": "c"}\n',
        "deep.jsonl": "[" * 5000 + "\n",
        "torn.jsonl": '{"clean": "a", "corr',
        "pairs": json.dumps(pair) + "\n" + json.dumps(pair | {"clean": [1, 8, 6]}) + "\n",
        "traces": json.dumps({"prompt": "Every wumpus is a lempus . ", "completion": "Max is a wumpus . Max is a lempus ."}),
        "text": "The cat is a cat.",
        "file": "",
    }  # fmt: skip
    for name, text in texts.items():
        (place / name).write_text(text, "utf-8")
    for name in ("pairs", "traces"):
        (place / name).rename(place / f"{name}.jsonl")
    (place / "latin.csv").write_bytes("clean,corrupted\ncafé,caf\n".encode("latin-1"))
    folders = {"dir": place / "folder", "other": place / "other", "broken": place / "broken"}
    folders["dir"].mkdir()
    for name in ("other", "broken"):
        shutil.copytree(finished, folders[name])
    lines = (folders["other"] / "examples.jsonl").read_text("utf-8")
    (folders["other"] / "examples.jsonl").write_text(lines.replace("[", "[1, ", 2), "utf-8")
    (folders["broken"] / "results.zarr/zarr.json").write_text("{", "utf-8")
    files = {name: place / name for name in (*texts, "latin.csv")}
    files |= {name: place / f"{name}.jsonl" for name in ("pairs", "traces")}
    return {name: str(path) for name, path in {**files, **folders, "run": finished}.items()}


def filled(text: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        text = text.replace("{" + name + "}", path)
    return text


def test_the_table_is_long_enough():
    assert len(TABLE) >= 80 and len({arguments for arguments, _ in TABLE.values()}) == len(TABLE)


@pytest.mark.parametrize("name", TABLE)
def test_one_line_and_nothing_done(name, places, shell, tmp_path, monkeypatch):
    monkeypatch.setattr(pcm.Model, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    arguments, message = TABLE[name]
    out = tmp_path / "out"
    code, said, err = shell(*(filled(a, places | {"out": str(out)}) for a in arguments))
    assert (code, said) == (2, "") and err.startswith("pycotmech: error: "), (code, said, err)
    assert len(err.splitlines()) == 1 and len(err) < 700 and "Traceback" not in err
    assert filled(message, places) in err, err
    assert not out.exists() or not any(p for p in Path(out).rglob("*") if p.name != ".lock"), list(out.rglob("*"))
