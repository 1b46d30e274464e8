"""`status_of`: what is done and what is left, how fast it goes, and whether a process writes now."""

from __future__ import annotations

import json
import os

import pytest

from pycotmech.files.arrays import save_arrays
from pycotmech.runs import ResultAxes, SweepStore, open_folder
from pycotmech.runs.events import EVENTS, EventLog
from pycotmech.runs.folder import is_written
from pycotmech.runs.status import status_of
from tests.runs.synthetic import sweep_of

AXES = ResultAxes(["0", "1", "2"], [5, 9], ["induction", "induction"], n_layers=4, n_heads=3)


def created(folder, **identity):
    return SweepStore.create(folder, AXES, identity={"model": "m", **identity}, about={})


def timed(folder, *seconds):
    """Gives the events of a log these times."""
    lines = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    for line, second in zip(lines, seconds, strict=True):
        line.pop("crc32", None)  # of the time that it had
        line["time"] = f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z"
    (folder / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_units_are_counted_and_the_rest_predicted(tmp_path):
    store = created(tmp_path)
    store.grade(1, [1, 0])
    store.skip(1, 1)
    store.finish(0, [0, 1], [sweep_of(0), sweep_of(1)], 1.0)
    store.fail(2, [1], "metric: the same in both runs\x1b[2J")
    timed(tmp_path, 0, 5, 20, 22)
    status = status_of(tmp_path)
    assert (status.kind, status.unit, status.finished, status.pending, status.skipped) == ("run", "sweep", 2, 3, 1)
    assert status.failures == {"example 2, step 1": "metric: the same in both runs\x1b[2J"} and status.failed == 1
    assert status.per_hour == pytest.approx(360) and status.seconds_left == pytest.approx(30)
    assert status.pid == os.getpid() and not status.writing and status.last == "2026-01-01T00:00:22Z"
    text = str(status)
    assert "2 finished, 3 pending, 1 skipped, 1 failed" in text and "about 30 s left" in text and "\x1b" not in text
    assert "nobody is writing; the same command continues" in text
    assert json.loads(json.dumps(status.to_dict()))["seconds_left"] == pytest.approx(30)


def test_a_failure_that_was_made_good_is_none(tmp_path):
    store = created(tmp_path, pairs="mine.jsonl")
    store.fail(0, [0], "out of memory")
    store.finish(0, [0], [sweep_of(0)], 1.0)
    assert status_of(tmp_path).failures == {} and status_of(tmp_path).kind == "sweep"


def test_the_rate_is_that_of_the_last_process(tmp_path):
    store = created(tmp_path)
    store.finish(0, [0], [sweep_of(0)], 1.0)
    store = SweepStore.resume(tmp_path)
    store.finish(0, [1], [sweep_of(0)], 1.0)
    store.finish(1, [0], [sweep_of(0)], 1.0)
    timed(tmp_path, 0, 600, 1200, 1210, 1220)
    assert status_of(tmp_path).per_hour == pytest.approx(360)


def test_a_process_that_writes_is_seen_and_not_disturbed(tmp_path):
    with open_folder(tmp_path) as folder:
        created(folder)
        assert is_written(tmp_path) and status_of(tmp_path).writing and "is writing now" in str(status_of(tmp_path))
    assert not is_written(tmp_path) and not status_of(tmp_path).writing
    with open_folder(tmp_path):
        pass


def test_a_log_from_a_stranger_changes_no_count(tmp_path):
    created(tmp_path)
    log = EventLog(tmp_path)
    log.write("finished", example=10**9, steps=[0])
    log.write("failed", example=0, steps="all", why={})
    log.write("finished", steps={"a": 1}, example=None, seconds="long")
    log.write("failed", example=-1, steps=[99], why="x")
    status = status_of(tmp_path)
    assert (status.finished, status.pending, status.failures) == (0, 6, {})


def test_the_papers_analyses_are_counted_and_their_time_predicted(tmp_path):
    import xarray as xr

    log = EventLog(tmp_path)
    (tmp_path / "paper.json").write_text("{}")
    log.begin("start", "paper")
    log.write("plan", units={"copy_heads": 10.0, "remove": 30.0, "keep_only": 5.0})
    save_arrays(xr.Dataset({"x": ("i", [1.0])}), tmp_path / "data" / "copy_heads.zarr")
    log.write("finished", unit="copy_heads", seconds=20.0)
    log.write("failed", unit="keep_only", why="needs patch_steps")
    timed(tmp_path, 0, 0, 20, 20)
    status = status_of(tmp_path)
    assert (status.kind, status.finished, status.pending, status.failed) == ("paper", 1, 2, 1)
    assert status.seconds_left == pytest.approx(70) and status.failures == {"keep_only": "needs patch_steps"}


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_results_is_named(tmp_path, make):
    if make:
        (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder: .*out"):
        status_of(tmp_path / "out")
