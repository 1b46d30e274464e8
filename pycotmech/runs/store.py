"""Results of sweeps over examples and steps, on disk as soon as each is finished.

A results folder holds `results.zarr` with labelled axes (example, step, layer, head); `xarray.open_zarr` reads it. One
example's steps are one chunk, which is written when the first of them is finished. A chunk file is replaced as a whole and
carries a checksum, and the mark "finished" is written after the data is on the disk: a process that dies, or a machine that
loses power, leaves every finished sweep readable and nothing half-written that looks finished. What is damaged later counts as
not done. `pycotmech.runs.variables` says what is stored of a sweep.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

from pycotmech.files.arrays import DamagedData, EmptyArray, open_group, save_arrays
from pycotmech.files.chunks import PARTIAL, checksum_holds, chunk_file, read_rows, write_row
from pycotmech.files.text import printable
from pycotmech.files.write import sync
from pycotmech.runs.events import EventLog
from pycotmech.runs.progress import uninterrupted
from pycotmech.runs.variables import AXES, VARIABLES

if TYPE_CHECKING:
    from pycotmech.patching import Sweep

FORMAT = 3
_READ = (2, FORMAT)
"""Formats that are read and continued. In 2 every chunk is written at the beginning, in folders of their own."""
STORE = "results.zarr"


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
    """The results of a folder that is being written. The caller holds the folder's lock (`open_folder`).

    events: the folder's log. What the store keeps, it records there.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / STORE
        self._arrays = open_store(self._path, "r+")
        self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})
        """The example that was written last, and its rows: its further steps need not read them again."""
        self.events = EventLog(folder)

    @classmethod
    def create(cls, folder: Path, axes: ResultAxes, *, identity: Mapping[str, Any], about: Mapping[str, Any]) -> SweepStore:
        """Makes a new store with everything pending.

        identity: what a later run must agree with to go on here (JSON values). about: what else a reader should know.
        Raises FileExistsError where there is one already. Cost: the same for any number of examples.
        """
        if (folder / STORE).exists():
            raise FileExistsError(f"out: {folder} already contains results")
        save_arrays(_labels(axes, identity, about), folder / STORE, empty=_layout(axes))
        store = cls(folder)
        store._begin("start", store.state(), about.get("versions"))
        return store

    @classmethod
    def resume(cls, folder: Path) -> SweepStore:
        """Opens the store of an earlier run. Sweeps whose data is damaged or missing are pending again.

        Cost: every chunk file is read once and its checksum computed; memory stays that of one chunk.
        """
        store = cls(folder)
        for leftover in (path for name in store._arrays for path in (store._path / name).rglob(f"*{PARTIAL}")):
            leftover.unlink(missing_ok=True)
        found = _inspect(store._path, store._arrays)
        for example in found.changed:  # first of all: what is not marked as finished may be incomplete
            store._write("state", example, found.state[example])
        for name, examples in found.unreadable.items():
            for example in examples:
                if name != "state" or example not in found.changed:
                    chunk = chunk_file(store._path, store._arrays[name], example)
                    chunk.unlink(missing_ok=True)
                    sync(chunk.parent)
        store._begin("resume", found.state, None, damaged=found.damaged)
        return store

    def state(self) -> np.ndarray:
        """[examples, steps] of `SweepState`."""
        return read_all(self._path, self._arrays["state"])

    def graded(self) -> np.ndarray:
        """[examples, steps]: 1 right, 0 wrong, -1 not graded."""
        return read_all(self._path, self._arrays["right"])

    def grade(self, example: int, right: Sequence[int]) -> None:
        """Keeps which steps of an example are right."""
        with uninterrupted():
            self._write("right", example, np.asarray(right, dtype=np.int8))

    def skip(self, example: int, step: int) -> None:
        """Marks a sweep as skipped. step: its index on the axis, as in `finish`."""
        with uninterrupted():
            self._mark(example, [step], SweepState.SKIPPED)
            self.events.write("skipped", example=example, steps=[step])

    def finish(self, example: int, steps: Sequence[int], sweeps: Sequence[Sweep], seconds: float) -> None:
        """Keeps the sweeps of some steps of an example, all or none of them. steps: their indices on the axis.

        seconds: of each of them. When it returns, they are on the disk.
        """
        at = list(steps)
        found: dict[str, list[Any]] = {}
        for name in self._arrays:
            of = VARIABLES[name].of
            if of is not None:
                found[name] = [of(sweep) for sweep in sweeps]
        found["seconds"] = [seconds] * len(sweeps)
        with uninterrupted():
            for name, values in found.items():
                row = self._row(name, example)
                for step, value in zip(at, values, strict=True):
                    if value is not None:
                        row[step] = value
                self._put(name, example, row)
            self._settle(found, example)
            self._mark(example, at, SweepState.FINISHED)
            self.events.write("finished", example=example, steps=[int(s) for s in at], seconds=round(seconds, 6))

    def put(self, example: int, rows: Mapping[str, np.ndarray]) -> None:
        """Keeps an example as another store holds it. rows: what `read` gives of it, by variable."""
        finished = np.flatnonzero(rows["state"] == SweepState.FINISHED).tolist()
        names = [name for name in self._arrays if name in rows and name != "state"] if finished else ["right"]
        with uninterrupted():
            for name in names:
                self._put(name, example, rows[name])
            self._settle(names, example)
            self._write("state", example, rows["state"])
            if finished:
                self.events.write("finished", example=example, steps=finished, seconds=float(np.nanmean(rows["seconds"])))

    def fail(self, example: int, steps: Sequence[int], why: str) -> None:
        """Records that sweeps could not be done. They stay pending, and a later run tries them again."""
        self.events.write("failed", example=example, steps=[int(s) for s in steps], why=why)

    def _begin(self, event: str, state: np.ndarray, versions: Any, **more: Any) -> None:
        numbers = {kind.name.lower(): int((state == kind).sum()) for kind in SweepState}
        self.events.begin(event, "run", **({"versions": versions} if versions else {}), **numbers, **more)

    def _mark(self, example: int, steps: Sequence[int], state: SweepState) -> None:
        row = self._row("state", example)
        row[list(steps)] = int(state)
        self._write("state", example, row)

    def _row(self, name: str, example: int) -> np.ndarray:
        """What is stored of an example, or the fill value where nothing is."""
        if self._last[0] == example and name in self._last[1]:
            return self._last[1][name].copy()
        array = self._arrays[name]
        if chunk_file(self._path, array, example).is_file():
            return read_rows(self._path, array, [example])[0]
        return np.full(array.shape[1:], array.fill_value, array.dtype)

    def _write(self, name: str, example: int, row: np.ndarray) -> None:
        """Replaces one example's chunk and waits until it is on the disk."""
        self._put(name, example, row)
        self._settle([name], example)

    def _put(self, name: str, example: int, row: np.ndarray) -> None:
        """Replaces one example's chunk, on the disk some time later."""
        row = np.asarray(row, self._arrays[name].dtype)
        write_row(self._path, self._arrays[name], example, row)
        if self._last[0] != example:
            self._last = (example, {})
        self._last[1][name] = row

    def _settle(self, names: Iterable[str], example: int) -> None:
        """Waits until an example's chunks, and their names, are on the disk. Together they wait for it once, not one by one."""
        chunks = [chunk_file(self._path, self._arrays[name], example) for name in names]
        if len(chunks) == 1:
            sync(chunks[0])
            sync(chunks[0].parent)
            return
        with ThreadPoolExecutor(len(chunks)) as threads:
            list(threads.map(sync, chunks))
            list(threads.map(sync, {chunk.parent for chunk in chunks}))


