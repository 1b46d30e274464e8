"""`--json`: every command prints one JSON object on standard output, whatever else there is to say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pycotmech as pcm
from pycotmech.cli import checks, demo, machine
from pycotmech.cli.app import GROUPS
from pycotmech.cli.output import plain
from pycotmech.runs import Settings
from tests.cli.prompts import CLEAN, CORRUPTED, SMALL


@dataclass
class Some:
    path: Path
    value: float


def test_values_that_json_has_not():
    found = plain({"a": Some(Path("x"), float("nan")), 1: np.array([[1.0, np.inf]]), "t": (np.int64(3), {2}), "n": None})
    assert found == {"a": {"path": "x", "value": None}, "1": [[1.0, None]], "t": [3, [2]], "n": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.fixture
def answer(shell):
    """Runs a command with --json and returns its object."""

    def call(*arguments: object, code: int = 0) -> dict:
        found, out, err = shell(*arguments, "--json")
        assert found == code and len(out.splitlines()) == 1, err
        return json.loads(out)

    return call


def arguments_of(name: str, finished: Path, folder: Path) -> tuple[object, ...]:
    """Arguments with which a command of this name has something to print."""
    text, traces = folder / "text", folder / "traces.jsonl"
    text.write_text(CLEAN, "utf-8")
    spans = [[a, a + 3] for a in range(5, 29, 3)]
    traces.write_text(json.dumps({"tokens": [1, *range(5, 41)], "sentences": spans, "answer": [31, 33]}), "utf-8")
    tiny, out = ("--model", "tiny-cot"), ("--out", folder / "out")
    return {
        "demo": ("--out", finished),
        "doctor": (),
        "run": (*SMALL, "--out", finished),
        "paper": (*tiny, *out, "--examples", "2", "--shots", "1", "--only", "copy_heads", "--plan"),
        "trace": (*tiny, *out, "--traces", traces, "--plan"),
        "sweep": (*tiny, "--clean", CLEAN, "--corrupted", CORRUPTED, "--positions", "last"),
        "attention": (*tiny, *out, "--text", text),
        "report": (finished,),
        "figures": (finished, "--out", folder / "figures"),
        "status": (finished,),
        "export": (finished, "--to", "csv", "--out", folder / "heads.csv"),
        "merge": (folder / "whole", finished),
        "info": (),
    }[name]


def documented() -> dict[str, list[str]]:
    """The fields that docs/shell.md lists for each command."""
    page = (Path(__file__).parents[2] / "docs" / "shell.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`.*) \|$", page.partition("| command | fields of its object |")[2], re.M)
    return {name: re.findall(r"`(\w+)`", fields) for name, fields in rows}


@pytest.mark.parametrize("name", [command.__name__ for commands in GROUPS.values() for command in commands])
def test_every_command_prints_the_fields_that_the_documentation_lists(name, answer, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "settings_of", lambda *asked: Settings(model="tiny-cot", examples=2, shots=0, steps=(1, 5)))
    monkeypatch.setattr(machine, "_WIDTH", 64)
    monkeypatch.setattr(machine, "_BYTES", 1 << 16)
    monkeypatch.setattr(checks, "exactness", lambda: [])  # which test_doctor.py runs
    found = answer(name, *arguments_of(name, finished, tmp_path))
    assert isinstance(found, dict) and documented()[name] == list(found)


def test_results_folders(answer, finished, tmp_path):
    found = answer("run", *SMALL, "--out", finished)
    assert found["failures"] == [] and found["resumed"] >= 3 and Path(found["open"]).is_file()
    assert found["report"]["findings"] and [step["step"] for step in found["report"]["steps"]] == [1, 5]
    assert answer("status", finished)["pending"] == 0
    assert Path(answer("report", finished)["page"]).read_text("utf-8").startswith("<!doctype html>")
    assert answer("run", *SMALL, "--out", tmp_path / "new", "--dry-run")["examples"] == 2
    table = tmp_path / "heads.csv"
    assert answer("export", finished, "--to", "csv", "--out", table)["files"] == [str(table)] and table.is_file()
    merged = answer("merge", tmp_path / "whole", finished)
    assert merged["pending"] == 0 and merged["report"]["findings"] == found["report"]["findings"]


def test_a_sweep_holds_every_head(answer):
    found = answer("sweep", "--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED, "--top", "3")
    sweep = pcm.patch_heads(pcm.Model.from_pretrained("tiny-cot"), CLEAN, CORRUPTED)
    np.testing.assert_allclose(found["effect"], sweep.effect, atol=1e-6)
    (layer, head), effect = sweep.top(1)[0]
    assert found["strongest"][0] == {
        "layer": layer, "head": head, "effect": pytest.approx(effect, abs=1e-6), "above_floor": True, "beyond_control": None,
    }  # fmt: skip
    assert len(found["strongest"]) == 3 and found["noise_floor"] > 0 and found["files"] == []


def test_attention_paper_and_info(answer, tmp_path):
    text = tmp_path / "text"
    text.write_text(CLEAN)
    found = answer("attention", "--model", "tiny-cot", "--text", text, "--out", tmp_path / "looks")
    assert set(found["strongest"]) == {"first", "previous", "duplicate", "induction"} and "heads.csv" in found["files"]
    paper = ("paper", "--model", "tiny-cot", "--examples", "2", "--shots", "1", "--only", "copy_heads")
    found = answer(*paper, "--out", tmp_path / "paper", "--plan")
    assert found["plan"]["lines"][0]["name"] and found["plan"]["seconds"] > 0 and not (tmp_path / "paper").exists()
    found = answer(*paper, "--out", tmp_path / "paper")
    assert "copy_heads" in found["analyses"] and {"claim", "text", "verdict", "evidence"} == set(found["claims"][0])
    assert answer("info")["compiled_modules"]["pycotmech._C"] == "built"


def test_an_error_prints_no_object(shell, tmp_path):
    code, out, err = shell("status", tmp_path / "nowhere", "--json")
    assert code == 2 and out == "" and "there is no folder" in err
