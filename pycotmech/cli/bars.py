"""Progress as the shell shows it: a bar on a terminal, a line now and then elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from typing import Any

from pycotmech.cli.options import say
from pycotmech.files.text import printable
from pycotmech.runs.progress import ProgressReporter

_EVERY = 30.0  # seconds between lines where there is no terminal


class Bars(ProgressReporter):
    """Shows progress on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.said = quiet, time.monotonic()
        self.bar: Any = None
        self.task, self.total = "", 0

    def note(self, text: str) -> None:
        if not self.quiet:
            say(text, err=True)

    def begin(self, task: str, total: int, unit: str = "") -> None:
        self.task, self.total = task, total
        if not self.quiet and total and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total, desc=task, leave=False, dynamic_ncols=True, unit=unit or "task",
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n:.1f}/{total} [{elapsed}<{remaining}, {rate_fmt}] {postfix}",
            )  # fmt: skip

    def at(self, done: float, where: str = "") -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(printable(where), refresh=False)
            self.bar.update(done - self.bar.n)
        elif not self.quiet and time.monotonic() - self.said > _EVERY:
            self.said = time.monotonic()
            self.note(f"{self.task}: {done:.1f} of {self.total}, {where}")

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def stopped(bars: Bars, out: str) -> None:
    """What is said after Ctrl-C."""
    bars.end()
    bars.note(f"\nstopped; what is finished is kept in {out}. The same command goes on from there.")
