"""Results of sweeps over examples and steps, on disk as soon as each is finished.

A results folder holds `results.zarr` with labelled axes (example, step, layer, head); `xarray.open_zarr` reads it. One
example's steps are one chunk. A chunk file is replaced as a whole and carries a checksum, and the mark "finished" is written
after the data is on the disk: a process that dies, or a machine that loses power, leaves every finished sweep readable and
nothing half-written that looks finished. What is damaged later counts as not done.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from pycotmech.files.arrays import DamagedData, open_group, save_arrays
from pycotmech.files.text import printable
from pycotmech.files.write import sync
from pycotmech.runs.progress import uninterrupted

if TYPE_CHECKING:
    from pycotmech.patching import Sweep

FORMAT = 2
_WITHOUT_CHECKSUMS = 1
"""The format of earlier versions, which is still read and continued."""
STORE = "results.zarr"

_CELL = ("example", "step")
_GRID = (*_CELL, "layer", "head")
_GRIDS = {
    "raw": ("f8", np.nan, "the metric of the run with this head patched"),
    "values": ("f4", np.nan, "raw on the scale corrupted 0, clean 1"),
    "effect": ("f4", np.nan, "distance from the base run on that scale, against the mean of the self-patches"),
    "control": ("f4", np.nan, "effect with activations of another example; NaN where it was not measured"),
}
_SCALARS = {
    "clean_metric": ("f8", np.nan, "the metric of the clean run"),
    "corrupted_metric": ("f8", np.nan, "the metric of the corrupted run"),
    "noise_floor": ("f8", np.nan, "what rounding may change in an effect"),
    "sham": ("f8", np.nan, "largest |effect| of a patch before the first difference; NaN where it was not measured"),
    "seconds": ("f8", np.nan, "wall time of the sweep"),
    "right": ("i1", -1, "1 if the model gets the step right, 0 if not, -1 if not graded"),
    "state": ("i1", 0, "0 pending, 1 finished, 2 skipped since the model gets the step wrong"),
}
_VARIABLES = _GRIDS | _SCALARS
_OPTIONAL = ("control", "sham")
"""What folders of earlier versions lack, and what may be NaN in a finished sweep."""
_DATA = tuple(name for name in _VARIABLES if name not in ("right", "state"))


class SweepState(IntEnum):
    """The state of one sweep (an example at a step)."""

    PENDING = 0
    FINISHED = 1
    SKIPPED = 2


@dataclass(frozen=True)
class ResultAxes:
    """The axes of a results folder. examples: names. steps: numbers; kinds: a word for each step."""

    examples: Sequence[str]
    steps: Sequence[int]
    kinds: Sequence[str]
    n_layers: int
    n_heads: int


class SweepStore:
    """The results of a folder that is being written. The caller holds the folder's lock (`open_folder`)."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STORE
        self._arrays = _arrays(self._path, "r+")

    @classmethod
    def create(cls, folder: Path, axes: ResultAxes, *, identity: Mapping[str, Any], about: Mapping[str, Any]) -> SweepStore:
        """Makes a new store with everything pending.

        identity: what a later run must agree with to go on here (JSON values). about: what else a reader should know.
        Raises FileExistsError where there is one already.
        """
        if (folder / STORE).exists():
            raise FileExistsError(f"out: {folder} holds results already")
        chunk = (1, len(axes.steps), axes.n_layers, axes.n_heads)
        chunks = {name: chunk if name in _GRIDS else chunk[:2] for name in _VARIABLES}
        save_arrays(_layout(axes, identity, about), folder / STORE, chunks=chunks)
        return cls(folder)

    @classmethod
    def resume(cls, folder: Path) -> SweepStore:
        """Opens the store of an earlier run. Sweeps whose data is damaged or missing are pending again."""
        store = cls(folder)
        data, repaired = _intact(store._path, store._arrays)
        for name, examples in repaired.items():
            for example in examples:
                store._write(name, example, data[name][example])
        return store

    def state(self) -> np.ndarray:
        """[examples, steps] of `SweepState`."""
        return np.asarray(self._arrays["state"][:])

    def graded(self) -> np.ndarray:
        """[examples, steps]: 1 right, 0 wrong, -1 not graded."""
        return np.asarray(self._arrays["right"][:])

    def grade(self, example: int, right: Sequence[int]) -> None:
        """Keeps which steps of an example are right."""
        with uninterrupted():
            self._write("right", example, np.asarray(right, dtype=np.int8))

    def skip(self, example: int, step: int) -> None:
        """Marks a sweep as skipped. step: its index on the axis, as in `finish`."""
        with uninterrupted():
            self._mark(example, [step], SweepState.SKIPPED)

    def finish(self, example: int, steps: Sequence[int], sweeps: Sequence[Sweep], seconds: float) -> None:
        """Keeps the sweeps of some steps of an example, all or none of them. steps: their indices on the axis."""
        found: dict[str, list[Any]] = {
            name: [getattr(sweep, name) for sweep in sweeps] for name in (*_GRIDS, "noise_floor", "sham")
        }
        for name in ("clean_metric", "corrupted_metric"):
            found[name] = [float(getattr(sweep, name)[0]) for sweep in sweeps]
        found["seconds"] = [seconds] * len(sweeps)
        with uninterrupted():
            for name in (name for name in _DATA if name in self._arrays):
                row = np.asarray(self._arrays[name][example])
                row[list(steps)] = found[name]
                self._write(name, example, row)
            self._mark(example, steps, SweepState.FINISHED)

    def _mark(self, example: int, steps: Sequence[int], state: SweepState) -> None:
        row = np.asarray(self._arrays["state"][example])
        row[list(steps)] = int(state)
        self._write("state", example, row)

    def _write(self, name: str, example: int, row: np.ndarray) -> None:
        """Replaces one example's chunk and waits until it is on the disk."""
        self._arrays[name][example] = row
        chunk = _chunk_file(self._path, self._arrays[name], example)
        sync(chunk)
        sync(chunk.parent)


