"""The store: what is written comes back, and what a dying process leaves behind is never taken for finished."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pycotmech.files.arrays import save_arrays
from pycotmech.runs import ResultAxes, SweepState, SweepStore, read, store
from pycotmech.runs.events import read_events
from pycotmech.runs.progress import uninterrupted
from pycotmech.runs.store import STORE, stored_identity
from pycotmech.runs.variables import VARIABLES
from tests.reference.forked import ended, start, stopped
from tests.runs.synthetic import sweep_of

AXES = ResultAxes(["0", "1", "2"], [5, 9], ["induction", "induction"], n_layers=4, n_heads=3)
SETTINGS = {"model": "m", "steps": [5, 9]}


def created(folder: Path) -> SweepStore:
    return SweepStore.create(folder, AXES, identity=SETTINGS, about={"model": {"name": "m", "notes": []}})


def test_what_is_finished_comes_back_with_its_labels(tmp_path):
    results = created(tmp_path)
    results.grade(1, [1, 0])
    results.finish(1, [0], [sweep_of(3)], seconds=2.5)
    results.skip(1, 1)
    data = read(tmp_path)
    assert data.sizes == {"example": 3, "step": 2, "layer": 4, "head": 3}
    assert data["step"].values.tolist() == [5, 9] and data["kind"].values.tolist() == ["induction"] * 2
    np.testing.assert_array_equal(data["raw"].sel(example=1, step=5), sweep_of(3).raw)
    np.testing.assert_array_equal(data["effect"].sel(example=1, step=5), sweep_of(3).effect)
    cell = data.sel(example=1, step=5)
    assert [float(cell[n]) for n in ("clean_metric", "corrupted_metric", "noise_floor", "seconds")] == [1.5, -0.5, 1e-6, 2.5]
    assert data["state"].values.tolist() == [[0, 0], [SweepState.FINISHED, SweepState.SKIPPED], [0, 0]]
    assert data["right"].values.tolist() == [[-1, -1], [1, 0], [-1, -1]]
    assert np.isnan(data["raw"].sel(example=0)).all() and np.isnan(data["raw"].sel(example=1, step=9)).all()
    assert data.attrs["identity"] == SETTINGS == stored_identity(tmp_path)


def test_controls_come_back_and_need_not_be_there(tmp_path):
    results = created(tmp_path)
    results.finish(0, [0], [sweep_of(3)], 1.0)
    without = sweep_of(4)
    without.control, without.sham = np.full((4, 3), np.nan, "f4"), np.nan
    results.finish(0, [1], [without], 1.0)
    data = read(tmp_path)
    np.testing.assert_array_equal(data["control"][0, 0], sweep_of(3).control)
    assert data["sham"].values[0].tolist()[:1] == [0.0] and np.isnan(data["sham"].values[0, 1])
    assert SweepStore.resume(tmp_path).state().tolist()[0] == [1, 1]


def test_a_folder_without_controls_is_read_and_continued(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(store, "VARIABLES", {name: v for name, v in VARIABLES.items() if not v.added})
        created(tmp_path)
    SweepStore(tmp_path).finish(0, [0], [sweep_of(3)], 1.0)
    results = SweepStore.resume(tmp_path)
    results.finish(1, [0], [sweep_of(4)], 1.0)
    data = read(tmp_path)
    assert data["state"].values.tolist() == [[1, 0], [1, 0], [0, 0]]
    assert np.isnan(data["control"]).all() and np.isnan(data["sham"]).all()


def test_plain_xarray_opens_it(tmp_path):
    results = created(tmp_path)
    results.finish(0, [1], [sweep_of(1)], 1.0)
    data = xr.open_zarr(tmp_path / STORE, consolidated=False)
    np.testing.assert_array_equal(data["values"].sel(example=0, step=9), sweep_of(1).values)


def test_every_step_of_an_example_keeps_its_own_numbers(tmp_path):
    results = created(tmp_path)
    for e in range(3):
        for s in range(2):
            results.finish(e, [s], [sweep_of(10 * e + s)], 1.0)
    data = read(tmp_path)
    for e in range(3):
        for s in range(2):
            np.testing.assert_array_equal(data["raw"][e, s], sweep_of(10 * e + s).raw)


def test_a_store_is_created_once(tmp_path):
    created(tmp_path)
    SweepStore.resume(tmp_path)
    with pytest.raises(FileExistsError, match="already contains results"):
        created(tmp_path)


@pytest.mark.parametrize("name", ["raw", "effect", "clean_metric"])
def test_a_damaged_chunk_is_pending_again_and_costs_no_other_example(tmp_path, name):
    results = created(tmp_path)
    for e in range(2):
        for s in range(2):
            results.finish(e, [s], [sweep_of(e + s)], 1.0)
    chunk = chunk_of(tmp_path, name, 1)
    chunk.write_bytes(chunk.read_bytes()[:5])
    results = SweepStore.resume(tmp_path)
    assert results.state().tolist() == [[1, 1], [0, 0], [0, 0]]
    results.finish(1, [0], [sweep_of(7)], 1.0)
    np.testing.assert_array_equal(read(tmp_path)["raw"][1, 0], sweep_of(7).raw)


def test_finished_without_data_is_pending_again(tmp_path):
    results = created(tmp_path)
    results.finish(0, [0], [sweep_of(0)], 1.0)
    chunk_of(tmp_path, "raw", 0).unlink()  # as if the power had failed before the data reached the disk
    assert SweepStore.resume(tmp_path).state().tolist() == [[0, 0], [0, 0], [0, 0]]


def test_an_unfinished_creation_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(xr.Dataset, "to_zarr", fail)
    with pytest.raises(OSError, match="disk full"):
        created(tmp_path)
    assert not list(tmp_path.iterdir())
    assert stored_identity(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="holds no results"):
        read(tmp_path)


def test_the_mark_comes_after_the_data(tmp_path, monkeypatch):
    results = created(tmp_path)
    sweep = sweep_of(0)
    del sweep.noise_floor  # writing stops half-way
    with pytest.raises(AttributeError):
        results.finish(0, [0], [sweep], 1.0)
    assert (results.state() == SweepState.PENDING).all()


def test_ctrl_c_waits_for_a_write(interruptible):
    reached = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("end of the block")
    assert reached == ["end of the block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")
def test_killed_at_any_moment_what_is_marked_is_whole(tmp_path):
    """A process that writes as fast as it can, killed without warning, a few times over."""
    folder = tmp_path / "out"
    folder.mkdir()

    def writes(ready: Path) -> None:
        results = created(folder) if stored_identity(folder) is None else SweepStore.resume(folder)
        ready.touch()
        while True:
            for e in range(3):
                for s in range(2):
                    results.finish(e, [s], [sweep_of(10 * e + s)], 1.0)

    for i, wait in enumerate((0.004, 0.011, 0.023, 0.04, 0.07)):
        ready = tmp_path / f"ready{i}"
        pid = start(lambda ready=ready: writes(ready), tmp_path / "errors")
        give_up = time.monotonic() + 120
        while not ready.exists():
            assert ended(pid, 0.001) is None and time.monotonic() < give_up, (tmp_path / "errors").read_text()
        assert stopped(pid, wait, signal.SIGKILL) == -signal.SIGKILL
        data = read(folder)
        for e, s in np.argwhere(data["state"].values == SweepState.FINISHED):
            np.testing.assert_array_equal(data["raw"][e, s], sweep_of(10 * e + s).raw)
            np.testing.assert_array_equal(data["effect"][e, s], sweep_of(10 * e + s).effect)


# ---- damage ----------------------------------------------------------------------------------------------------------

DATA = ("raw", "values", "effect", "clean_metric", "corrupted_metric", "noise_floor", "seconds")


def filled(folder: Path) -> None:
    results = created(folder)
    for e in range(3):
        results.grade(e, [1, 0])
        results.finish(e, [0], [sweep_of(e)], 1.0)
        results.skip(e, 1)


def chunk_of(folder: Path, name: str, example: int) -> Path:
    (found,) = (folder / STORE / name).glob(f"c.{example}.*")
    return found


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
@pytest.mark.parametrize("name", DATA)
def test_damaged_data_is_never_read_and_done_again(tmp_path, name, damage):
    filled(tmp_path)
    chunk = chunk_of(tmp_path, name, 1)
    data = chunk.read_bytes()
    middle = len(data) // 2
    if damage == "gone":
        chunk.unlink()
    else:
        flipped = data[:middle] + bytes([data[middle] ^ 16]) + data[middle + 1 :]
        chunk.write_bytes({"cut": data[:middle], "empty": b"", "flipped": flipped}[damage])
    seen = read(tmp_path)
    assert seen["state"].values.tolist() == [[1, 2], [0, 2], [1, 2]] and seen.attrs["damaged"] == [1]
    assert np.isnan(seen[name][1]).all() and np.isfinite(seen[name][[0, 2], 0]).all()
    results = SweepStore.resume(tmp_path)
    assert results.state().tolist() == [[1, 2], [0, 2], [1, 2]] and results.graded().tolist() == [[1, 0]] * 3
    results.finish(1, [0], [sweep_of(1)], 1.0)
    again = read(tmp_path)
    np.testing.assert_array_equal(again["raw"][1, 0], sweep_of(1).raw)
    assert again.attrs["damaged"] == [] and (again["state"][:, 0] == SweepState.FINISHED).all()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_lost_grades_are_made_again_and_skip_nothing_for_good(tmp_path, damage):
    filled(tmp_path)
    chunk = chunk_of(tmp_path, "right", 1)
    chunk.unlink() if damage == "gone" else chunk.write_bytes(chunk.read_bytes()[:3])
    results = SweepStore.resume(tmp_path)
    assert results.graded().tolist() == [[1, 0], [-1, -1], [1, 0]]
    assert results.state().tolist() == [[1, 2], [1, 0], [1, 2]]


def test_a_lost_mark_is_pending(tmp_path):
    filled(tmp_path)
    chunk_of(tmp_path, "state", 2).unlink()
    assert read(tmp_path)["state"].values.tolist() == [[1, 2], [1, 2], [0, 0]]
    assert SweepStore.resume(tmp_path).state().tolist() == [[1, 2], [1, 2], [0, 0]]
    assert read(tmp_path).attrs["damaged"] == []


def test_data_is_on_the_disk_before_the_mark(tmp_path, monkeypatch):
    results = created(tmp_path)
    results.skip(1, 1)
    mark = chunk_of(tmp_path, "state", 1)
    before, synced, fsync = mark.read_bytes(), [], os.fsync

    def seen(descriptor):
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), mark.read_bytes() == before))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    results.finish(1, [0], [sweep_of(1)], 1.0)
    durable = {path for path, unmarked in synced if unmarked}
    assert {chunk_of(tmp_path, name, 1) for name in DATA} <= durable
    assert synced[-2] == (mark, False)


@pytest.mark.parametrize("kind", ["empty folder", "file", "link"])
def test_what_is_no_store_is_named(tmp_path, kind):
    path = tmp_path / STORE
    if kind == "file":
        path.write_text("")
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir()
    for function in (stored_identity, SweepStore.resume):
        with pytest.raises(ValueError, match=r"results.zarr is not a store.*Move it away, or give another folder"):
            function(tmp_path)


def test_steps_of_one_pass_are_kept_together(tmp_path, monkeypatch):
    """All of them or none: after a stop, what shared a pass is done again as it was."""
    results = created(tmp_path)
    honest = SweepStore._mark
    monkeypatch.setattr(SweepStore, "_mark", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.finish(0, [0, 1], [sweep_of(0), sweep_of(1)], 1.0)
    assert read(tmp_path)["state"].values.tolist() == [[0, 0]] * 3
    monkeypatch.setattr(SweepStore, "_mark", honest)
    results.finish(0, [0, 1], [sweep_of(0), sweep_of(1)], 1.0)
    assert read(tmp_path)["state"].values.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_a_new_store_has_the_same_few_files_for_any_number_of_examples(tmp_path):
    files = []
    for n in (1, 10_000):
        folder = tmp_path / str(n)
        folder.mkdir()
        axes = ResultAxes([str(i) for i in range(n)], [5, 9], ["induction"] * 2, n_layers=4, n_heads=3)
        SweepStore.create(folder, axes, identity=SETTINGS, about={})
        files.append(sum(path.is_file() for path in folder.rglob("*")))
    assert files[0] == files[1] < 40


def test_a_folder_of_format_2_is_read_and_continued(tmp_path):
    """As the version before wrote it: every chunk from the beginning, each index a folder."""
    (tmp_path / "new").mkdir()
    filled(tmp_path / "new")
    data = read(tmp_path / "new")
    old = data.assign_attrs(format=2)
    old.attrs.pop("damaged")
    chunks = {name: (1, *v.shape[1:]) for name, v in old.data_vars.items()}
    (tmp_path / "old").mkdir()
    save_arrays(old, tmp_path / "old" / STORE, chunks=chunks)
    assert (tmp_path / "old" / STORE / "raw/c/1/0/0/0").is_file()
    np.testing.assert_array_equal(read(tmp_path / "old")["raw"], data["raw"])
    damaged = tmp_path / "old" / STORE / "values/c/1/0/0/0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    results = SweepStore.resume(tmp_path / "old")
    assert results.state().tolist() == [[1, 2], [0, 2], [1, 2]]
    results.finish(1, [0], [sweep_of(1)], 1.0)
    np.testing.assert_array_equal(read(tmp_path / "old")["values"], data["values"])


@pytest.mark.parametrize("stored", [1, 4, "3"])
def test_another_format_is_refused_in_one_line(tmp_path, stored):
    save_arrays(xr.Dataset({"raw": ("example", [1.0])}, attrs={"format": stored, "identity": {}}), tmp_path / STORE)
    for function in (stored_identity, SweepStore.resume, read):
        with pytest.raises(ValueError, match=rf"has format {stored}; this version of pycotmech reads 2 and 3") as caught:
            function(tmp_path)
        assert "\n" not in str(caught.value)


def test_what_the_store_keeps_is_in_the_log(tmp_path):
    results = created(tmp_path)
    results.finish(0, [0, 1], [sweep_of(0), sweep_of(1)], 1.5)
    results.grade(1, [1, 0])
    results.skip(1, 1)
    results.fail(2, [0], "wrong: the metric is the same in both runs")
    SweepStore.resume(tmp_path)
    events = read_events(tmp_path).events
    assert [e["event"] for e in events] == ["start", "finished", "skipped", "failed", "resume"]
    assert (events[1]["example"], events[1]["steps"], events[1]["seconds"]) == (0, [0, 1], 1.5)
    assert events[3]["why"].startswith("wrong:") and {e["pid"] for e in events} == {os.getpid()}
    assert (events[4]["finished"], events[4]["skipped"], events[4]["pending"]) == (2, 1, 3)


def test_files_that_are_no_chunks_are_no_examples(tmp_path):
    results = created(tmp_path)
    results.finish(1, [0], [sweep_of(3)], 1.0)
    want = read(tmp_path)
    for name in ("c.3.0", "c.99.0", "c.01.0", "c.1.5", "c.\u00b2.0", f"c.{10**30}.0"):
        (tmp_path / STORE / "state" / name).write_bytes(b"x")
    xr.testing.assert_identical(read(tmp_path), want)
    assert SweepStore.resume(tmp_path).state().tolist() == want["state"].values.tolist()


def test_what_zarr_left_half_written_is_removed(tmp_path):
    results = created(tmp_path)
    results.finish(0, [0], [sweep_of(0)], 1.0)
    partial = tmp_path / STORE / "raw" / "c.0.0.0.0123abcd.partial"
    partial.write_bytes(b"torn")
    assert read(tmp_path)["state"].values.tolist() == [[1, 0], [0, 0], [0, 0]]
    SweepStore.resume(tmp_path)
    assert not partial.exists()