def read(folder: str | os.PathLike) -> xr.Dataset:
    """Reads all results of a folder, finished or not, into memory; NaN where a sweep is pending.

    A damaged chunk is never read as a value: its example counts as pending, and its number is in the attribute "damaged".
    Raises FileNotFoundError where there are no results, ValueError where they cannot be read. `pcm.open_results` reads on
    demand.
    """
    path = existing_store(Path(folder))
    arrays = open_store(path, "r")
    found = _inspect(path, arrays)
    data = {name: read_all(path, array, found.unreadable.get(name, [])) for name, array in arrays.items()}
    data["state"], data["right"] = found.state, found.right
    return labelled(path, data, found.damaged)


def labelled(path: Path, data: Mapping[str, Any], damaged: Sequence[int] | None = None) -> xr.Dataset:
    """Puts labels, attributes and the fill of variables that the store lacks to the variables of a store.

    damaged: for the attribute of that name, if known.
    """
    group = zarr.open_group(str(path), mode="r")  # which `open_store` has checked
    variables = {}
    for name, about in VARIABLES.items():
        shape = tuple(group[axis].shape[0] for axis in about.axes)  # type: ignore[union-attr]
        found = data.get(name, np.broadcast_to(np.array(about.fill, about.dtype), shape))  # of one number, whatever the size
        variables[name] = (about.axes, found, {"description": about.text})
    try:
        coords: dict[str, Any] = {name: np.asarray(group[name][:]) for name in AXES}  # type: ignore[index]
        for name, axis in (("name", "example"), ("kind", "step")):
            coords[name] = (axis, np.array(group[name][:].tolist(), dtype=str))  # type: ignore[index]
        attributes = {name: group.attrs[name] for name in ("format", "identity", "about")}
        if damaged is not None:
            attributes["damaged"] = list(damaged)
        return xr.Dataset(variables, coords, attributes)
    except Exception as error:  # whatever a codec makes of damaged bytes
        raise DamagedData(f"{path}: the axes cannot be read ({printable(error)})") from error


