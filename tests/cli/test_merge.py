"""Parts, workers and predictions from the shell."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pycotmech.runs import read
from pycotmech.runs.head_views import read_head_views
from tests.cli.prompts import CLEAN, CORRUPTED, SMALL, pairs_file


def test_parts_by_workers_merge_into_the_whole_run(finished, tmp_path, shell):
    for points, more in (("0:1", ("--engine", "local", "--workers", "1")), ("1:", ())):
        code, _, err = shell("run", *SMALL, "--out", tmp_path / points[0], "--points", points, "--threads", "1", *more, "-q")
        assert code == 0, err
    code, out, err = shell("merge", tmp_path / "out", tmp_path / "0", tmp_path / "1")
    assert code == 0, err
    assert "examples 0 to 1: " in out and "0 pending" in out and "Step 5 (induction) depends most on" in out
    np.testing.assert_allclose(read(tmp_path / "out")["effect"], read(finished)["effect"], atol=1e-5)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<p class=note>What heads attend to" not in page and str(tmp_path / "out" / "report.html") in out
    views = read_head_views(tmp_path / "out")
    assert views is not None and {view["example"] for view in views["views"]} == {"0", "1"}
    of_run = {(v["example"], v["step"]): v["heads"] for v in read_head_views(finished)["views"]}
    for view in views["views"]:  # what is taken from the parts is what the run of all examples stores
        here = of_run[view["example"], view["step"]]
        assert view["heads"] and all(here[head]["keys"] == one["keys"] for head, one in view["heads"].items())
    code, out, err = shell("run", *SMALL, "--out", tmp_path / "out", "--threads", "1")
    assert code == 0 and "0 to do" in err
    code, _, err = shell("merge", tmp_path / "other", tmp_path / "0", tmp_path / "nothing")
    assert code == 2 and "parts: there is no folder" in err


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path, shell):
    code, out, _ = shell("run", *SMALL, "--out", tmp_path / "out", "--dry-run", "--workers", "2")
    assert code == 0 and "2 examples of 2 steps" in out and "engine local, workers: 2" in out and "nothing was written" in out
    code, out, _ = shell("run", *SMALL, "--out", tmp_path / "out", "--estimate")
    assert code == 0 and json.loads(out)["examples"] == 2 and list(tmp_path.iterdir()) == []
    code, out, _ = shell("run", *SMALL, "--out", tmp_path / "out", "--dry-run", "--plan-for", "h100")
    assert code == 0 and "on h100, by its data sheet" in out and list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_sweep(tmp_path, shell):
    arguments = ("sweep", "--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED)
    code, out, _ = shell(*arguments, "--dry-run", "--csv", tmp_path / "new" / "heads.csv")
    assert code == 0 and "variants of 1 example" in out and "nothing was run or written" in out
    code, out, _ = shell(*arguments, "--estimate", "--screen", "3")
    found = json.loads(out)
    assert code == 0 and found["variants"] >= 32 and found["seconds"] > 0 and found["screen"] == 3
    code, out, _ = shell(*arguments, "--dry-run", "--plan-for", "h100")
    assert code == 0 and "on h100, by its data sheet, at 53,520 GFLOP/s" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", *SMALL, "--points", "3"), "points: got '3'; expected START:STOP, such as 0:500"),
        (("run", *SMALL, "--points", "1:5"), "points: got 1:5; expected START:STOP with 0 <= START < STOP <= 2"),
        (("run", *SMALL, "--engine", "dask"), "engine: got 'dask'; expected one of serial, local, ray"),
        (("run", *SMALL, "--engine", "serial", "--workers", "2"), "workers: got 2 for the serial engine"),
        (("run", *SMALL, "--dry-run", "--workers", "0"), "workers: got 0; expected 1 or more"),
    ],
)
def test_mistakes_are_one_line(tmp_path, shell, arguments, message):
    code, _, err = shell(*arguments, "--out", tmp_path / "out")
    assert code == 2 and message in err and not (tmp_path / "out").exists()


def test_points_of_a_sweep_are_pairs_of_the_file(tmp_path, shell):
    pairs = pairs_file(tmp_path, {"clean": [1, 2, 3], "corrupted": [1, 4, 3]}, {"clean": CLEAN, "corrupted": CORRUPTED})
    code, out, _ = shell("sweep", "--model", "tiny-cot", "--pairs", pairs, "--points", "1:", "--estimate")
    assert code == 0 and json.loads(out)["examples"] == 1
    code, _, err = shell("sweep", "--model", "tiny-cot", "--clean", CLEAN, "--corrupted", CORRUPTED, "--points", "0:1")
    assert code == 2 and "points: selects pairs of a file; expected --pairs too" in err
    code, _, err = shell("sweep", "--model", "tiny-cot", "--pairs", pairs, "--workers", "2")
    assert code == 2 and "workers: is for runs into a folder; expected --pairs and --out too" in err
