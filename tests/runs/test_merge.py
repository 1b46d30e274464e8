"""Parts of a run and their folders as one: equal to the whole run, or refused with the difference named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pycotmech.runs import Settings, SweepState, experiment, read
from pycotmech.runs.merge import merge
from pycotmech.runs.settings import Points
from pycotmech.runs.store import STORE, SweepStore
from pycotmech.runs.variables import VARIABLES

SETTINGS = Settings(model="tiny-cot", examples=4, shots=0, steps=(1, 5), threads=1, memory_gb=1.0)
NUMBERS = tuple(name for name in VARIABLES if name != "seconds")
"""All that two runs of the same have alike, controls among them."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folders of the whole run, and of parts of it."""
    folder = tmp_path_factory.mktemp("parts")
    experiment.run(SETTINGS, folder / "whole")
    for start, stop in ((0, 2), (1, 3), (2, 4), (0, 1), (3, 4)):
        experiment.run(SETTINGS, folder / f"{start}-{stop}", points=slice(start, stop))
    return folder


def copied(made: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(made / name, tmp_path / name))


def test_a_part_holds_the_examples_of_the_whole(made):
    whole, part = read(made / "whole"), read(made / "1-3")
    assert part.sizes["example"] == 2 and part["name"].values.tolist() == ["1", "2"]
    assert part.attrs["identity"]["points"] == [1, 3, 4] and "points" not in whole.attrs["identity"]
    for name in NUMBERS:
        np.testing.assert_array_equal(part[name], whole[name][1:3])
    lines = (made / "whole/examples.jsonl").read_text("utf-8").splitlines()
    assert (made / "1-3/examples.jsonl").read_text("utf-8").splitlines() == lines[1:3]


@pytest.mark.parametrize("names", [("0-2", "2-4"), ("2-4", "1-3", "0-2"), ("0-1", "1-3", "3-4")])
def test_parts_make_the_whole_and_its_command_goes_on_with_it(made, tmp_path, names):
    outcome = merge(tmp_path / "out", [made / name for name in names])
    whole, merged = read(made / "whole"), read(tmp_path / "out")
    assert outcome.points == (0, 4) and outcome.finished == (whole["state"] == SweepState.FINISHED).sum()
    assert (outcome.repeated > 0) == (len(names) == 3 and "0-2" in names) and outcome.pending == 0
    assert whole["control"].notnull().any() and merged["control"].attrs == whole["control"].attrs
    for name in NUMBERS:
        np.testing.assert_array_equal(merged[name], whole[name])
    assert merged["name"].values.tolist() == whole["name"].values.tolist()
    assert merged.attrs["identity"] == whole.attrs["identity"]
    assert (tmp_path / "out/examples.jsonl").read_bytes() == (made / "whole/examples.jsonl").read_bytes()
    parts = merged.attrs["about"]["parts"]
    assert [part["points"] for part in parts] == [[int(name[0]), int(name[2])] for name in names]
    assert [part["plan"] for part in parts] == [read(made / name).attrs["about"]["plan"] for name in names]
    assert {(part["plan"]["threads"], part["plan"]["memory_gb"], part["plan"]["engine"]) for part in parts} == {
        (1, 1.0, "serial")
    }
    again = experiment.run(SETTINGS, tmp_path / "out")
    assert again.done == 0 and again.resumed == outcome.finished


def test_a_merge_that_was_stopped_goes_on(made, tmp_path, monkeypatch):
    honest, put = SweepStore.put, []

    def stopped(self, example, rows):
        if example == 2:
            raise KeyboardInterrupt
        put.append(example)
        honest(self, example, rows)

    monkeypatch.setattr(SweepStore, "put", stopped)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "out", [made / "0-2", made / "2-4"])
    monkeypatch.setattr(SweepStore, "put", lambda self, example, rows: put.append(example) or honest(self, example, rows))
    merge(tmp_path / "out", [made / "0-2", made / "2-4"])
    assert put == [0, 1, 2, 3]
    np.testing.assert_array_equal(read(tmp_path / "out")["effect"], read(made / "whole")["effect"])


def test_parts_of_a_part_are_a_part(made, tmp_path):
    outcome = merge(tmp_path / "out", [made / "1-3", made / "2-4"])
    assert outcome.points == (1, 4) and read(tmp_path / "out").attrs["identity"]["points"] == [1, 4, 4]
    again = experiment.run(SETTINGS, tmp_path / "out", points=(1, 4))
    assert again.done == 0 and again.resumed == outcome.finished