def existing_store(folder: Path) -> Path:
    """Returns the path of a folder's store. Raises FileNotFoundError where there is none."""
    if not (folder / STORE).exists():
        raise FileNotFoundError(f"{folder} holds no results (there is no {STORE} in it)")
    return folder / STORE


def stored_identity(folder: Path) -> dict[str, Any] | None:
    """What the results in this folder were made with; None where there are none."""
    path = folder / STORE
    if not path.exists() and not path.is_symlink():
        return None
    open_store(path, "r")
    group = zarr.open_group(str(path), mode="r")  # which `open_store` has checked
    return dict(group.attrs["identity"])  # type: ignore[arg-type]


def stored_about(folder: Path) -> dict[str, Any]:
    """What a folder with results says of their making besides their identity."""
    about = open_group(folder / STORE).attrs.get("about")
    return dict(about) if isinstance(about, dict) else {}


def open_store(path: Path, mode: str) -> dict[str, zarr.Array]:
    """The arrays of a store by name, of those in `VARIABLES`. Raises ValueError naming the path where it is none of ours."""
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = open_group(path, mode)
            if (stored := group.attrs.get("format")) not in _READ:
                told = " and ".join(map(str, _READ))
                raise ValueError(f"{path} has format {printable(stored)}; this version of pycotmech reads {told}")
            if not isinstance(group.attrs.get("identity"), dict):
                raise DamagedData(f"{path} does not state the settings of its results")
            arrays = {name: array for name, array in group.arrays() if name in VARIABLES}
    except ValueError as error:
        raise ValueError(f"{error}. Move it away, or give another folder") from error
    sizes: dict[str, int] = {}
    if "raw" in arrays and arrays["raw"].ndim == len(AXES):
        sizes |= zip(AXES, arrays["raw"].shape, strict=True)
    for name, variable in VARIABLES.items():
        if name not in arrays and variable.added:
            continue
        if name not in arrays or arrays[name].shape != tuple(sizes.get(axis, -1) for axis in variable.axes):
            raise DamagedData(f"{path} lacks the array {name}, or it has another shape. Move it away, or give another folder")
    return {name: arrays[name] for name in VARIABLES if name in arrays}


