"""Results of sweeps over examples and steps, on disk as soon as each is finished.

A results folder holds `results.zarr` with labelled axes (example, step, layer, head); `xarray.open_zarr` reads it. One
example's steps are one chunk. A chunk file is replaced as a whole, and the mark "finished" is written behind the data, so a
process that dies at any moment leaves every finished sweep readable and nothing half-written that looks finished.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr

if TYPE_CHECKING:
    from pycotmech.patching import Sweep

FORMAT = 1
FOLDER = "results.zarr"

_GRID = ("example", "step", "layer", "head")
_CELL = ("example", "step")
_GRIDS = {
    "raw": ("f8", "the metric of the run with this head patched"),
    "values": ("f4", "raw on the scale corrupted 0, clean 1"),
    "effect": ("f4", "distance from the base run on that scale, against the mean of the self-patches"),
}
_SCALARS = {
    "clean_metric": ("f8", np.nan, "the metric of the clean run"),
    "corrupted_metric": ("f8", np.nan, "the metric of the corrupted run"),
    "noise_floor": ("f8", np.nan, "largest |effect| of self-patches moved by one unit in the last place"),
    "seconds": ("f8", np.nan, "wall time of the sweep"),
    "right": ("i1", -1, "1 if the model gets the step right, 0 if not, -1 if not graded"),
    "state": ("i1", 0, "0 pending, 1 finished, 2 passed over since the model gets the step wrong"),
}


class State(IntEnum):
    """Where one sweep (an example at a step) stands."""

    PENDING = 0
    FINISHED = 1
    SKIPPED = 2


@dataclass(frozen=True)
class Axes:
    """The axes of a results folder. examples: names. steps: numbers; kinds: a word for each step."""

    examples: Sequence[str]
    steps: Sequence[int]
    kinds: Sequence[str]
    n_layers: int
    n_heads: int


class Results:
    """A results folder that is being written. One process at a time: `create` and `resume` take a lock on it."""

    def __init__(self, folder: Path, lock: Any) -> None:
        self.folder = folder
        self._lock = lock
        self._group = zarr.open_group(str(folder / FOLDER), mode="r+")

    @classmethod
    def create(cls, folder: Path, axes: Axes, *, identity: Mapping[str, Any], about: Mapping[str, Any]) -> Results:
        """A new, empty store, with everything pending.

        identity: what a later run must agree with to go on here (JSON values). about: what a reader should know besides.
        Raises FileExistsError where there is one already, BlockingIOError where another process is writing.
        """
        lock = _locked(folder)
        path = folder / FOLDER
        if path.exists():
            raise FileExistsError(f"out: {folder} holds results already")
        # It appears in one rename: a process that dies in between leaves no half store.
        temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            _layout(axes, identity, about).to_zarr(
                temporary / FOLDER, mode="w-", consolidated=False, zarr_format=2, encoding=_chunks(axes)
            )
            os.rename(temporary / FOLDER, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return cls(folder, lock)

    @classmethod
    def resume(cls, folder: Path) -> Results:
        """The store of an earlier run. Sweeps whose data cannot be read are pending again."""
        results = cls(folder, _locked(folder))
        results._forget_damaged()
        return results

    def state(self) -> np.ndarray:
        """[examples, steps] of `State`."""
        return self._group["state"][:]  # type: ignore[index, return-value]

    def graded(self) -> np.ndarray:
        """[examples, steps]: 1 right, 0 wrong, -1 not graded."""
        return self._group["right"][:]  # type: ignore[index, return-value]

    def grade(self, example: int, right: Sequence[int]) -> None:
        """Keeps which steps of an example are right."""
        with uninterrupted():
            self._group["right"][example] = np.asarray(right, dtype=np.int8)  # type: ignore[index]

    def skip(self, example: int, step: int) -> None:
        """Marks a sweep as passed over. step: its index on the axis, as in `finish`."""
        with uninterrupted():
            self._group["state"][example, step] = int(State.SKIPPED)  # type: ignore[index]

    def finish(self, example: int, step: int, sweep: Sweep, seconds: float) -> None:
        """Keeps the sweep of one pair. step: its index on the axis."""
        group: Any = self._group
        with uninterrupted():
            for name in _GRIDS:
                group[name][example, step] = getattr(sweep, name)
            group["clean_metric"][example, step] = float(sweep.clean_metric[0])
            group["corrupted_metric"][example, step] = float(sweep.corrupted_metric[0])
            group["noise_floor"][example, step] = sweep.noise_floor
            group["seconds"][example, step] = seconds
            group["state"][example, step] = int(State.FINISHED)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _forget_damaged(self) -> None:
        group: Any = self._group
        for example in range(group["state"].shape[0]):
            damaged = []
            for name in (*_GRIDS, *_SCALARS):
                try:
                    group[name][example]
                except Exception:  # whatever a codec makes of a truncated file
                    damaged.append(name)
            for name in damaged:
                fill = _SCALARS[name][1] if name in _SCALARS else np.nan
                group[name][example] = fill
            state = group["state"][example]
            lost = (state == State.FINISHED) & ~np.isfinite(group["clean_metric"][example])
            lost |= (state == State.FINISHED) & np.isnan(group["raw"][example]).all((1, 2))
            lost |= (state == State.FINISHED) & np.isnan(group["effect"][example]).all((1, 2))
            if lost.any():
                group["state"][example] = np.where(lost, int(State.PENDING), state).astype(np.int8)


def read(folder: str | os.PathLike) -> xr.Dataset:
    """All results of a folder, finished or not, in memory; NaN where a sweep is pending.

    Raises FileNotFoundError where there are none.
    """
    path = Path(folder) / FOLDER
    if not path.is_dir():
        raise FileNotFoundError(f"{folder} holds no results (there is no {FOLDER} in it)")
    data = xr.open_zarr(path, consolidated=False).load()
    if data.attrs.get("format") != FORMAT:
        raise ValueError(f"{path} has format {data.attrs.get('format')}, this version reads {FORMAT}")
    return data


def identity(folder: Path) -> dict[str, Any] | None:
    """What the results in this folder were made with; None where there are none."""
    path = folder / FOLDER
    return dict(zarr.open_group(str(path), mode="r").attrs["identity"]) if path.is_dir() else None  # type: ignore[arg-type]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and a polite kill back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, frame: caught.append(number)) for s in signals]
    try:
        yield
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
    if caught:
        signal.raise_signal(caught[0])


def _layout(axes: Axes, identity: Mapping[str, Any], about: Mapping[str, Any]) -> xr.Dataset:
    n = {"example": len(axes.examples), "step": len(axes.steps), "layer": axes.n_layers, "head": axes.n_heads}
    shape = [n[d] for d in _GRID]
    variables: dict[str, Any] = {
        name: (_GRID, np.full(shape, np.nan, dtype), {"description": text}) for name, (dtype, text) in _GRIDS.items()
    }
    for name, (dtype, fill, text) in _SCALARS.items():
        variables[name] = (_CELL, np.full(shape[:2], fill, dtype), {"description": text})
    coords = {
        "example": np.arange(n["example"]),
        "step": np.asarray(axes.steps, dtype=np.int64),
        "layer": np.arange(n["layer"]),
        "head": np.arange(n["head"]),
        "name": ("example", np.array(list(axes.examples), dtype=str)),
        "kind": ("step", np.array(list(axes.kinds), dtype=str)),
    }
    return xr.Dataset(variables, coords, {"format": FORMAT, "identity": dict(identity), "about": dict(about)})


def _chunks(axes: Axes) -> dict[str, dict[str, Any]]:
    steps = len(axes.steps)
    grid = {"chunks": (1, steps, axes.n_layers, axes.n_heads)}
    return {**{name: grid for name in _GRIDS}, **{name: {"chunks": (1, steps)} for name in _SCALARS}}


def _locked(folder: Path) -> Any:
    """An exclusive lock on the folder that ends with the process; None where the system has no such lock."""
    try:
        import fcntl
    except ImportError:
        return None
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise BlockingIOError(f"out: another process is writing to {folder}") from None
    return file