def test_what_is_missing_or_given_twice_is_named(made, tmp_path):
    for parts, message in (
        ([], "parts: none given"),
        ([made / "0-2", made / "0-2"], "a folder is given twice"),
        ([made / "nothing"], "parts: there is no folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge(tmp_path / "out", parts)
    with pytest.raises(ValueError, match=r"out: .* is one of the parts"):
        merge(made / "0-2", [made / "0-2"])
    with pytest.raises(ValueError, match="parts: no part holds the examples 2:3; expected parts without a gap"):
        merge(tmp_path / "out", [made / "0-2", made / "3-4"])
    assert not (tmp_path / "out").exists()


def test_parts_of_different_runs_are_refused_with_the_difference(made, tmp_path):
    experiment.run(replace(SETTINGS, direction="noise"), tmp_path / "noise", points=(2, 4))
    with pytest.raises(ValueError, match="are of different runs: direction is denoise and noise"):
        merge(tmp_path / "out", [made / "0-2", tmp_path / "noise"])
    with pytest.raises(ValueError, match=r"out: .* contains results of other settings"):
        merge(tmp_path / "noise", [made / "0-2", made / "2-4"])


def test_overlapping_results_that_differ_beyond_rounding_are_refused(made, tmp_path):
    part = copied(made, tmp_path, "1-3")
    store, data = SweepStore.resume(part), read(part)
    row = {str(name): data[name].values[0].copy() for name in data.data_vars}
    step = int(np.flatnonzero(row["state"] == SweepState.FINISHED)[0])
    floor = row["noise_floor"][step]
    row["effect"][step, 0, 0] += 0.5 * floor
    store.put(0, row)
    assert merge(tmp_path / "out", [made / "0-2", part]).repeated > 0
    row["effect"][step, 0, 0] += 10 * floor
    store.put(0, row)
    with pytest.raises(ValueError, match=r"differ in example 1, step \d: an effect by .*, with a noise floor of"):
        merge(tmp_path / "other", [made / "0-2", part])


def test_examples_that_are_not_those_of_the_results_are_refused(made, tmp_path):
    part = copied(made, tmp_path, "2-4")
    lines = (part / "examples.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    first["steps"][0]["answer"] += 1
    for text in ("\n".join([json.dumps(first), *lines[1:]]), lines[0], "{"):
        (part / "examples.jsonl").write_text(text, "utf-8")
        with pytest.raises(ValueError, match="does not hold the examples of these results; remove it and run the command"):
            merge(tmp_path / "out", [made / "0-2", part])
    (part / "examples.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no examples.jsonl"):
        merge(tmp_path / "out", [made / "0-2", part])
    assert (part / STORE).is_dir() and not (tmp_path / "out").exists()


def test_a_part_that_is_not_finished_leaves_its_sweeps_pending(made, tmp_path):
    part = copied(made, tmp_path, "2-4")
    store = SweepStore.resume(part)
    data = read(part)
    row = {str(name): data[name].values[1].copy() for name in data.data_vars}
    row["state"][:] = SweepState.PENDING
    store.put(1, row)
    outcome = merge(tmp_path / "out", [made / "0-2", part])
    assert outcome.pending == 2
    assert experiment.run(SETTINGS, tmp_path / "out").done == (read(made / "whole")["state"][3] == SweepState.FINISHED).sum()
    np.testing.assert_array_equal(read(tmp_path / "out")["effect"], read(made / "whole")["effect"])


def test_points_of_pairs(tmp_path):
    lines = [{"clean": [1, 5, 3, 4 + i], "corrupted": [1, 6, 3, 4 + i]} for i in range(5)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = Settings(model="tiny-cot", pairs=pairs, threads=1)
    experiment.run(settings, tmp_path / "whole")
    experiment.run(settings, tmp_path / "a", points=slice(None, 3))
    experiment.run(settings, tmp_path / "b", points=slice(3, None))
    merge(tmp_path / "out", [tmp_path / "b", tmp_path / "a"])
    one, two = read(tmp_path / "whole"), read(tmp_path / "out")
    np.testing.assert_array_equal(one["effect"], two["effect"])
    assert one.attrs["identity"] == two.attrs["identity"] and two["name"].values.tolist() == [f"line {i}" for i in range(1, 6)]


@pytest.mark.parametrize("points", [(4, 2), (0, 5), (2, 2), (-1, 2)])
def test_points_that_are_no_part_are_refused(tmp_path, points):
    with pytest.raises(ValueError, match=r"points: got .*; expected START:STOP with 0 <= START < STOP <= 4"):
        experiment.run(SETTINGS, tmp_path / "out", points=points)
    with pytest.raises(ValueError, match=r"points: got .*; expected a slice without a step"):
        experiment.run(SETTINGS, tmp_path / "out", points=slice(0, 4, 2))
    assert not (tmp_path / "out").exists()


def test_all_points_are_the_whole():
    assert replace(SETTINGS, points=Points(0, 4)).with_points_of(4) == SETTINGS
    assert replace(SETTINGS, points=Points(1)).with_points_of(4).points == Points(1, 4, 4)
    assert str(Points(1)) == "1:" and str(Points(1, 4, 9)) == "1:4"
