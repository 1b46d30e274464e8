"""Progress as the shell shows it: a bar on a terminal, a line now and then elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from typing import Any

from pycotmech.cli.options import say
from pycotmech.files.text import printable
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.speed import shown_time

_EVERY = 30.0  # seconds between lines where there is no terminal
_REDRAWN = 0.2  # seconds between two drawings of the bar


class Bars(ProgressReporter):
    """Shows progress on standard error: how much is done, the rate, the time that is left, and what was found so far."""

    def __init__(self, quiet: bool, minutes: float | None = None) -> None:
        """minutes: after so long, and the first finding, no further sweep begins; None: all sweeps do."""
        self.quiet, self.shows = quiet, not quiet
        self.until = None if minutes is None else time.monotonic() + 60 * minutes
        self.bar: Any = None
        self.task, self.unit, self.total = "", "", 0
        self.done, self.finding = 0.0, ""
        self.started = self.said = self.drawn = time.monotonic()

    def note(self, text: str) -> None:
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(printable(text, lines=True), markup=False, highlight=False)
        else:
            say(text, err=True)

    def begin(self, task: str, total: int, unit: str = "") -> None:
        self.task, self.unit, self.total, self.done = task, unit, total, 0.0
        self.started = self.drawn = time.monotonic()
        if not self.quiet and total and sys.stderr.isatty():
            self.bar = _bar()
            self.bar.add_task(printable(task), total=total, told="", found=printable(self.finding))
            self.bar.start()

    def at(self, done: float, where: str = "") -> None:
        self.done, now = done, time.monotonic()
        told = told_of(done, self.total, self.unit, now - self.started)
        if self.bar is not None:
            if now - self.drawn > _REDRAWN or done >= self.total:
                self.drawn = now
                self.bar.update(self.bar.task_ids[0], completed=done, told=told, found=printable(self.finding or where))
                self.bar.refresh()
        elif not self.quiet and now - self.said > _EVERY:
            self.said = now
            self.note("; ".join(filter(None, (f"{self.task}: {told}", where, self.finding))))

    def found(self, text: str) -> None:
        if not self.finding:
            after = shown_time(time.monotonic() - self.started)
            self.note(f"first finding, {after} after the start of {self.task}: {text}")
        self.finding = text
        self.at(self.done)

    def enough(self) -> bool:
        return self.until is not None and time.monotonic() > self.until and bool(self.finding)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def told_of(done: float, total: float, unit: str, seconds: float) -> str:
    """Says how far a task is after so many seconds: "3.5 of 40 sweeps, 4.1 s a sweep, 2.5 min left". Without a unit it is a
    share: "35 %, 2.5 min left"."""
    units = {"analysis": "analyses"}.get(unit, f"{unit}s")
    parts = [f"{done:.4g} of {total:g} {units}" if unit else f"{done / max(total, 1e-9):.0%}".replace("%", " %")]
    if done > 0 and seconds > 0:
        rate = done / seconds
        if unit:
            parts.append(f"{rate:.1f} {units} a second" if rate > 1 else f"{shown_time(1 / rate)} a {unit}")
        if done < total:
            parts.append(f"{shown_time((total - done) / rate)} left")
    return ", ".join(parts)


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    # Drawn by `at` alone: no thread that would take time from the kernels, and what is printed goes where it was sent.
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
        TextColumn("{task.fields[told]}", markup=False), TextColumn("{task.fields[found]}", markup=False, style="green"),
        console=Console(stderr=True), auto_refresh=False, redirect_stdout=False, redirect_stderr=False, transient=True,
    )  # fmt: skip


def stopped(bars: Bars, out: str) -> None:
    """What is said after Ctrl-C."""
    bars.end()
    bars.note(f"\nstopped; finished results are kept in {out}. The same command continues from there.")
