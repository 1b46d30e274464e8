"""Pairs from a JSONL file: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycotmech._choices import did_you_mean
from pycotmech.runs.pair_files.record import FIELDS, INDICES, Record
from pycotmech.runs.pair_files.text import read_text


def read(path: Path) -> Iterator[Record]:
    """Yields the objects of a JSONL file; empty lines are skipped.

    Raises ValueError naming the file, the line and the field. Unlike a column of a table, an unknown field is an error: an
    object is written for this file alone.
    """
    # Not splitlines: it also cuts at characters that may occur inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield Record(_fields(line, where), where, f"line {number}")


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line, object_pairs_hook=lambda fields: _fields_once(fields, where))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON (nested too deeply)") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object with clean and corrupted, got {type(found).__name__}")
    if unknown := sorted(set(found) - {*FIELDS, *INDICES}):
        hint = did_you_mean(unknown[0], FIELDS)
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(FIELDS)}{hint}")
    return found


def _fields_once(fields: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        raise ValueError(f"{where}: field {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found
