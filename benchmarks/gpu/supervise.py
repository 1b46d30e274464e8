"""Runs phases one after another, each in a process that is killed when its time is over; writes what they find as they go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.found import BAD, CHECK, FIGURE, NO_TIME, read_rows

Command = Callable[[str, Path, Path, float], list[str]]
"""(phase, file for its rows, file with the results so far, its limit in seconds) -> what to run."""

_POLL = 1.0
_LEAST = 10.0
"""The fewest seconds that a phase gets, whatever its share. If fewer are left, none begins."""
_KILLED = 10.0
"""Seconds that a process may take to end once it is killed; one that waits for the driver may never."""
_SAID = 20_000
"""Characters of a phase's output that errors.txt keeps."""
NO_DEVICE = 3
"""Exit status of a phase that found no such device: no other phase would."""
FILES = ("results.json", "table.md", "errors.txt")


@dataclass
class Results:
    """What is in DIR: results.json, table.md and errors.txt."""

    folder: Path
    asked: dict[str, Any]
    phases: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """Checks that failed, figures that were withheld, phases that did not end, and what there was no time for."""
        out = []
        for name, phase in self.phases.items():
            if phase["ended"] not in ("ok", "running"):
                out.append(f"{name}: {phase['ended']}")
            for row in phase["rows"]:
                if row["kind"] in BAD or row["value"] == NO_TIME or (row["kind"] == CHECK and not row["passed"]):
                    out.append(f"{name}: {row['what']}: {row['value']}")
        return out

    def save(self) -> None:
        """Writes both files whole, each in one step."""
        text = json.dumps({"asked": self.asked, "phases": self.phases}, indent=1, default=str, allow_nan=False)
        _write(self.folder / "results.json", text)
        _write(self.folder / "table.md", self.table())

    def table(self) -> str:
        """Markdown: what failed, then a row for each fact, check and figure."""
        checks = [row for phase in self.phases.values() for row in phase["rows"] if row["kind"] == CHECK]
        passed = sum(row["passed"] for row in checks)
        lines = ["# Checks and speed on one device", ""]
        device, small = self.asked.get("device"), self.asked.get("small")
        if small or device == "cpu":
            sizes = "small" if small else "full"
            lines += [f"**The figures mean nothing**: device {device}, {sizes} sizes. Checks and phases are what counts.", ""]
        ended = sum(phase["ended"] == "ok" for phase in self.phases.values())
        lines += [f"{passed} of {len(checks)} checks passed; {ended} of {len(self.phases)} phases ended.", ""]
        lines += [*(f"* FAILS: {_cell(line)}" for line in self.failed), *([""] if self.failed else [])]
        lines += ["| phase | what | value | |", "|---|---|---|---|"]
        for name, phase in self.phases.items():
            for row in phase["rows"]:
                lines.append(f"| {name} | {_cell(row['what'])} | {_cell(_value(row))} | {_cell(_note(row))} |")
            lines.append(f"| {name} | seconds | {phase['seconds']:.0f} of {phase['limit']:.0f} | {phase['ended']} |")
        return "\n".join(lines) + "\n"


def run(folder: Path, shares: Mapping[str, float], seconds: float, command: Command, asked: dict[str, Any]) -> Results:
    """Runs the phases in this order. shares: of the time that is left, each phase may use its share among those to come, so
    that what one leaves goes to the next ones.

    Results of a run before this one are kept in the folder as before-*. Raises OSError if the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (folder / name).exists():
            (folder / name).replace(folder / f"before-{name}")
        else:
            (folder / f"before-{name}").unlink(missing_ok=True)
    Results(folder, asked).save()
    results, began, names = Results(folder, asked), time.monotonic(), list(shares)
    with tempfile.TemporaryDirectory() as scratch:
        known = Path(scratch) / "known.json"
        for i, name in enumerate(names):
            limit = limit_of(seconds - (time.monotonic() - began), [shares[n] for n in names[i:]])
            phase = results.phases[name] = {"rows": [], "ended": "running", "seconds": 0.0, "limit": limit}
            if limit < _LEAST:
                phase["ended"] = NO_TIME
            else:
                known.write_text(json.dumps({n: p["rows"] for n, p in results.phases.items()}))
                rows = Path(scratch) / f"{name}.jsonl"
                status = _run_one(name, command(name, rows, known, limit), rows, Path(scratch) / f"{name}.log", phase, results)
                print(f"{name}: {phase['ended']} after {phase['seconds']:.0f} s", flush=True)
                if status == NO_DEVICE:
                    break
            results.save()
    return results


def limit_of(left: float, shares: Sequence[float]) -> float:
    """Seconds of the next phase, 0 if none are left. shares: its own, and then those of the phases after it."""
    return max(0.0, min(left, max(left * shares[0] / sum(shares), _LEAST)))


def _run_one(name: str, command: list[str], rows: Path, log: Path, phase: dict[str, Any], results: Results) -> int | None:
    """Returns the exit status, if there is one."""
    start = time.monotonic()
    with log.open("w") as said:
        worker = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while worker.poll() is None and time.monotonic() - start < phase["limit"]:
            try:
                worker.wait(min(_POLL, max(0.01, phase["limit"] - (time.monotonic() - start))))
            except subprocess.TimeoutExpired:
                found = read_rows(rows)
                if len(found) > len(phase["rows"]):
                    phase["rows"], phase["seconds"] = found, time.monotonic() - start
                    results.save()
    finally:  # also when this process is interrupted
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            phase["ended"] = f"stopped after {time.monotonic() - start:.0f} s"
            try:
                worker.wait(_KILLED)
            except subprocess.TimeoutExpired:
                phase["ended"] += ", and its process does not end"
        phase["rows"], phase["seconds"] = read_rows(rows), time.monotonic() - start
        if phase["ended"] == "running":
            phase["ended"] = _ended(worker.returncode)
        text = log.read_text(errors="replace")
        if phase["ended"] != "ok" or any(row["kind"] in BAD for row in phase["rows"]):
            with (results.folder / "errors.txt").open("a") as f:
                f.write(f"==== {name}: {phase['ended']}\n{text[-_SAID:]}\n")
        results.save()
    return worker.returncode


def _ended(status: int) -> str:
    if status >= 0:
        return f"exit status {status}" if status else "ok"
    try:
        return f"ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"ended by signal {-status}"


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text)
    part.replace(path)


def _value(row: dict[str, Any]) -> str:
    text = _number(row["value"])
    return f"{text} {row['unit']}" if row["kind"] == FIGURE else text


def _note(row: dict[str, Any]) -> str:
    if row["kind"] == CHECK:
        return f"{'at most' if row['passed'] else 'FAILS: more than'} {_number(row['limit'], 2)}"
    if row.get("spread"):
        return " to ".join(map(_number, row["spread"]))
    return "" if row["kind"] in (FIGURE, "fact") else row["kind"]


def _number(x: object, digits: int = 4) -> str:
    return f"{x:.{digits}g}" if isinstance(x, float) else str(x)


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
