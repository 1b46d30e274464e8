"""A results folder: checked, locked while it is written, and refused to a run of other settings."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycotmech.files import lock
from pycotmech.files.write import UNFINISHED
from pycotmech.runs.events import stop_recorded
from pycotmech.runs.provenance import differences

LOCK = ".lock"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def checked_path(out: str | os.PathLike, argument: str = "out") -> Path:
    """Returns the path of a folder that is there or can be made. Raises ValueError naming the argument otherwise."""
    text = os.fspath(out)
    if not text.strip():
        raise ValueError(f"{argument}: the name is empty; expected a folder")
    folder = Path(text).expanduser()
    try:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{argument}: {folder} is a file; expected a folder")
    except OSError as error:  # a name or a path that is too long, a folder that may not be looked into
        raise _unusable(folder, argument, error) from error
    return folder


def existing_place(folder: Path) -> Path:
    """Returns the folder, or the one above it in which it would be made."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return place


def made_folder(out: str | os.PathLike, argument: str = "out") -> Path:
    """Makes the folder if it is missing. Raises ValueError or PermissionError naming the argument where that cannot be done."""
    folder = checked_path(out, argument)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, argument, error) from error
    return folder


def check_writable(folder: Path, argument: str = "out") -> None:
    """Raises PermissionError naming the argument where nothing can be written in the folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, argument, error) from error


@contextmanager
def open_folder(out: str | os.PathLike) -> Iterator[Path]:
    """Makes the folder if it is missing, and locks it for the block. Nothing is written before the lock is held.

    If events were recorded in the block, "stop" is recorded at its end (`pycotmech.runs.events`).
    Raises ValueError or PermissionError naming `out` where nothing can be written, BlockingIOError where another process
    writes, and OSError naming the folder when the disk is full; what is finished is kept.
    """
    folder = made_folder(out)
    held = _locked(folder)
    try:
        check_writable(folder)
        with naming_full_disk(folder), stop_recorded(folder):
            _remove_unfinished(folder)
            yield folder
    finally:
        os.close(held)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Turns the error of a full disk into one that names the folder and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        message = f"the disk of {folder} is full ({os.strerror(error.errno or 0)}); finished results are kept. Make room"
        raise OSError(f"{message}, and the same command continues from there") from error


def is_written(folder: Path) -> bool:
    """Returns whether a process holds the folder's lock now."""
    return lock.is_locked(folder / LOCK)


def refuse_other_settings(
    folder: Path, stored: Mapping[str, Any] | None, now: Mapping[str, Any], *, accept_version: bool = False
) -> list[str]:
    """Raises ValueError naming each difference between the identity of a folder's results and that of this run.

    stored: None for a folder without results. now: may lack what is known only after the model is loaded.
    accept_version: whether other versions of `DECIDING_VERSIONS` are accepted; returns them, in words.
    """
    if stored is None:
        return []
    differ, versions = differences(stored, now)
    if differ:
        raise ValueError(
            f"out: {folder} contains results of other settings: {'; '.join((*differ, *versions))}. Give another folder, or the "
            "settings of these results to continue them"
        )
    if versions and not accept_version:
        raise ValueError(
            f"out: {folder} contains results of other versions: {'; '.join(versions)}. Their numbers may differ. Give another "
            "folder, or --accept-version to continue them"
        )
    return versions


def _unusable(folder: Path, argument: str, error: OSError) -> PermissionError:
    shown = str(folder) if len(str(folder)) <= 100 else f"{str(folder)[:60]}... ({len(os.fsencode(folder))} bytes)"
    return PermissionError(f"{argument}: nothing can be written in {shown} ({error.strerror or error}). Give another folder")


def _locked(folder: Path) -> int:
    """Takes the folder's lock, which ends with the process, and returns its descriptor."""
    try:
        return lock.take(folder / LOCK)
    except BlockingIOError:
        raise BlockingIOError(f"out: another process is writing to {folder}") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ValueError(f"out: {folder / LOCK} is a symbolic link, which is not followed. Remove it") from error
        if error.filename is not None:  # it cannot be opened
            raise _unusable(folder, "out", error) from error
        raise OSError(f"out: {folder} cannot be locked ({error.strerror}). Give a folder on another file system") from error


def _remove_unfinished(folder: Path) -> None:
    """Removes what a process that died had not yet given its name."""
    places = [folder, *(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())]
    for path in (path for place in places for path in place.glob(f"{UNFINISHED}*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def opening(folder: Path) -> tuple[tuple[str, str], ...]:
    """How a folder of results is opened, as what is shown after a run says it: (code, what it gives)."""
    return ((f"results = pcm.open_results({str(folder)!r})", "datasets, tables and figures"),)
