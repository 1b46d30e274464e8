"""Deals units to the workers of a pool, and answers for them when a worker is lost or slow."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from pycotmech.runs.progress import uninterrupted
from pycotmech.runs.workers.engine import Engine, Watch
from pycotmech.runs.workers.pool import Answered, Lost, Pool, Ready, Refused
from pycotmech.runs.workers.queue import UnitQueue
from pycotmech.runs.workers.units import Answer, Unit

SLOW = 3.0
"""A unit that takes so many times the median is given to a second worker, if one has nothing to do."""
_LEAST_SLOW = 2.0
"""Seconds below which no unit counts as slow: what differs there is the machine."""
_MEDIAN_OF, _LEAST_DONE = 101, 5
"""The median is that of the last units, and there is none before so many are done."""
_DEATHS = 2
"""How many workers a unit may cost before it counts as failed."""
_STARTS = 3
"""How often workers may end before they were ready, one after another, before the run gives up."""
_KEPT = 4
"""How many prefixes a worker is taken to keep."""
_TICK = 1.0
"""Seconds between looks at what is slow."""


@dataclass
class _Worker:
    """started: seconds at which its unit was sent. kept: prefixes of its last units."""

    state: str = "off"  # off, starting, idle, busy
    unit: Unit | None = None
    started: float = 0.0
    kept: deque[bytes] = field(default_factory=lambda: deque(maxlen=_KEPT))


class Scheduler(Engine):
    """An engine of several workers.

    * A worker that is lost is started again, and its unit is done again; a unit that costs two workers is answered as failed.
    * If nothing waits any more, a unit that takes more than 3 times the median is given to a second worker; the first answer
      counts. Both would be the same.
    * The next unit is dealt before an answer is yielded, so that workers do not wait for the caller.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._workers = [_Worker() for _ in range(pool.n)]
        self._deaths: dict[int, int] = {}
        self._doers: dict[int, list[int]] = {}  # number of a unit without an answer -> who does it
        self._seconds: deque[float] = deque(maxlen=_MEDIAN_OF)
        self._failed_starts = 0
        self.restarts = 0
        """How many workers were lost and started again."""
        self.reissued = 0
        """How many units were given to a second worker."""

    def answers(self, queue: UnitQueue, watch: Watch | None = None) -> Iterator[Answer]:
        if not queue.waits():
            return
        for number, worker in enumerate(self._workers):
            if worker.state == "off":
                self._start(number)
        while True:
            self._deal(queue, watch)
            if not self._doers and not queue.waits():
                return
            found = [answer for event in self.pool.wait(_TICK) if (answer := self._heard(event, queue)) is not None]
            if found:
                self._deal(queue, watch)
            yield from found

    def close(self) -> None:
        with uninterrupted():
            self.pool.close()
        self._workers = [_Worker() for _ in self._workers]
        self._doers.clear()

    def _start(self, number: int) -> None:
        self._workers[number] = _Worker("starting")
        self.pool.start(number)

    def _heard(self, event: Ready | Answered | Lost | Refused, queue: UnitQueue) -> Answer | None:
        """Takes note of what happened. Returns an answer for the caller, if that is what it was."""
        worker = self._workers[event.worker]
        if isinstance(event, Refused):
            raise event.error
        if isinstance(event, Ready):
            worker.state, self._failed_starts = "idle", 0
            return None
        if isinstance(event, Lost):
            return self._lost(event, queue)
        unit, worker.unit, worker.state = worker.unit, None, "idle"
        doers = self._doers.pop(event.answer.unit, None)
        if unit is None or unit.number != event.answer.unit or doers is None:
            return None  # another worker was quicker
        self._deaths.pop(unit.number, None)
        self._seconds.append(event.answer.seconds)
        return event.answer

    def _lost(self, event: Lost, queue: UnitQueue) -> Answer | None:
        worker = self._workers[event.worker]
        if worker.state == "starting":
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RuntimeError(f"workers: {_STARTS} ended before they were ready, the last one so: {event.reason}")
        unit = worker.unit
        self.restarts += 1
        self._start(event.worker)
        if unit is None or unit.number not in self._doers:
            return None
        self._deaths[unit.number] = self._deaths.get(unit.number, 0) + 1
        doers = self._doers[unit.number]
        doers.remove(event.worker)
        if self._deaths[unit.number] >= _DEATHS:
            del self._doers[unit.number], self._deaths[unit.number]
            return Answer(
                unit.number, error=f"{_DEATHS} workers ended while they did it, the last one so: {event.reason}", final=True
            )
        if not doers:
            del self._doers[unit.number]
            queue.put_first([unit])
        return None

    def _deal(self, queue: UnitQueue, watch: Watch | None) -> None:
        """Gives every idle worker a unit, or, if none waits, one that another worker is slow with."""
        for number, worker in enumerate(self._workers):
            if worker.state != "idle":
                continue
            elsewhere = {p for other in self._workers if other is not worker for p in other.kept}
            unit = queue.take(worker.kept, elsewhere)
            if unit is None:
                unit = self._slow()
                if unit is None:
                    return
                self.reissued += 1
            elif watch is not None:
                watch(unit, 0.0)
            self._doers.setdefault(unit.number, []).append(number)
            worker.state, worker.unit, worker.started = "busy", unit, time.monotonic()
            if (prefix := unit.prefix) and prefix not in worker.kept:
                worker.kept.append(prefix)
            self.pool.send(number, unit)

    def _slow(self) -> Unit | None:
        """The unit that one worker has done for longest, if it takes more than `SLOW` times the median."""
        if len(self._seconds) < _LEAST_DONE:
            return None
        limit = max(SLOW * statistics.median(self._seconds), _LEAST_SLOW)
        busy = [w for w in self._workers if w.unit is not None and len(self._doers.get(w.unit.number, ())) == 1]
        oldest = min(busy, key=lambda w: w.started, default=None)
        return None if oldest is None or time.monotonic() - oldest.started < limit else oldest.unit
