"""Labelled arrays on disk: xarray datasets as zarr groups whose chunks carry checksums.

A store may come from a stranger. `check_store` reads its metadata, which are JSON, before zarr does, and refuses everything
but plain numbers and strings in well-known compressions: zarr would look up and run any filter that a store names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from pycotmech.files.chunks import checksum_holds
from pycotmech.files.text import printable
from pycotmech.files.write import UNFINISHED, move, sync, sync_tree

CHECKED = "checksums"
"""Attribute of a store in which every chunk is written, even if it holds nothing but fill values, and carries a checksum."""

SEAL = "metadata_sha256"
"""Attribute of a store that holds the SHA-256 of its metadata, which are written once: a flipped letter in a name, a shape or
an attribute is another value, and no chunk's checksum sees it."""

_SEALED = "crc32c, sealed"
"""Value of `CHECKED` where there is a seal, so that a store without one, by a flipped letter in its name, is found too."""

_NUMBERS = re.compile(r"[<>|]?(b1|[iu][1248]|f[248])|U\d{1,6}|[<>]U\d{1,6}|bool|u?int(8|16|32|64)|float(16|32|64)")
_STRINGS = ("string", "fixed_length_utf32")
_CODECS = {"bytes", "crc32c", "vlen-utf8", "zstd", "blosc", "gzip", "zlib", "lz4", "transpose"}
_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}


class DamagedData(ValueError):
    """Stored arrays that are not what was written: a chunk is missing, cut or changed."""


