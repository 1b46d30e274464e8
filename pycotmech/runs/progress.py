"""Reports the progress of a run, and keeps it from being stopped in the middle of a write."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pycotmech._words import plural


class ProgressReporter:
    """Receives what happens, so that the shell can show it. This one shows nothing."""

    shows = False
    """Whether anything is shown, so that findings are worth computing."""

    def note(self, text: str) -> None:
        """A line for the user."""

    def begin(self, task: str, total: int, unit: str = "") -> None:
        """A task of `total` units begins."""

    def at(self, done: float, where: str = "") -> None:
        """So much of the task is done; `where` says what comes next."""

    def found(self, text: str) -> None:
        """What the results so far say, in a few words."""

    def enough(self) -> bool:
        """Whether no further sweep is to begin. What is finished is kept, and the same run goes on from there."""
        return False

    def end(self) -> None:
        """The task is over, done or not."""


class StrongestHead:
    """The head with the largest mean effect at a step, over the sweeps so far."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[NDArray[np.float64], int, float]] = {}

    def add(self, step: str, effect: NDArray, noise_floor: float) -> str:
        """Takes the effects [L, H] of a sweep, and returns which head is the strongest of all steps now, in words. Ties go to
        the earlier step and the lower layer."""
        total, n, floor = self._sums.get(step, (0.0, 0, 0.0))
        self._sums[step] = (total + np.nan_to_num(np.asarray(effect, dtype=np.float64)), n + 1, floor + noise_floor)
        means = {name: (found / n, n, floor / n) for name, (found, n, floor) in self._sums.items()}
        best = max(means, key=lambda name: np.abs(means[name][0]).max())
        mean, n, floor = means[best]
        layer, head = np.unravel_index(np.abs(mean).argmax(), mean.shape)
        if abs(mean[layer, head]) <= floor:
            return "no head beyond rounding so far"
        of = f"{best}, {plural(n, 'sweep')}"
        return f"the strongest head so far is L{layer}H{head}, effect {mean[layer, head]:+.2f} ({of})"


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
