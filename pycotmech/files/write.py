"""Files that are there whole or not at all, and never written through a symbolic link."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

_WINDOWS = os.name == "nt"
_TRIES, _PAUSE = 20, 0.1
"""How often, and after how many seconds, a name that another process holds is tried again on Windows."""

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
        move(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | PathLike, text: str) -> None:
    """Writes a UTF-8 text file as `replacing` does. Lines end as they do in the text, on every system."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8", newline="")


def move(source: Path, target: Path) -> None:
    """Gives a file or folder another name; a file that has it is replaced.

    On Windows, a name cannot be taken while another process reads the file; this tries again for two seconds.
    Raises PermissionError after that.
    """
    for left in reversed(range(_TRIES if _WINDOWS else 1)):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(_PAUSE)


def subfolder(folder: Path, name: str) -> Path:
    """Returns a folder inside `folder`, made if it is missing. Raises ValueError if a symbolic link has its place."""
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; nothing is written through it. Remove the link")
    path.mkdir(parents=True, exist_ok=True)
    return path


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    if _WINDOWS and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDWR if _WINDOWS else os.O_RDONLY)
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