@dataclass(frozen=True)
class EmptyArray:
    """An array that is to be filled chunk by chunk. A chunk that is not there yet reads as `fill`.

    dims: names of its axes. chunks: their lengths in one chunk. text: its description.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    fill: float
    text: str = ""


def save_arrays(
    data: xr.Dataset,
    path: Path,
    *,
    chunks: Mapping[str, tuple[int, ...]] | None = None,
    empty: Mapping[str, EmptyArray] | None = None,
) -> None:
    """Writes a dataset as a zarr group with a checksum for each chunk. It appears under `path` in one move, on the disk.

    chunks: by variable; a variable without an entry is one chunk. What is at `path` is replaced.
    empty: further arrays by name, of which only the metadata are written, whatever their size.
    """
    kept = data.assign_attrs({CHECKED: _SEALED})
    # Strings of fixed width are in no standard of zarr 3.
    words = {name: v.astype(object) for name, v in kept.variables.items() if v.dtype.kind == "U"}
    kept = kept.assign({k: v for k, v in words.items() if k in kept.data_vars})
    kept = kept.assign_coords({k: v for k, v in words.items() if k in kept.coords})
    encoding: dict[str, Any] = {}
    for name, variable in kept.variables.items():
        encoding[str(name)] = {"compressors": (ZstdCodec(), Crc32cCodec())}
        shape = (chunks or {}).get(str(name), variable.shape)
        if variable.size and variable.ndim:
            encoding[str(name)]["chunks"] = shape
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=path.parent))
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            kept.to_zarr(temporary / path.name, mode="w-", consolidated=False, zarr_format=3, encoding=encoding)
        if empty:
            group = zarr.open_group(str(temporary / path.name), mode="r+")
            for name, array in empty.items():
                # All chunks of an array in one folder: a folder for each index would be three more inodes a chunk.
                group.create_array(
                    name, shape=array.shape, chunks=array.chunks, dtype=array.dtype, fill_value=array.fill,
                    compressors=(ZstdCodec(), Crc32cCodec()), dimension_names=array.dims,
                    chunk_key_encoding={"name": "default", "separator": "."}, attributes={"description": array.text},
                )  # fmt: skip
        _seal(temporary / path.name)
        sync_tree(temporary / path.name)
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            move(path, temporary / "replaced")
        move(temporary / path.name, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_arrays(path: Path) -> xr.Dataset:
    """Reads a whole dataset into memory.

    Raises ValueError for a store that holds more than plain arrays, DamagedData naming the array if one cannot be read or
    (in a store of `save_arrays`) a chunk of it is missing.
    """
    group = open_group(path)
    declared = sum(array.size * array.dtype.itemsize for _, array in group.arrays())
    if declared > (memory := _memory()):
        raise DamagedData(f"{path} declares {declared / 2**30:,.0f} GiB of arrays; this machine has {memory / 2**30:,.0f} GiB")
    for name, array in group.arrays():
        if CHECKED in group.attrs and array.nchunks_initialized != array.nchunks:
            raise DamagedData(f"{path}: array {printable(name)} lacks {array.nchunks - array.nchunks_initialized} chunks")
    try:
        data = xr.load_dataset(path, engine="zarr", consolidated=False)  # type: ignore[arg-type]
    except Exception as error:  # whatever a codec makes of damaged bytes
        raise DamagedData(f"{path}: an array cannot be read ({printable(error)})") from error
    for name in (CHECKED, SEAL):
        data.attrs.pop(name, None)
    return _in_order(data)


def open_arrays(path: Path) -> xr.Dataset:
    """Opens a dataset of `save_arrays` whose values are read when they are used. Errors are those of `load_arrays`.

    Cost: every chunk file is read once and its checksum computed; memory stays that of one chunk.
    """
    group = open_group(path)
    for name, array in group.arrays():
        if CHECKED not in group.attrs:
            continue
        stored = {f"{array.basename}/{array.metadata.encode_chunk_key(at)}" for at in np.ndindex(array.cdata_shape)}  # type: ignore[operator]
        for chunk in sorted(stored):
            if not checksum_holds(path / chunk):
                raise DamagedData(
                    f"{path}: array {printable(name)} cannot be read ({printable(chunk)} is not what was written)"
                )
    try:
        data = xr.open_dataset(path, engine="zarr", consolidated=False, chunks=None)  # type: ignore[arg-type]
    except Exception as error:  # zarr and xarray have many for metadata that do not fit together
        raise DamagedData(f"{path}: the store cannot be opened ({printable(error)})") from error
    for name in (CHECKED, SEAL):
        data.attrs.pop(name, None)
    return _in_order(data)


def _in_order(data: xr.Dataset) -> xr.Dataset:
    """The dataset with its variables and labels by name: zarr lists the arrays of a group in an order that changes from one
    reading to the next, and with it the columns of an export would."""
    kept, labels = ({n: data.variables[n] for n in sorted(names, key=str)} for names in (data.data_vars, data.coords))
    return xr.Dataset(kept, labels, data.attrs)


def open_group(path: Path, mode: Any = "r") -> zarr.Group:
    """Opens a store after `check_store`; chunks that are written to it are written even if they hold only fill values."""
    check_store(path)
    try:
        return zarr.open_group(str(path), mode=mode)
    except Exception as error:  # zarr has many for metadata that do not fit together
        raise DamagedData(f"{path}: the store cannot be opened ({printable(error)})") from error


def check_store(path: Path) -> None:
    """Raises ValueError for a store that holds symbolic links, codecs or types beyond those that pycotmech writes.

    Nothing but JSON is read, and nothing that it names is looked up. Raises DamagedData for metadata that are not JSON, or
    not those that were written, or where there are none.
    """
    if not path.is_dir() or not any((path / name).is_file() for name in ("zarr.json", ".zgroup")):
        raise DamagedData(f"{path} is not a store of arrays: it holds no zarr group")
    for file in _metadata_files(str(path)):
        try:
            found = json.loads(Path(file).read_text("utf-8"))
        except (ValueError, RecursionError) as error:
            raise DamagedData(f"{printable(file)} cannot be read ({printable(error)})") from error
        for what, value in _wanted(found):
            raise ValueError(f"{printable(file)} names {what} {printable(value)[:60]}; only plain arrays are read")
    _check_seal(path)


def _metadata_files(folder: str) -> Iterator[str]:
    """The metadata files of a store. Raises ValueError for a symbolic link anywhere in it."""
    with os.scandir(folder) as entries:
        for entry in entries:  # scandir knows the type of an entry without another call: there may be 100,000 chunks
            if entry.is_symlink():
                raise ValueError(f"{printable(entry.path)} is a symbolic link; a store of arrays holds none")
            if entry.is_dir(follow_symlinks=False):
                yield from _metadata_files(entry.path)
            elif entry.name in _METADATA:
                yield entry.path


def _seal(path: Path) -> None:
    """Writes `SEAL` into the metadata of a new store."""
    file = path / "zarr.json"
    found = json.loads(file.read_text("utf-8"))
    found.setdefault("attributes", {})[SEAL] = _digest(path, found)
    file.write_text(json.dumps(found, indent=2), "utf-8", newline="\n")


def _check_seal(path: Path) -> None:
    """Raises DamagedData if a store has a seal, or should have one, and it is not that of its metadata."""
    file = path / "zarr.json"
    found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    attributes = found.get("attributes")
    if not isinstance(attributes, dict) or not (SEAL in attributes or attributes.get(CHECKED) == _SEALED):
        return
    if attributes.get(SEAL) != _digest(path, found):
        raise DamagedData(f"{path}: its metadata are not what was written")


def _digest(path: Path, group: Mapping[str, Any]) -> str:
    """SHA-256 of the metadata of a store: those of its group less the seal, and the files of its arrays."""
    attributes = {name: value for name, value in group.get("attributes", {}).items() if name != SEAL}
    digest = hashlib.sha256(json.dumps({**group, "attributes": attributes}, sort_keys=True).encode())
    for file in sorted(path.glob("*/zarr.json")):
        digest.update(file.parent.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _memory() -> float:
    """Bytes of this machine's memory; without limit where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def _wanted(metadata: Any) -> Iterator[tuple[str, Any]]:
    """What zarr would have to look up for this metadata and is not known to be harmless."""
    if not isinstance(metadata, dict):
        yield "no object but", metadata
        return
    for name, below in metadata.items():  # consolidated metadata hold those of all arrays
        if name in ("metadata", "consolidated_metadata") and isinstance(below, dict):
            for value in below.values():
                yield from _wanted(value)
    for field in ("codecs", "filters", "compressor", "storage_transformers"):
        codecs = metadata.get(field) or []
        for codec in codecs if isinstance(codecs, list) else [codecs]:
            name = codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec
            if name not in _CODECS:
                yield "the codec", name
    for field in ("dtype", "data_type"):
        dtype = metadata.get(field)
        name = dtype.get("name") if isinstance(dtype, dict) else dtype
        text = name in _STRINGS or (name == "|O" and metadata.get("filters") == [{"id": "vlen-utf8"}])
        if name is not None and not text and not (isinstance(name, str) and _NUMBERS.fullmatch(name)):
            yield "the type", name
