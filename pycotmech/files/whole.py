"""Whether tables, figures and JSON files are still what was written."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycotmech.files.arrays import DamagedData
from pycotmech.files.write import write_text

_PNG = b"\x89PNG\r\n\x1a\n"

_SEAL = "sha256"
"""Entry of a JSON file with a digest of the others: a flipped digit is another number, which nothing else would tell."""


def write_sealed(path: Path, facts: Mapping[str, Any]) -> None:
    """Writes an object as JSON, with a digest of it."""
    plain = json.loads(json.dumps({name: value for name, value in facts.items() if name != _SEAL}, default=str))
    write_text(path, json.dumps({**plain, _SEAL: _digest(plain)}, indent=1) + "\n")


def read_sealed(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed` wrote, or an object without a digest, as earlier versions wrote it.

    Raises FileNotFoundError where there is no file, DamagedData where it is not what was written.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DamagedData(f"{path} is not a JSON file ({error})") from error
    if not isinstance(found, dict):
        raise DamagedData(f"{path} does not hold a JSON object")
    seal = found.pop(_SEAL, None)
    if seal is not None and seal != _digest(found):
        raise DamagedData(f"{path} is not what was written: its digest does not hold")
    return found


def _digest(plain: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def holds_text(path: Path, text: str) -> bool:
    """Whether a file, and no symbolic link, holds this text in UTF-8."""
    return _plain(path) and path.read_bytes() == text.encode("utf-8")


def is_whole_png(path: Path) -> bool:
    """Whether a file, and no symbolic link, is a PNG from its first to its last byte: each of its chunks carries a CRC-32."""
    if not _plain(path):
        return False
    data = path.read_bytes()
    if not data.startswith(_PNG):
        return False
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        size = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + size
        if len(data) < end + 4 or zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return False
        at = end + 4
    return at == len(data)


def _plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()
