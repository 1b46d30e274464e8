"""Results of sweeps that are read when they are looked at, so that a folder of any size opens at once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from pycotmech.files.arrays import DamagedData
from pycotmech.files.chunks import chunk_file, read_rows
from pycotmech.files.text import printable
from pycotmech.runs.store import SweepState, existing_store, labelled, open_store, read_all
from pycotmech.runs.variables import DATA


def open_sweeps(folder: Path) -> xr.Dataset:
    """Opens the results of a folder of sweeps. Variables are read from disk when their values are used, and only what is used.

    The variables and axes are those of `pycotmech.runs.read`. Where a chunk is damaged, or lost although its sweep is marked
    as finished, reading it raises DamagedData naming the examples.
    Raises FileNotFoundError where there are no results, ValueError where they cannot be read.
    Cost: the labels are read, and the names of the chunk files are looked through.
    """
    path = existing_store(folder)
    arrays = open_store(path, "r")
    finished = _Finished(path, arrays["state"])
    variables: dict[str, Any] = {}
    for name, array in arrays.items():
        variables[name] = indexing.LazilyIndexedArray(_StoredVariable(name, path, array, finished))
    return labelled(path, variables)


class _Finished:
    """Which examples have a finished sweep, read when it is asked for."""

    def __init__(self, path: Path, state: zarr.Array) -> None:
        self._path, self._state = path, state

    @cached_property
    def rows(self) -> np.ndarray:
        """bool [examples]."""
        return (read_all(self._path, self._state) == SweepState.FINISHED).any(1)


class _StoredVariable(BackendArray):
    """One array of a store, as xarray reads it on demand."""

    def __init__(self, name: str, path: Path, array: zarr.Array, finished: _Finished) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        self._name, self._path, self._array, self._finished = name, path, array, finished

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple) -> np.ndarray:
        rows = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        if self._name in DATA:
            finished = rows[self._finished.rows[rows]].tolist()
            lost = {r for r in finished if not chunk_file(self._path, self._array, r).is_file()}
            if lost:
                raise DamagedData(self._damage(sorted(lost), "lost"))
        try:
            found = read_rows(self._path, self._array, rows.tolist(), lambda row: _outer(row, key[1:]))
            return found[0] if isinstance(key[0], int | np.integer) else found
        except Exception as error:  # whatever a codec makes of damaged bytes
            raise DamagedData(self._damage([r for r in rows.tolist() if not self._reads(r)], str(error))) from error

    def _reads(self, example: int) -> bool:
        try:
            read_rows(self._path, self._array, [example])
        except Exception:  # as above
            return False
        return True

    def _damage(self, examples: list[int], why: str) -> str:
        shown = ", ".join(map(str, examples[:10])) + (f" and {len(examples) - 10} more" if len(examples) > 10 else "")
        return (
            f"{self._path}: the stored {self._name} of example {shown} is damaged ({printable(why)}). The command that made it "
            "computes it again; pycotmech.runs.read leaves it out"
        )


def _outer(values: np.ndarray, key: tuple) -> np.ndarray:
    """Indexes each axis by itself: arrays in several places of the key do not go together, as they would in NumPy."""
    for axis in reversed(range(len(key))):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values