def read(folder: str | os.PathLike) -> xr.Dataset:
    """Reads all results of a folder, finished or not, into memory; NaN where a sweep is pending.

    A damaged chunk is never read as a value: its example counts as pending, and its number is in the attribute "damaged".
    Raises FileNotFoundError where there are no results, ValueError where they cannot be read.
    """
    path = Path(folder) / STORE
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no results (there is no {STORE} in it)")
    arrays = _arrays(path, "r")
    data, repaired = _intact(path, arrays)
    group = open_group(path)
    for name in _OPTIONAL:
        if name not in data:
            data[name] = np.full(data["raw" if name in _GRIDS else "noise_floor"].shape, np.nan, _VARIABLES[name][0])
    variables = {name: (_GRID if name in _GRIDS else _CELL, data[name], {"description": _VARIABLES[name][2]}) for name in data}
    try:
        coords: dict[str, Any] = {name: np.asarray(group[name][:]) for name in _GRID}  # type: ignore[index]
        for name, axis in (("name", "example"), ("kind", "step")):
            coords[name] = (axis, np.array(group[name][:].tolist(), dtype=str))  # type: ignore[index]
        attributes = {name: group.attrs[name] for name in ("format", "identity", "about")}
        damaged = sorted({example for name, rows in repaired.items() if name != "state" for example in rows})
        return xr.Dataset(variables, coords, {**attributes, "damaged": damaged})
    except Exception as error:  # whatever a codec makes of damaged bytes
        raise DamagedData(f"{path}: the axes cannot be read ({printable(error)})") from error


def stored_identity(folder: Path) -> dict[str, Any] | None:
    """What the results in this folder were made with; None where there are none."""
    path = folder / STORE
    if not path.exists() and not path.is_symlink():
        return None
    _arrays(path, "r")
    return dict(open_group(path).attrs["identity"])  # type: ignore[arg-type]


