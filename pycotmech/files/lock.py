"""A lock on a file that ends with the process that holds it: flock on Linux and macOS, a locked byte on Windows.

A system with neither has no lock: `take` always succeeds there, and `is_locked` is False.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_MOMENT = 0.05
"""Seconds after which a lock that is held is tried once more: `is_locked` holds it for a moment."""


def take(path: Path) -> int:
    """Takes the lock, making the file if it is missing, and returns the descriptor that holds it until it is closed.

    Raises BlockingIOError if another process holds it, and other OSErrors if the file cannot be opened or locked. A symbolic
    link is not followed.
    """
    descriptor = os.open(path, _FLAGS | os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _free(descriptor, shared=False):
            raise BlockingIOError(errno.EAGAIN, "locked by another process", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_locked(path: Path) -> bool:
    """Returns whether a process holds the lock now. False if there is no such file, or if it cannot be locked."""
    try:
        descriptor = os.open(path, _FLAGS | os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _free(descriptor, shared=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _free(descriptor: int, *, shared: bool) -> bool:
    """Takes the lock if no process holds it, and returns whether it did. Raises OSError if the file system has no locks."""
    for pause in (_MOMENT, 0.0):
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            else:
                _lock_byte(descriptor)
            return True
        except (BlockingIOError, PermissionError):  # Windows: the latter
            time.sleep(pause)
    return False


def _lock_byte(descriptor: int) -> None:
    try:
        import msvcrt
    except ImportError:
        return
    os.lseek(descriptor, 0, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
