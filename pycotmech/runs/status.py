"""How far a results folder is: what is finished, pending, skipped and failed, how fast it goes, and who writes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pycotmech.display import Described
from pycotmech.files.text import printable
from pycotmech.runs.attention import STORE as ATTENTION
from pycotmech.runs.events import Events, read_events, seconds_of
from pycotmech.runs.folder import checked_path, is_written
from pycotmech.runs.store import STORE, SweepState, existing_store, open_store, read_all, stored_identity

PAPER = "paper.json"
"""What a folder of `pycotmech paper` holds."""
SETTINGS = "settings"
"""The subfolder of a paper's folder with a folder for each harder setting."""
TRACE = "trace.json"
"""What a folder of `pycotmech trace` holds."""
OF_ALL_TRACES = ("chain_use", "receiver_heads")
"""The analyses in it that are of all traces. Those of one trace are in folders trace_000, ..."""
NO_RESULTS = "holds no results of run, sweep, paper, attention or trace"


@dataclass(frozen=True)
class Status(Described):
    """The state of a results folder.

    kind: "run", "sweep" (a run on the user's pairs), "paper", "attention" or "trace". unit: what is counted.
    finished, pending, skipped, failed: numbers of units. A unit that failed is pending too, and a later run tries it again.
    failures: why, by unit, the last time. per_hour: units finished an hour in the last process; None if it finished none.
    seconds_left: predicted for what is pending; None if nothing says how fast it goes. writing: whether a process writes now;
    pid, host: the last one that did. last: time of the last event, UTC. settings: of the settings of a paper's folder by name.
    """

    folder: Path
    kind: str
    unit: str
    finished: int
    pending: int
    skipped: int = 0
    failed: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    per_hour: float | None = None
    seconds_left: float | None = None
    writing: bool = False
    pid: int | None = None
    host: str | None = None
    last: str | None = None
    settings: dict[str, Status] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The same in JSON values."""
        return {
            **asdict(self),
            "folder": str(self.folder),
            "settings": {name: status.to_dict() for name, status in self.settings.items()},
        }

    def __str__(self) -> str:
        units = "analyses" if self.unit == "analysis" else f"{self.unit}s"
        counts = {"finished": self.finished, "pending": self.pending, "skipped": self.skipped, "failed": self.failed}
        shown = [f"{n} {word}" for word, n in counts.items() if n or word in ("finished", "pending")]
        lines = [f"{printable(self.folder)} ({self.kind}): {units}: {', '.join(shown)}"]
        if self.per_hour is not None and self.pending:
            left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
            lines.append(f"{self.per_hour:,.3g} {units} an hour{left}")
        if self.writing:
            by = f"process {self.pid} on {printable(self.host)}" if self.pid is not None else "a process"
            lines.append(f"{by} is writing now")
        elif self.pending:
            lines.append("nobody is writing; the same command continues")
        if self.last is not None:
            lines.append(f"last event {self.last}")
        lines += [f"failed: {printable(unit)}: {printable(why)}" for unit, why in self.failures.items()]
        lines += [f"setting {printable(name)}: {str(status).splitlines()[0]}" for name, status in self.settings.items()]
        return "\n".join(lines)


def status_of(folder: str | os.PathLike) -> Status:
    """Returns the state of a results folder, whether or not a process writes to it. Nothing is changed.

    Raises FileNotFoundError naming the folder where it is missing or holds no results.
    Cost: one small chunk for each example is read.
    """
    path = checked_path(folder, "folder")
    if not path.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {printable(path)}")
    log = read_events(path)
    if (path / STORE).exists():
        return _of_sweeps(path, log)
    if (path / PAPER).is_file() or (path / "data").is_dir():
        return _of_paper(path, log)
    if (path / ATTENTION).is_dir():
        return Status(path, "attention", "text", 1, 0, writing=is_written(path))
    if holds_traces(path):
        return _of_analyses(path, "trace", set(names_of_traces(path)), log)
    raise FileNotFoundError(f"folder: {printable(path)} {NO_RESULTS}")


def holds_traces(folder: Path) -> bool:
    """Whether a folder is one of `pycotmech trace`, even if its file of settings is lost."""
    return (folder / TRACE).is_file() or bool(names_of_traces(folder))


def names_of_traces(folder: Path) -> tuple[str, ...]:
    """The finished analyses in a folder of `pycotmech trace`: "receiver_heads", "trace_000/suppress", ...; symbolic links are
    not followed."""
    found = [name for name in OF_ALL_TRACES if _is_folder(folder / f"{name}.zarr")]
    for place in sorted(folder.glob("trace_[0-9]*")):
        if _is_folder(place):
            found += sorted(f"{place.name}/{p.name.removesuffix('.zarr')}" for p in place.glob("*.zarr") if _is_folder(p))
    return tuple(found)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _of_sweeps(path: Path, log: Events) -> Status:
    arrays = open_store(existing_store(path), "r")
    state = read_all(path / STORE, arrays["state"])
    counts = {kind: int((state == kind).sum()) for kind in SweepState}
    failures = {}
    for event in log.events:
        example, steps = event.get("example"), event.get("steps")
        if type(example) is not int or not isinstance(steps, list) or not 0 <= example < len(state):
            continue
        for step in (s for s in steps if type(s) is int and 0 <= s < state.shape[1]):
            unit = f"example {example}, step {step}"
            if event["event"] == "failed" and state[example, step] == SweepState.PENDING:
                failures[unit] = str(event.get("why", ""))
            elif event["event"] == "finished":
                failures.pop(unit, None)
    pending = counts[SweepState.PENDING]
    per_second = _rate(log, lambda event: len(event["steps"]) if isinstance(event.get("steps"), list) else 0)
    kind = "sweep" if "pairs" in (stored_identity(path) or {}) else "run"
    return Status(
        path, kind, "sweep", counts[SweepState.FINISHED], pending, counts[SweepState.SKIPPED], len(failures), failures,
        None if per_second is None else 3600 * per_second,
        None if per_second is None else pending / per_second,
        **_writer(path, log),
    )  # fmt: skip


def _of_paper(path: Path, log: Events) -> Status:
    stored = {found.name.removesuffix(".zarr") for found in (path / "data").glob("*.zarr")}
    settings = {}
    if _is_folder(path / SETTINGS):
        for below in sorted((path / SETTINGS).iterdir()):
            if below.is_dir() and ((below / PAPER).is_file() or (below / "data").is_dir()):
                settings[below.name] = status_of(below)
    return _of_analyses(path, "paper", stored, log, settings)


def _of_analyses(path: Path, kind: str, stored: set[str], log: Events, settings: Mapping[str, Status] | None = None) -> Status:
    """Of a folder of analyses. Their times differ, so that the time left is what was predicted for them, corrected by how
    long the finished ones took. stored: the names of those that are finished."""
    predicted: dict[str, Any] = {}
    for event in log.events:
        if event["event"] == "plan" and isinstance(event.get("units"), dict):
            predicted = event["units"]
    failures: dict[str, str] = {}
    taken: dict[str, float] = {}
    for event in log.events:
        unit = event.get("unit")
        if not isinstance(unit, str):
            continue
        if event["event"] == "failed":
            failures[unit] = str(event.get("why", ""))
        elif event["event"] == "finished":
            failures.pop(unit, None)
            if isinstance(event.get("seconds"), int | float):
                taken[unit] = float(event["seconds"])
    pending = [name for name in predicted if name not in stored]
    known = [n for n in taken if isinstance(predicted.get(n), int | float)]
    expected = sum(predicted[n] for n in known)
    left = sum(predicted[n] for n in pending if isinstance(predicted[n], int | float))
    ratio = sum(taken[n] for n in known) / expected if expected > 0 else 1.0
    rate = _rate(log, lambda event: 1)
    return Status(
        path, kind, "analysis", len(stored), len(pending), 0, len(failures), failures,
        None if rate is None else 3600 * rate, ratio * left if predicted else None, **_writer(path, log),
        settings=dict(settings or {}),
    )  # fmt: skip


def _rate(log: Events, units: Any) -> float | None:
    """Units finished a second, from the beginning of the last process to the last unit that it finished."""
    begin, done, end = None, 0, None
    for event in log.events:
        if event["event"] in ("start", "resume"):
            begin, done, end = seconds_of(event), 0, None
        elif event["event"] == "finished":
            done += units(event)
            end = seconds_of(event)
    if begin is None or end is None or done == 0 or end <= begin or end > time.time() + 60:
        return None
    return done / (end - begin)


def _writer(path: Path, log: Events) -> dict[str, Any]:
    last = log.events[-1] if log.events else {}
    begun = next((e for e in reversed(log.events) if e["event"] in ("start", "resume")), {})
    pid, host = begun.get("pid"), begun.get("host")
    return {
        "writing": is_written(path),
        "pid": pid if type(pid) is int else None,
        "host": host if isinstance(host, str) else None,
        "last": last.get("time"),
    }


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.1f} h" if minutes < 60 * 48 else f"{minutes / 60 / 24:.1f} days"