def _arrays(path: Path, mode: str) -> dict[str, zarr.Array]:
    """The arrays of a store. Raises ValueError naming the path where it is none of ours."""
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = open_group(path, mode)
            if group.attrs.get("format") not in (FORMAT, _WITHOUT_CHECKSUMS):
                raise ValueError(f"{path} has format {printable(group.attrs.get('format'))}; this version reads up to {FORMAT}")
            if not isinstance(group.attrs.get("identity"), dict):
                raise DamagedData(f"{path} does not say of which settings its results are")
            arrays = {name: array for name, array in group.arrays() if name in _VARIABLES}
    except ValueError as error:
        raise ValueError(f"{error}. Move it away, or give another folder") from error
    axes = arrays["raw"].shape if "raw" in arrays else ()
    present = [name for name in _VARIABLES if name in arrays or name not in _OPTIONAL]
    for name in present:
        if name not in arrays or arrays[name].shape != axes[: 4 if name in _GRIDS else 2]:
            raise DamagedData(f"{path} lacks the array {name}, or it has another shape. Move it away, or give another folder")
    return {name: arrays[name] for name in present}


def _intact(path: Path, arrays: Mapping[str, zarr.Array]) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """All variables with only what can be relied on, and which examples of which variable differ from what is stored."""
    data: dict[str, np.ndarray] = {}
    repaired: dict[str, list[int]] = {}
    for name, array in arrays.items():
        lost = list(_unreadable(path, array))
        if lost:
            repaired[name] = lost
            data[name] = np.full(array.shape, _VARIABLES[name][1], array.dtype)
            for example in set(range(array.shape[0])).difference(lost):
                data[name][example] = array[example]
        else:
            data[name] = np.asarray(array[:])
    stored = data["state"].copy()
    finished = stored == SweepState.FINISHED
    for name in ("clean_metric", "corrupted_metric", "noise_floor"):
        finished &= np.isfinite(data[name])
    for name in (name for name in _GRIDS if name not in _OPTIONAL):
        finished &= ~np.isnan(data[name]).all((2, 3))
    for name in _DATA:
        finished[repaired.get(name, [])] = False
    skipped = (stored == SweepState.SKIPPED) & (data["right"] == 0)
    data["state"] = np.where(finished | skipped, stored, int(SweepState.PENDING)).astype(stored.dtype)
    changed = np.flatnonzero((data["state"] != stored).any(1)).tolist()
    if rows := sorted({*changed, *repaired.get("state", [])}):
        repaired["state"] = rows
    return data, repaired


def _unreadable(path: Path, array: zarr.Array) -> Iterator[int]:
    """The examples whose chunk is missing or cannot be read. Stores without checksums leave chunks of fill values out."""

    def reads(selection: Any) -> bool:
        try:
            array[selection]
        except Exception:  # whatever a codec makes of damaged bytes
            return False
        return True

    complete, readable = array.metadata.zarr_format == 3, reads(slice(None))
    for example in range(array.shape[0]):
        missing = complete and not _chunk_file(path, array, example).is_file()
        if missing or not (readable or reads(example)):
            yield example


def _chunk_file(path: Path, array: zarr.Array, example: int) -> Path:
    return path / array.basename / array.metadata.encode_chunk_key((example,) + (0,) * (array.ndim - 1))  # type: ignore[operator]


def _layout(axes: ResultAxes, identity: Mapping[str, Any], about: Mapping[str, Any]) -> xr.Dataset:
    shape = (len(axes.examples), len(axes.steps), axes.n_layers, axes.n_heads)
    variables: dict[str, Any] = {}
    for name, (dtype, fill, text) in _VARIABLES.items():
        dims = _GRID if name in _GRIDS else _CELL
        variables[name] = (dims, np.full(shape[: len(dims)], fill, dtype), {"description": text})
    coords = {
        "example": np.arange(shape[0]),
        "step": np.asarray(axes.steps, dtype=np.int64),
        "layer": np.arange(axes.n_layers),
        "head": np.arange(axes.n_heads),
        "name": ("example", np.array(list(axes.examples), dtype=str)),
        "kind": ("step", np.array(list(axes.kinds), dtype=str)),
    }
    return xr.Dataset(variables, coords, {"format": FORMAT, "identity": dict(identity), "about": dict(about)})
