"""What a run would do and need: true of the run that follows, and nothing written."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pycotmech.runs import Settings, experiment
from pycotmech.runs.estimate import estimate_run

SETTINGS = Settings(model="tiny-cot", examples=3, shots=0, steps=(1, 5), threads=1)


def files(folder):
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_nothing_is_written_and_what_is_said_holds(tmp_path):
    before = estimate_run(SETTINGS, tmp_path / "a" / "out", workers=2)
    assert list(tmp_path.iterdir()) == []
    assert (before.examples, before.steps, before.sweeps, before.finished) == (3, 2, 6, 0)
    assert 3 <= before.units <= 6 and before.engine == "local" and before.workers == 2 and before.threads == 1
    assert before.flop > 0 and 0 < before.seconds < 600 and before.worker_bytes > 0 and before.weights_bytes > 1e5
    assert before.disk_bytes < before.disk_free_bytes and not before.problems
    json.dumps(before.to_dict())
    text = str(before)
    assert "3 examples of 2 steps, 6 sweeps at most" in text and "time: about" in text and "nothing was written" in text

    out = tmp_path / "out"
    experiment.run(SETTINGS, out)
    used = sum(path.stat().st_blocks * 512 for path in out.rglob("*") if path.is_file())
    assert used < before.disk_bytes < 3 * used + (3 << 20)
    seen = files(out)
    after = estimate_run(SETTINGS, out)
    assert after.units == 0 and after.finished == after.sweeps >= 4 and "nothing remains" in str(after)
    assert files(out) == seen


def test_a_gpu_that_is_not_here(tmp_path):
    here, there, slower = (estimate_run(SETTINGS, tmp_path / "out", plan_for=name) for name in (None, "h100", "a100"))
    assert (there.token_forwards, there.flop, there.units) == (here.token_forwards, here.flop, here.units)
    assert there.flop_per_second == pytest.approx(0.8 * 66.9e12) and 0 < there.seconds < slower.seconds
    assert there.free_bytes == 80 * 2**30 - there.weights_bytes and "plan_for" in there.to_dict()
    assert "on h100, by its data sheet" in str(there) and "h100" not in str(here) and here.plan_for == ""
    with pytest.raises(ValueError, match="plan_for: got 'abacus'; expected one of a100, h100"):
        estimate_run(SETTINGS, tmp_path / "out", plan_for="abacus")


def test_it_refuses_what_the_run_would_refuse(tmp_path):
    experiment.run(replace(SETTINGS, examples=1, steps=(5,)), tmp_path / "out")
    with pytest.raises(ValueError, match="contains results of other settings: examples was 1, now 3"):
        estimate_run(SETTINGS, tmp_path / "out")
    with pytest.raises(ValueError, match="engine: got 'dask'"):
        estimate_run(SETTINGS, tmp_path / "new", engine="dask")
    with pytest.raises(ValueError, match="points: got 5:9"):
        estimate_run(SETTINGS, tmp_path / "new", points=(5, 9))
    with pytest.raises(FileNotFoundError):
        estimate_run(replace(SETTINGS, model=str(tmp_path / "nothing")), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_room_that_is_missing_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 1000})())
    found = estimate_run(SETTINGS, tmp_path / "out")
    assert "problem: disk: " in str(found) and "0.0 MB are free" in found.problems[0]
