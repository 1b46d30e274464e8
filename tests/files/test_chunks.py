"""Chunk files read one by one: the values that zarr reads, and nothing from a file that is not what was written."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
import zarr

from pycotmech.files.arrays import save_arrays
from pycotmech.files.chunks import PARTIAL, checksum_holds, chunk_file, read_rows, write_row

VALUES = {
    "half": np.random.default_rng(0).normal(size=(3, 4)).astype("f4"),
    "whole": np.arange(12, dtype="i1").reshape(3, 2, 2),
    "nothing": np.full((3, 4), np.nan),
}


@pytest.fixture
def store(tmp_path):
    data = xr.Dataset({name: ([f"{name}{i}" for i in range(v.ndim)], v) for name, v in VALUES.items()})
    save_arrays(data, tmp_path / "a.zarr", chunks={name: (1, *v.shape[1:]) for name, v in VALUES.items()})
    return tmp_path / "a.zarr"


def array(store, name) -> zarr.Array:
    return zarr.open_group(str(store), mode="r+")[name]  # type: ignore[return-value]


@pytest.mark.parametrize("name", VALUES)
def test_rows_are_those_of_zarr(store, name):
    np.testing.assert_array_equal(read_rows(store, array(store, name), [2, 0]), VALUES[name][[2, 0]])
    np.testing.assert_array_equal(read_rows(store, array(store, name), [1], lambda row: row[1:]), VALUES[name][[1], 1:])
    assert read_rows(store, array(store, name), []).shape == (0, *VALUES[name].shape[1:])


def test_what_is_written_through_zarr_is_read(store):
    array(store, "half")[1] = [1, 2, 3, 4]
    assert read_rows(store, array(store, "half"), [1]).tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_is_read_by_zarr(store, name):
    new = (VALUES[name][1] * 2 + 1).astype(VALUES[name].dtype)
    before = chunk_file(store, array(store, name), 0).read_bytes()
    write_row(store, array(store, name), 1, new)
    np.testing.assert_array_equal(array(store, name)[1], new)
    np.testing.assert_array_equal(read_rows(store, array(store, name), [0, 1]), [VALUES[name][0], new])
    write_row(store, array(store, name), 0, VALUES[name][0])
    assert chunk_file(store, array(store, name), 0).read_bytes() == before  # the bytes that zarr writes
    chunk_file(store, array(store, name), 1).unlink()
    write_row(store, array(store, name), 1, np.full_like(new, array(store, name).fill_value))
    assert checksum_holds(chunk_file(store, array(store, name), 1))  # also where nothing but fill values is in it
    assert not list(store.rglob(f"*{PARTIAL}"))


def test_what_does_not_fit_is_not_written(store):
    for wrong in (np.zeros(3, "f4"), np.zeros(4, "f8"), np.zeros((1, 4), "f4")):
        with pytest.raises(ValueError, match=r"values: got float(32|64).*expected float32"):
            write_row(store, array(store, "half"), 1, wrong)
    np.testing.assert_array_equal(array(store, "half")[:], VALUES["half"])


def test_a_full_disk_leaves_the_old_chunk_and_nothing_else(store, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_row(store, array(store, "half"), 1, np.zeros(4, "f4"))
    np.testing.assert_array_equal(array(store, "half")[:], VALUES["half"])
    assert not list(store.rglob(f"*{PARTIAL}"))


def test_a_chunk_that_is_not_there_is_the_fill_value(store):
    chunk_file(store, array(store, "half"), 1).unlink()
    found = array(store, "half")
    np.testing.assert_array_equal(read_rows(store, found, [1])[0], np.full(4, found.fill_value, "f4"))
    assert not checksum_holds(chunk_file(store, found, 1))


def test_every_changed_byte_is_seen(store):
    chunk = chunk_file(store, array(store, "half"), 0)
    data = chunk.read_bytes()
    assert checksum_holds(chunk)
    for at in range(len(data)):
        chunk.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not checksum_holds(chunk)
    for damaged in (b"", data[:3], data[:-1], data + b"\0"):
        chunk.write_bytes(damaged)
        with pytest.raises(ValueError, match="its checksum does not hold"):
            read_rows(store, array(store, "half"), [0])


def test_other_layouts_are_read_by_zarr(tmp_path):
    group = zarr.open_group(str(tmp_path), mode="w")
    big = group.create_array("big", shape=(4, 2), chunks=(2, 2), dtype="f8", fill_value=0)
    big[:] = np.arange(8).reshape(4, 2)
    np.testing.assert_array_equal(read_rows(tmp_path, big, [3, 1]), [[6, 7], [2, 3]])
