"""Results that are read on demand: the same values as all at once, and no value from a chunk that is damaged or lost."""

from __future__ import annotations

import numpy as np
import pytest

from pycotmech.files.arrays import DamagedData
from pycotmech.runs import ResultAxes, SweepStore, read
from pycotmech.runs.lazy import open_sweeps
from pycotmech.runs.store import STORE
from tests.runs.synthetic import sweep_of

AXES = ResultAxes(["0", "1", "2", "3"], [5, 9], ["induction", "induction"], n_layers=4, n_heads=3)


@pytest.fixture
def folder(tmp_path):
    store = SweepStore.create(tmp_path, AXES, identity={"model": "m"}, about={})
    for e in (0, 2, 3):
        store.grade(e, [1, 1])
        store.finish(e, [0, 1], [sweep_of(2 * e), sweep_of(2 * e + 1)], 1.0)
    return tmp_path


def test_values_and_labels_are_those_of_read(folder):
    lazy, whole = open_sweeps(folder), read(folder)
    assert lazy.attrs == {k: v for k, v in whole.attrs.items() if k != "damaged"}
    for name in whole.variables:
        np.testing.assert_array_equal(lazy[name].values, whole[name].values)
        assert lazy[name].dims == whole[name].dims and lazy[name].attrs == whole[name].attrs


@pytest.mark.parametrize(
    "index",
    [
        {"example": 2}, {"example": slice(1, 3)}, {"example": [3, 0], "head": [2, 0]}, {"example": slice(None, None, -1)},
        {"step": 1, "layer": slice(0, 4, 2)}, {"example": np.array([True, False, True, False])},
    ],
)  # fmt: skip
def test_any_part_can_be_read(folder, index):
    np.testing.assert_array_equal(open_sweeps(folder)["raw"].isel(index).values, read(folder)["raw"].isel(index).values)


def test_only_what_is_used_is_read(folder):
    for path in (folder / STORE / "values").glob("c.*"):
        path.write_bytes(b"")
    lazy = open_sweeps(folder)
    np.testing.assert_array_equal(lazy["raw"].sel(example=0, step=5).values, sweep_of(0).raw)
    with pytest.raises(DamagedData, match="the stored values of example 0, 2, 3 is damaged"):
        lazy["values"].load()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damage_is_named_and_other_examples_can_be_read(folder, damage):
    (chunk,) = (folder / STORE / "effect").glob("c.2.*")
    data = chunk.read_bytes()
    if damage == "gone":
        chunk.unlink()
    else:
        middle = len(data) // 2
        chunk.write_bytes(data[:middle] if damage == "cut" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    effect = open_sweeps(folder)["effect"]
    with pytest.raises(DamagedData, match=r"the stored effect of example 2 is damaged .*pycotmech.runs.read leaves it out"):
        effect.load()
    np.testing.assert_array_equal(effect[3, 1].values, sweep_of(7).effect)
    assert read(folder).attrs["damaged"] == [2]


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        open_sweeps(tmp_path)