@dataclass
class _Inspection:
    """What the chunks of a store are worth.

    state, right: with only what can be relied on. unreadable: by variable, examples whose chunk is not what was written.
    changed: examples whose state is not the stored one. damaged: examples that lost something.
    """

    state: np.ndarray
    right: np.ndarray
    unreadable: dict[str, list[int]] = field(default_factory=dict)
    changed: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)


def _inspect(path: Path, arrays: Mapping[str, zarr.Array]) -> _Inspection:
    """Looks at every chunk file. A finished sweep needs all its data, a skipped one a grade that says that it is wrong."""
    n = arrays["state"].shape[0]
    lost = np.zeros(n, dtype=bool)
    unreadable: dict[str, list[int]] = {}
    for name, array in arrays.items():
        present = stored_chunks(path, array)
        bad = [e for e in sorted(present) if not checksum_holds(chunk_file(path, array, e))]
        if bad:
            unreadable[name] = bad
        if name not in ("state", "right"):
            lost[sorted(set(range(n)) - present)] = True
            lost[bad] = True
    stored, right = (read_all(path, arrays[name], unreadable.get(name, [])) for name in ("state", "right"))
    state = stored.copy()
    state[(stored == SweepState.FINISHED) & lost[:, None]] = SweepState.PENDING
    state[(stored == SweepState.SKIPPED) & (right != 0)] = SweepState.PENDING
    changed = np.flatnonzero((state != stored).any(1)).tolist()
    damaged = {*changed, *(e for name, rows in unreadable.items() if name != "state" for e in rows)}
    return _Inspection(state, right, unreadable, sorted({*changed, *unreadable.get("state", [])}), sorted(damaged))


def read_all(path: Path, array: zarr.Array, unreadable: Sequence[int] = ()) -> np.ndarray:
    """Returns the values of an array, with its fill value in the examples that cannot be read."""
    out = np.full(array.shape, array.fill_value, array.dtype)
    rows = sorted(stored_chunks(path, array).difference(unreadable))
    if rows:
        out[rows] = read_rows(path, array, rows)
    return out


def stored_chunks(path: Path, array: zarr.Array) -> set[int]:
    """The examples of which the array has a chunk. Files of other names, which nothing here writes, are no chunks."""
    folder, n = path / array.basename, array.shape[0]
    if array.metadata.chunk_key_encoding.separator == ".":  # type: ignore[union-attr]
        name = re.compile(r"c\.(0|[1-9][0-9]{0,17})" + r"\.0" * (array.ndim - 1))
        found = (int(match[1]) for match in map(name.fullmatch, os.listdir(folder)) if match)
        return {e for e in found if e < n}
    return {e for e in range(n) if chunk_file(path, array, e).is_file()}


def _sizes(axes: ResultAxes) -> dict[str, int]:
    return {"example": len(axes.examples), "step": len(axes.steps), "layer": axes.n_layers, "head": axes.n_heads}


def _layout(axes: ResultAxes) -> dict[str, EmptyArray]:
    sizes, out = _sizes(axes), {}
    for name, variable in VARIABLES.items():
        shape = tuple(sizes[axis] for axis in variable.axes)
        out[name] = EmptyArray(variable.axes, shape, (1, *shape[1:]), variable.dtype, variable.fill, variable.text)
    return out


def _labels(axes: ResultAxes, identity: Mapping[str, Any], about: Mapping[str, Any]) -> xr.Dataset:
    sizes = _sizes(axes)
    coords = {
        "example": np.arange(sizes["example"]),
        "step": np.asarray(axes.steps, dtype=np.int64),
        "layer": np.arange(axes.n_layers),
        "head": np.arange(axes.n_heads),
        "name": ("example", np.array(list(axes.examples), dtype=str)),
        "kind": ("step", np.array(list(axes.kinds), dtype=str)),
    }
    return xr.Dataset({}, coords, {"format": FORMAT, "identity": dict(identity), "about": dict(about)})
