"""`--json`: every command prints one JSON object on standard output, whatever else there is to say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pycotmech as pcm
from pycotmech.cli.app import GROUPS
from pycotmech.cli.output import plain
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


def test_every_command_has_it(shell):
    for command in (command for commands in GROUPS.values() for command in commands):
        code, out, _ = shell(command.__name__, "--help")
        assert code == 0 and "--json" in out, command.__name__


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
