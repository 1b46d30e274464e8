"""Units that wait for a worker, taken from an iterator as they are needed, so that their number costs no memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pycotmech.runs.workers.units import Unit

WINDOW = 256
"""How many units are looked at for one whose beginning a worker keeps: several examples for each of many workers."""


class UnitQueue:
    """Units in order, with a look at the next ones.

    A worker that asks gets the unit that shares most with what it did last, but none that shares more with what another worker
    did: so the steps of an example, whose prompts extend each other, are done by one worker, and what they have in common is
    computed once. If all units share more with what others did, it gets the one of which that is least true. Among equals the
    first counts. Which worker does a unit changes nothing in its result.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self._first: deque[Unit] = deque()
        self._window: list[_Waiting] = []
        self._rest = iter(units)

    def put_first(self, units: Iterable[Unit]) -> None:
        """Puts units before all others, in their order."""
        self._first.extendleft(reversed(list(units)))

    def drop(self) -> None:
        """Takes out all units that wait; those that are being done are not touched."""
        self._first.clear()
        self._window.clear()
        self._rest = iter(())

    def waits(self) -> bool:
        """Whether there is a unit now."""
        self._fill()
        return bool(self._first or self._window)

    def holds(self, n: int) -> bool:
        """Whether at least n units wait. n: at most `WINDOW`."""
        self._fill()
        return len(self._first) + len(self._window) >= min(n, WINDOW)

    def take(self, kept: Sequence[Unit] = (), elsewhere: Sequence[Unit] = ()) -> Unit | None:
        """Returns the next unit for a worker, or None if there is none now. kept, elsewhere: units that this worker and the
        others did last."""
        if self._first:
            return self._first.popleft()
        self._fill()
        if not self._window:
            return None
        return self._window.pop(self._best(kept, elsewhere) if kept or elsewhere else 0).unit

    def _best(self, kept: Sequence[Unit], elsewhere: Sequence[Unit]) -> int:
        own = np.array([waiting.most_shared(kept) for waiting in self._window])
        theirs = np.array([waiting.most_shared(elsewhere) for waiting in self._window])
        free = own >= theirs
        return int(np.where(free, own, -1).argmax() if free.any() else (theirs - own).argmin())

    def _fill(self) -> None:
        while len(self._window) < WINDOW and (unit := next(self._rest, None)) is not None:
            self._window.append(_Waiting(unit))


def shared_beginning(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Number of tokens that two prompts have in common before they part."""
    n = min(len(first), len(second))
    differ = np.flatnonzero(first[:n] != second[:n])
    return int(differ[0]) if differ.size else n


class _Waiting:
    """A unit in the window. What it shares with a unit that was done is found once, for it is asked at every deal."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._shared: dict[Unit, int] = {}

    def most_shared(self, others: Sequence[Unit]) -> int:
        """Number of tokens at its beginning that it has in common with one of the others."""
        for other in others:
            if other not in self._shared:
                self._shared[other] = shared_beginning(self.unit.beginning, other.beginning)
        return max((self._shared[other] for other in others), default=0)
