"""Files that are there whole or not at all, and never written through a symbolic link."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

UNFINISHED = ".pycotmech-"
"""How the names of files and folders begin that have not yet got their own."""


@contextmanager
def replacing(path: str | PathLike) -> Iterator[Path]:
    """Yields a new, empty file next to `path` to write into; it takes the place of `path` when the block ends without error.

    What is at `path` is replaced and never followed: a symbolic link there leaves its target as it is. The data is on
    the disk before it is seen under its name.
    Raises ValueError if `path` is a folder, OSError if nothing can be written next to it.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise ValueError(f"{path} is a folder; expected a file")
    temporary = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | PathLike, text: str) -> None:
    """Writes a UTF-8 text file as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def subfolder(folder: Path, name: str) -> Path:
    """Returns a folder inside `folder`, made if it is missing. Raises ValueError if a symbolic link has its place."""
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; nothing is written through it. Remove the link")
    path.mkdir(parents=True, exist_ok=True)
    return path


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all that it holds."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))
