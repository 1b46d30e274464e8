"""Reports the progress of a run, and keeps it from being stopped in the middle of a write."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ProgressReporter:
    """Receives what happens, so that the shell can show it. This one shows nothing."""

    def note(self, text: str) -> None:
        """A line for the user."""

    def begin(self, task: str, total: int, unit: str = "") -> None:
        """A task of `total` units begins."""

    def at(self, done: float, where: str = "") -> None:
        """So much of the task is done; `where` says what comes next."""

    def end(self) -> None:
        """The task is over, done or not."""


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Holds Ctrl-C and SIGTERM back until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(s, lambda number, frame: caught.append(number)) for s in signals]
    try:
        yield
    finally:
        for s, handler in zip(signals, before, strict=True):
            signal.signal(s, handler)
    if caught:
        signal.raise_signal(caught[0])
