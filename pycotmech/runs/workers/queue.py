"""Units that wait for a worker, taken from an iterator as they are needed, so that their number costs no memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterable

from pycotmech.runs.workers.units import Unit

WINDOW = 64
"""How many units are looked at for one whose prefix a worker keeps."""


class UnitQueue:
    """Units in order, with a look at the next ones.

    A worker that asks gets a unit whose prefix it keeps, otherwise the first whose prefix no other worker keeps, otherwise the
    first. Which worker does a unit changes nothing in its result.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self._first: deque[Unit] = deque()
        self._window: list[Unit] = []
        self._rest = iter(units)

    def put_first(self, units: Iterable[Unit]) -> None:
        """Puts units before all others, in their order."""
        self._first.extendleft(reversed(list(units)))

    def waits(self) -> bool:
        """Whether there is a unit now."""
        self._fill()
        return bool(self._first or self._window)

    def take(self, kept: Container[bytes] = (), elsewhere: Container[bytes] = ()) -> Unit | None:
        """Returns the next unit for a worker, or None if there is none now. kept, elsewhere: prefixes that this worker and the
        others keep."""
        if self._first:
            return self._first.popleft()
        self._fill()
        if not self._window:
            return None
        prefixes = [unit.prefix for unit in self._window] if kept or elsewhere else []
        own = next((i for i, prefix in enumerate(prefixes) if not prefix or prefix in kept), None)
        free = next((i for i, prefix in enumerate(prefixes) if prefix not in elsewhere), 0)
        return self._window.pop(free if own is None else own)

    def _fill(self) -> None:
        while len(self._window) < WINDOW and (unit := next(self._rest, None)) is not None:
            self._window.append(unit)
