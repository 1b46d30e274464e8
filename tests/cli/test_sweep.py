"""`pycotmech sweep`: one pair, several, a screen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import pycotmech as pcm
from tests.cli.prompts import CLEAN, CORRUPTED, pairs_file


def test_sweep_of_one_pair(shell):
    code, out, _ = shell("sweep", "--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED, "--top", "3")
    sweep = pcm.patch_heads(pcm.Model.from_pretrained("tiny-cot"), CLEAN, CORRUPTED)
    assert code == 0 and out.count("  L") == 3
    for (layer, head), effect in sweep.top(3):
        assert f"L{layer}H{head}".ljust(8) + f" {effect:+.4f}" in out


def test_a_screened_sweep_says_so(shell, tmp_path):
    pair = ("--clean", CLEAN, "--corrupted", CORRUPTED)
    code, out, _ = shell("sweep", "--model", "tiny-cot", *pair, "--screen", "2", "--csv", tmp_path / "a.csv")
    sweep = pcm.patch_heads(pcm.Model.from_pretrained("tiny-cot"), CLEAN, CORRUPTED, screen=2)
    assert code == 0 and out.count("  L") == 2 and "only the 2 heads with the largest first-order estimates" in out
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame["exact"].sum() == 2 and np.allclose(frame["estimate"], sweep.estimate.ravel(), atol=1e-5)
    assert shell("sweep", "--model", "tiny-cot", *pair, "--screen", "99")[2].startswith("pycotmech: error: screen: got 99")


def test_sweep_needs_one_source_of_prompts(shell):
    code, _, err = shell("sweep", "--model", "tiny-cot")
    assert code == 2 and "expected either --clean and --corrupted, or --pairs" in err
    code, _, err = shell("sweep", "--model", "tiny-cot", "--clean", "a")
    assert code == 2 and "corrupted: missing" in err


@pytest.mark.parametrize("option", ["--csv", "--png"])
def test_files_that_cannot_be_written_are_named_before_the_model_is_loaded(shell, tmp_path, monkeypatch, option):
    monkeypatch.setattr(pcm.Model, "from_pretrained", lambda *a, **k: pytest.fail("the model was loaded"))
    pair = ("--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path, message in ((tmp_path / "folder", "is a folder; expected a file"), ("", "the name is empty")):
        code, _, err = shell("sweep", *pair, option, path)
        assert code == 2 and f"{option[2:]}: " in err and message in err
    code, _, err = shell("sweep", *pair, option, tmp_path / "file" / "below")
    assert code == 2 and f"{option[2:]}: " in err and "is a file; expected a folder" in err
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}


def test_pairs_of_a_csv_file_are_those_of_a_jsonl_file(shell, tmp_path):
    (tmp_path / "pairs.csv").write_text(f"clean,corrupted\n{CLEAN},{CORRUPTED}\n", "utf-8")
    jsonl = pairs_file(tmp_path, {"clean": CLEAN, "corrupted": CORRUPTED})
    code, out, _ = shell("sweep", "--model", "tiny-cot", "--pairs", tmp_path / "pairs.csv", "--top", "3")
    assert code == 0 and out == shell("sweep", "--model", "tiny-cot", "--pairs", jsonl, "--top", "3")[1]
    (tmp_path / "pairs.csv").write_text("clean,corrupted\n\x1b[2J,\x1b[2J\n", "utf-8")
    code, _, err = shell("sweep", "--model", "tiny-cot", "--pairs", tmp_path / "pairs.csv")
    assert code == 2 and "pairs.csv, line 2: fields 'clean' and 'corrupted' are the same" in err and err.count("\n") == 1


def test_pairs_are_kept_one_by_one_in_a_folder(shell, tmp_path):
    pairs = tmp_path / "mine.jsonl"
    pairs.write_text('{"clean": [1, 5, 6, 7], "corrupted": [1, 5, 8, 7]}\n{"clean": [1, 9, 6], "corrupted": [1, 8, 6]}\n')
    settings = ("sweep", "--model", "tiny-cot", "--pairs", pairs, "--out", tmp_path / "out", "--threads", "1")
    code, _, err = shell(*settings)
    assert code == 0, err
    results = pcm.open_results(tmp_path / "out")
    assert results.kind == "sweep" and (results.data["state"] == 1).all()
    assert "already finished: 2 sweeps" in shell(*settings)[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clean", "a", "--corrupted", "b"), "out: keeps the results of a file of pairs; expected --pairs too"),
        (("--pairs", "x.jsonl", "--csv", "x.csv"), "csv: cannot be combined with --out"),
    ],
)
def test_what_has_no_meaning_with_a_folder_is_refused(shell, tmp_path, options, message):
    code, _, err = shell("sweep", "--model", "tiny-cot", "--out", tmp_path / "out", *options)
    assert code == 2 and message in err and not (tmp_path / "out").exists()
