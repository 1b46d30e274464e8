"""What commands print with --json: one JSON object on standard output, and nothing else there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import typer


def say_json(value: Mapping[str, Any]) -> None:
    """Prints an object in one line, in ASCII, so that no stored text can move the cursor. NaN and infinity become null."""
    typer.echo(json.dumps(plain(value), ensure_ascii=True, allow_nan=False))


def plain(value: Any) -> Any:
    """Returns the JSON value of numbers, arrays, paths, dataclasses and containers of these; of anything else its text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    listed = getattr(value, "tolist", None)  # NumPy's arrays and numbers, without NumPy
    if callable(listed):
        value = listed()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def report_of(folder: Path) -> dict[str, Any]:
    """What summary.json of a results folder holds."""
    return json.loads((folder / "summary.json").read_text("utf-8"))


def first_page(folder: Path) -> Path:
    """The file of a results folder to open first."""
    pages = [folder / name for name in ("report.html", "summary.md")]
    return next((page for page in pages if page.is_file()), folder)
