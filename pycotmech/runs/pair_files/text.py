"""A text file of pairs as a string."""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a file without its byte order mark. Raises ValueError naming the file if it is no such text."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"pairs: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
