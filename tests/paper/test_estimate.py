"""What a run of the paper's analyses would do: all of it is said, nothing is written, and workers are reckoned with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from pycotmech import paper
from pycotmech.paper.estimate import time_of
from pycotmech.runs import Settings

SETTINGS = Settings(model="tiny-cot", examples=2, shots=1, steps=(2, 5), threads=1)


def expected(out, **more) -> paper.PaperEstimate:
    found = paper.run(SETTINGS, out, only=("copy_heads", "remove"), plan_only=True, **more).expected
    assert found is not None
    return found


def test_nothing_is_written_and_what_is_said_holds(tmp_path):
    before = expected(tmp_path / "a" / "out", tasks=("easy", "shuffled", "wording_each"), workers=2)
    assert list(tmp_path.iterdir()) == []
    assert (before.engine, before.workers, before.threads, before.finished) == ("local", 2, 1, 0)
    assert list(before.settings) == ["wording_each", "easy", "shuffled"]
    assert "does not know" in before.settings["wording_each"].failure
    assert [a["name"] for a in before.settings["easy"].analyses] == ["patch_steps", "copy_heads", "remove"]
    assert before.analyses == sum(len(s.analyses) for s in before.settings.values()) and before.flop > 0
    assert 0 < before.seconds < 600 and before.weights_bytes > 1e5 and not before.problems
    assert json.loads(json.dumps(before.to_dict()))["settings"]["easy"]["examples"] == 2
    text = str(before)
    assert "setting wording_each: cannot be made" in text and "nothing was written" in text and "time: about" in text

    out = tmp_path / "out"
    paper.run(SETTINGS, out, only=("copy_heads", "remove"))
    used = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert used < expected(tmp_path / "b").disk_bytes < 40 * used
    seen = {(path, path.stat().st_mtime_ns) for path in out.rglob("*")}
    after = expected(out)
    assert after.finished == after.analyses == 3 and after.seconds == after.flop == after.disk_bytes == 0
    assert {(path, path.stat().st_mtime_ns) for path in out.rglob("*")} == seen


def test_room_that_is_missing_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    found = expected(tmp_path / "out")
    assert "problem: disk: " in str(found) and "0.0 MB are free" in found.problems[0]


@pytest.mark.parametrize(("workers", "seconds"), [(1, 19.0), (2, 10.0), (9, 10.0)])
def test_workers_shorten_what_need_not_wait(workers, seconds):
    """b after a takes 10 seconds, whoever does the rest."""
    entries = [SimpleNamespace(name=n, needs=needs) for n, needs in (("a", ()), ("b", ("a",)), ("c", ()), ("d", ("a", "c")))]
    lines = [SimpleNamespace(name=n, seconds=s) for n, s in (("a", 1.0), ("b", 9.0), ("c", 5.0), ("d", 4.0))]
    assert time_of(entries, lines, workers) == seconds
    assert time_of(entries, [line for line in lines if line.name == "d"], workers) == 4.0  # the others are finished
