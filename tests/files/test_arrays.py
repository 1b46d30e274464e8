"""Stores of labelled arrays: what comes back, what damage is called, what a stranger's store may not name."""

from __future__ import annotations

import json

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

from pycotmech.files.arrays import DamagedData, check_store, load_arrays, open_arrays, save_arrays

DATA = xr.Dataset(
    {
        "effect": (("example", "head"), np.linspace(-1, 1, 12).reshape(3, 4)),
        "kind": ("example", np.array(["copying", "decision", "naïve"])),
        "right": ("example", np.array([1, 0, -1], dtype="i1")),
        "counts": ("example", np.array([True, False, True])),
        "total": ((), 3.5),
        "nothing": ("none", np.zeros(0)),
    },
    {"example": [0, 1, 2]},
    {"about": "{}"},
)
OTHER = DATA.assign(effect=DATA["effect"] * 2)


@pytest.fixture
def store(tmp_path):
    save_arrays(DATA, tmp_path / "a.zarr", chunks={"effect": (1, 4)})
    return tmp_path / "a.zarr"


def test_what_is_saved_comes_back(store):
    assert load_arrays(store).identical(DATA)
    save_arrays(OTHER, store)
    assert load_arrays(store).identical(OTHER)
    assert [p.name for p in store.parent.iterdir()] == ["a.zarr"]


def chunks(store):
    return [path for path in sorted(store.rglob("*")) if path.is_file() and path.name != "zarr.json"]


@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "flipped"])
def test_damage_to_any_chunk_is_found(store, damage):
    for chunk in chunks(store):
        whole = chunk.read_bytes()
        places = range(len(whole)) if damage == "flipped" else (0,)
        for at in places:
            if damage == "gone":
                chunk.unlink()
            else:
                flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
                chunk.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "flipped": flipped}[damage])
            with pytest.raises(DamagedData, match=r"cannot be read|lacks"):
                load_arrays(store)
        chunk.write_bytes(whole)
    assert load_arrays(store).identical(DATA)


def test_damaged_metadata_is_found(store):
    for name in ("zarr.json", "effect/zarr.json"):
        whole = (store / name).read_bytes()
        for damaged in (b"", whole[: len(whole) // 2], b"[" * 100_000):
            (store / name).write_bytes(damaged)
            with pytest.raises(DamagedData):
                load_arrays(store)
        (store / name).write_bytes(whole)
    for other in (store.parent, store / "missing"):
        with pytest.raises(DamagedData, match="holds no zarr group"):
            check_store(other)


def test_a_flipped_bit_in_any_metadata_is_found(store):
    """Or changes nothing: what is loaded is what was saved."""
    refused = 0
    for name in ("zarr.json", *(f"{variable}/zarr.json" for variable in DATA.variables)):
        whole = (store / name).read_bytes()
        for at in range(len(whole)):
            (store / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            try:
                assert load_arrays(store).identical(DATA), (name, at)
            except ValueError as error:
                refused += 1
                assert str(store) in str(error)
        (store / name).write_bytes(whole)
    assert refused > 1000
    assert load_arrays(store).identical(DATA)


def test_arrays_larger_than_memory_are_refused_before_room_is_made(store):
    file = store / "effect" / "zarr.json"
    found = json.loads(file.read_text())
    found["shape"] = [10**9, 10**6, *found["shape"][2:]]
    found["chunk_grid"]["configuration"]["chunk_shape"] = found["shape"]
    file.write_text(json.dumps(found))
    group = json.loads((store / "zarr.json").read_text())
    group["attributes"] = {}
    (store / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(DamagedData, match=r"declares [\d,]+ GiB of arrays; this machine has"):
        load_arrays(store)


class Stranger(numcodecs.abc.Codec):
    """A filter that runs code of its own when it is asked to decode."""

    codec_id = "stranger"
    ran = False

    def encode(self, buf):
        return buf

    def decode(self, buf, out=None):
        Stranger.ran = True
        return buf


@pytest.mark.parametrize("field", ["filters", "compressor"])
def test_a_codec_that_is_none_of_ours_is_refused_before_it_runs(tmp_path, field):
    numcodecs.register_codec(Stranger)
    Stranger.ran = False
    DATA[["effect"]].drop_attrs().to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=False)
    metadata = json.loads((tmp_path / "a.zarr/effect/.zarray").read_text())
    metadata[field] = [{"id": "stranger"}] if field == "filters" else {"id": "stranger"}
    (tmp_path / "a.zarr/effect/.zarray").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="names the codec stranger"):
        load_arrays(tmp_path / "a.zarr")
    assert not Stranger.ran
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")  # what would have happened
    if field == "filters":
        group["effect"][:]
        assert Stranger.ran


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("codecs", [{"name": "numcodecs.pickle"}], "the codec numcodecs.pickle"),
        ("codecs", ["pickle\x1b[2J"], r"the codec pickle\\x1b"),
        ("storage_transformers", [{"name": "evil"}], "the codec evil"),
        ("data_type", {"name": "numpy.object"}, "the type numpy.object"),
        ("data_type", "object", "the type object"),
    ],
)
def test_metadata_that_name_anything_else_are_refused(store, field, value, message):
    path = store / "effect" / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message):
        load_arrays(store)


def test_links_inside_a_store_are_refused(store, tmp_path):
    (tmp_path / "outside").mkdir()
    (store / "more").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="more is a symbolic link"):
        load_arrays(store)


def test_a_link_in_the_place_of_a_store_is_replaced(store, tmp_path):
    link = tmp_path / "b.zarr"
    link.symlink_to(store)
    save_arrays(OTHER, link)
    assert not link.is_symlink() and load_arrays(store).identical(DATA) and load_arrays(link).identical(OTHER)


@pytest.mark.parametrize(("read", "reads"), [(load_arrays, "load_dataset"), (open_arrays, "open_dataset")])
def test_variables_are_in_the_same_order_however_zarr_lists_them(tmp_path, monkeypatch, read, reads):
    labels = {"y": ("x", [1, 2]), "x": [5, 9], "u": [1]}
    save_arrays(xr.Dataset({"b": ("x", [1.0, 2.0]), "a": ("x", ["s", "t"])}, labels, {"k": 1}), tmp_path / "d.zarr")
    whole = getattr(xr, reads)

    def turned(*arguments, **options):
        found = whole(*arguments, **options)
        variables = dict(reversed(list(found.variables.items())))
        return xr.Dataset(variables, attrs=found.attrs).set_coords(list(found.coords))

    first = read(tmp_path / "d.zarr")
    monkeypatch.setattr(xr, reads, turned)
    second = read(tmp_path / "d.zarr")
    assert list(first.data_vars) == list(second.data_vars) == ["a", "b"] and list(second.coords) == ["u", "x", "y"]
    xr.testing.assert_identical(first, second)
    assert first.attrs == {"k": 1} and first["b"].sel(x=9) == 2.0
