"""Pairs from a CSV or TSV file with a header, such as those of EAP-IG (clean,corrupted,correct_idx,incorrect_idx)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pycotmech.runs.pair_files.record import INDICES, Record, chosen_columns
from pycotmech.runs.pair_files.text import read_text


def read(path: Path) -> Iterator[Record]:
    """Yields the rows of a comma-separated file, or of a tab-separated one whose name ends in .tsv; empty rows are skipped.

    Every cell is text, and an empty cell is a missing field; only `correct_idx` and `incorrect_idx` are numbers, token ids.
    Raises ValueError naming the file, the line and the column.
    """
    header: list[str] | None = None
    chosen: list[str] = []
    for number, cells in _rows(path, read_text(path)):
        where = f"{path}, line {number}"
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            chosen = chosen_columns(header, where)
            continue
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells under a header of {len(header)} columns")
        given = dict(zip(header, cells, strict=True))
        fields = {name: _index(given[name], name, where) if name in INDICES else given[name] or None for name in chosen}
        yield Record(fields, where, f"line {number}")


def _index(cell: str, name: str, where: str) -> int | None:
    """A token id; pandas writes whole numbers as 5.0 where a column has gaps."""
    text = cell.strip().removesuffix(".0")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise ValueError(f"{where}: field {name!r}: expected a token id, got {cell!r:.60}")
    return int(text)


def _rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """The line on which each row begins (a quoted cell may hold line breaks), and its cells."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    found: list[tuple[int, list[str]]] = []
    # A prompt may be longer than the 131,072 characters that csv allows a cell. The limit is the module's, for everyone.
    before = csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    try:
        while True:
            number = rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"{path}, line {number}: not valid CSV ({error})") from error
            if cells is None:
                return found
            found.append((number, cells))
    finally:
        csv.field_size_limit(before)
