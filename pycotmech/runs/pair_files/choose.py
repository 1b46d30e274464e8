"""Which reader a file or folder of pairs is for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pycotmech.runs.pair_files import csv_file, datasets_folder, jsonl_file, parquet_file
from pycotmech.runs.pair_files.record import Record


class Reader(NamedTuple):
    """A format: how its records are read, and what one of them is called."""

    read: Callable[[Path], Iterator[Record]]
    expected: str


JSONL = Reader(jsonl_file.read, "a JSON object a line")
CSV = Reader(csv_file.read, "a header and a row for each pair")
PARQUET = Reader(parquet_file.read, "a row for each pair")
DATASETS = Reader(datasets_folder.read, "a row for each pair")

_SUFFIXES = {
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".json": JSONL,
    ".csv": CSV,
    ".tsv": CSV,
    ".parquet": PARQUET,
    ".pq": PARQUET,
}

_BEGINNING = 4096


def reader_of(path: Path) -> Reader:
    """Returns the reader for a path: a folder is one of datasets, a file goes by the ending of its name, otherwise by content.

    Content: Parquet by its first bytes, CSV by a header with `clean` and a comma, JSONL otherwise.
    """
    if path.is_dir():
        return DATASETS
    if (known := _SUFFIXES.get(path.suffix.lower())) is not None:
        return known
    with path.open("rb") as stream:
        beginning = stream.read(_BEGINNING)
    if beginning.startswith(parquet_file.MAGIC):
        return PARQUET
    header = beginning.removeprefix(b"\xef\xbb\xbf").split(b"\n")[0]
    return CSV if b"clean" in header and b"," in header and not header.lstrip().startswith((b"{", b"[")) else JSONL


def digest_of(path: Path) -> str:
    """SHA-256 of a file; of a folder that of the names and bytes of its files."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file() and not file.is_symlink()):
        digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\0".encode())
    return digest.hexdigest()
