"""Chunk files of arrays, one by one: whether they are what was written, their values, and writing them.

zarr reads and writes chunks through a pipeline for any codec and any storage, which costs about a millisecond each. The chunks
that `pycotmech.files.arrays` writes are a checksum after a Zstandard frame after plain numbers; doing so directly is some ten
times as fast where there are ten thousand.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import Zstd

from pycotmech.files.write import move

_ZSTD = Zstd(level=0)  # as zarr's

PARTIAL = ".partial"
"""How the name of a chunk ends that is being written, here as in zarr."""


def chunk_file(store: Path, array: zarr.Array, row: int) -> Path:
    """Where the chunk of one entry of the first axis is, in an array whose chunks hold one entry each."""
    return store / array.basename / array.metadata.encode_chunk_key((row,) + (0,) * (array.ndim - 1))  # type: ignore[operator]


def checksum_holds(chunk: Path) -> bool:
    """Whether a chunk file holds what was written. Nothing is decompressed."""
    try:
        return _checked(chunk.read_bytes()) is not None
    except OSError:
        return False


def read_rows(
    store: Path, array: zarr.Array, rows: Sequence[int], of_row: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """Returns entries of the first axis: [rows, ...]. A chunk that is not there is the fill value.

    of_row: what is kept of each entry. Raises ValueError for a chunk that is not what was written.
    """
    plain = _is_plain(array)
    empty = np.full(array.shape[1:], array.fill_value, array.dtype)
    kept = of_row or (lambda row: row)
    first = kept(empty)
    out = np.empty((len(rows), *first.shape), array.dtype)
    for at, row in enumerate(rows):
        out[at] = kept(_read(chunk_file(store, array, row), empty) if plain else np.asarray(array[row]))
    return out


def write_row(store: Path, array: zarr.Array, row: int, values: np.ndarray) -> None:
    """Replaces one entry of the first axis, on the disk some time later. values: [...], of the array's dtype and shape.

    Whoever reads meanwhile finds the old chunk or the new one.
    """
    if not _is_plain(array):
        array[row] = values
        return
    expected = array.shape[1:]
    if values.shape != expected or values.dtype != array.dtype:
        raise ValueError(f"values: got {values.dtype} {values.shape}; expected {array.dtype} {expected} ({array.basename})")
    body = bytes(_ZSTD.encode(np.ascontiguousarray(values)))
    chunk = chunk_file(store, array, row)
    temporary = chunk.with_name(f"{chunk.name}.{secrets.token_hex(16)}{PARTIAL}")
    chunk.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(body + google_crc32c.value(body).to_bytes(4, "little"))
        move(temporary, chunk)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(chunk: Path, empty: np.ndarray) -> np.ndarray:
    try:
        data = chunk.read_bytes()
    except FileNotFoundError:
        return empty
    body = _checked(data)
    if body is None:
        raise ValueError("its checksum does not hold")
    values = np.frombuffer(_ZSTD.decode(body), empty.dtype)  # [1 * ...]: one entry
    if values.size != empty.size:
        raise ValueError(f"it holds {values.size} numbers instead of {empty.size}")
    return values.reshape(empty.shape)


def _checked(data: bytes) -> bytes | None:
    """The bytes before the checksum, if it holds."""
    body = data[:-4]
    return body if len(data) > 4 and google_crc32c.value(body) == int.from_bytes(data[-4:], "little") else None


def _is_plain(array: zarr.Array) -> bool:
    """Whether its chunks are what this module reads: one entry each, in order, little-endian, compressed, with a checksum."""
    described: Any = array.metadata.to_dict()
    codecs = [codec.get("name") for codec in described.get("codecs", ()) if isinstance(codec, dict)]
    little = array.dtype.itemsize == 1 or array.dtype.newbyteorder("<") == array.dtype
    return codecs == ["bytes", "zstd", "crc32c"] and little and array.chunks == (1, *array.shape[1:])
