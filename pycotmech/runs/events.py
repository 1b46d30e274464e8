"""What happened in a results folder, as it happens: `events.jsonl`, one JSON object a line, only ever appended to.

Each line has `time` (UTC), `pid`, `event` and `crc32`, a checksum; the other fields depend on the event:

start, resume: a process begins to write; `kind`, `host`, `versions`, and the numbers of units (`finished`, `pending`, ...).
plan: what it is going to do; `units`, for the paper with the predicted seconds of each.
finished: a unit is on the disk; `seconds`. skipped: a unit will not be done. failed: it could not be done; `why`.
accepted: differences that were accepted when an earlier run was continued.
stop: the process ends; `why` is "done", "interrupted" or "error".

The log describes; it decides nothing. What is finished is read from the results themselves.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

EVENTS = "events.jsonl"
_CHECK = "crc32"
"""Name of the last field of each line: the CRC-32 of the line without that field."""


class Events(NamedTuple):
    """What a log holds. events: in order. torn: lines that are not what was written, as a process that died leaves them."""

    events: list[dict[str, Any]]
    torn: int


class EventLog:
    """Appends to the log of a folder. The caller holds the folder's lock (`open_folder`)."""

    def __init__(self, folder: str | os.PathLike) -> None:
        self.path = Path(folder) / EVENTS

    def write(self, event: str, **fields: Any) -> None:
        """Appends one event, in one write. A line that a dying process left unfinished is ended first.

        Raises ValueError where a symbolic link has the log's place.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = _checked({"time": now, "pid": os.getpid(), "event": event, **fields})
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):  # the last on Windows, where line ends would be changed
            flags |= getattr(os, name, 0)
        try:
            descriptor = os.open(self.path, flags, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ValueError(f"out: {self.path} is a symbolic link, which is not followed. Remove it") from error
            raise
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and _last_byte(descriptor, size) != b"\n"
            os.write(descriptor, (("\n" if torn else "") + line + "\n").encode("utf-8", "backslashreplace"))
        finally:
            os.close(descriptor)

    def begin(self, event: str, kind: str, **fields: Any) -> None:
        """Appends "start" or "resume" with what a reader wants to know of the process."""
        self.write(event, kind=kind, host=socket.gethostname(), **fields)

    def size(self) -> int:
        """Bytes of the log; 0 where there is none."""
        try:
            return self.path.lstat().st_size
        except OSError:
            return 0


@contextmanager
def stop_recorded(folder: Path) -> Iterator[None]:
    """Appends "stop" when the block ends, however it ends, if anything was recorded in it."""
    log = EventLog(folder)
    before, why, said = log.size(), "done", ""
    try:
        yield
    except KeyboardInterrupt:
        why = "interrupted"
        raise
    except BaseException as error:
        why, said = "error", str(error) or type(error).__name__
        raise
    finally:
        if log.size() != before:
            try:
                log.write("stop", why=why, **({"error": said} if said else {}))
            except OSError:
                if why != "error":  # a full disk has been reported already
                    raise


def read_events(folder: str | os.PathLike) -> Events:
    """Reads the log of a folder. Lines that cannot be read are counted and left out; a folder without a log has no events."""
    events: list[dict[str, Any]] = []
    torn = 0
    path = Path(folder) / EVENTS
    if not path.is_file() or path.is_symlink():
        return Events(events, torn)
    with path.open("rb") as file:
        for line in file:
            try:
                found = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError):
                found = None
            if isinstance(found, dict) and not _holds(line, found):
                found = None
            if isinstance(found, dict) and isinstance(found.get("event"), str) and seconds_of(found) is not None:
                events.append(found)
            elif line.strip():
                torn += 1
    return Events(events, torn)


def seconds_of(event: Mapping[str, Any]) -> float | None:
    """The time of an event in seconds since 1970; None where it has none."""
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _checked(event: Mapping[str, Any]) -> str:
    """The event as JSON, with a checksum of it as its last field."""
    line = json.dumps(event, ensure_ascii=False, default=str)
    return f'{line[:-1]}, "{_CHECK}": "{_sum(line.encode("utf-8", "backslashreplace"))}"}}'


def _holds(line: bytes, event: Mapping[str, Any]) -> bool:
    """Whether a line is what was written. One without a checksum is taken as it is: earlier versions wrote none."""
    if _CHECK not in event:
        return True
    body, found, _ = line.rpartition(f', "{_CHECK}"'.encode())
    return bool(found) and event[_CHECK] == _sum(body + b"}")


def _sum(line: bytes) -> str:
    return f"{zlib.crc32(line):08x}"


def _last_byte(descriptor: int, size: int) -> bytes:
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1)
