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
from pycotmech.runs.workers.queue import UnitQueue, shared_beginning
from pycotmech.runs.workers.units import BEGINNING, Answer, Unit

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
"""How many prompts that begin differently a worker is taken to keep."""
_AHEAD = 1
"""How many units a worker is sent before it has done its own."""
_PLENTY = 2
"""Units are sent ahead while at least so many for each worker wait."""
_TICK = 1.0
"""Seconds between looks at what is slow."""


@dataclass
class _Worker:
    """units: what it does, then what it was sent ahead. started: seconds at which it began the first of them. kept: the
    units that it did last, one of each beginning of prompts."""

    state: str = "off"  # off, starting, ready
    units: deque[Unit] = field(default_factory=deque)
    started: float = 0.0
    kept: list[Unit] = field(default_factory=list)

    def keep(self, unit: Unit) -> None:
        """Takes note of a unit that it was sent, in the place of one with the same beginning."""
        if unit.beginning.size:
            others = [kept for kept in self.kept if shared_beginning(kept.beginning, unit.beginning) < BEGINNING]
            self.kept = [*others, unit][-_KEPT:]


class Scheduler(Engine):
    """An engine of several workers.

    * A worker that is lost is started again, and its unit is done again; a unit that costs two workers is answered as failed.
    * If nothing waits any more, a unit that takes more than 3 times the median is given to a second worker; the first answer
      counts. Both would be the same.
    * A worker has a second unit waiting while it does the first, as long as there are plenty: so it does not wait for the
      caller, who keeps what was answered. The last units are dealt one by one, so that no worker has two when another has none.
    """

    def __init__(self, pool: Pool, *, alike: bool = True) -> None:
        """alike: whether units take about as long as one another. Otherwise none is slow, and none is sent ahead."""
        self.pool, self._alike = pool, alike
        self._workers = [_Worker() for _ in range(pool.n)]
        self._deaths: dict[Unit, int] = {}
        # Units without an answer -> who does them. By identity: numbers begin again with the next queue, and a slow worker
        # may still have a unit of the last one.
        self._doers: dict[Unit, list[int]] = {}
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
            worker.state, self._failed_starts = "ready", 0
            return None
        if isinstance(event, Lost):
            return self._lost(event, queue)
        unit = worker.units.popleft()
        worker.started = time.monotonic()
        if self._doers.pop(unit, None) is None:
            return None  # another worker was quicker
        self._deaths.pop(unit, None)
        self._seconds.append(event.answer.seconds)
        return event.answer

    def _lost(self, event: Lost, queue: UnitQueue) -> Answer | None:
        worker = self._workers[event.worker]
        if worker.state == "starting":
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RuntimeError(f"workers: {_STARTS} ended before they were ready, the last one so: {event.reason}")
        units = list(worker.units)
        self.restarts += 1
        self._start(event.worker)
        unanswered = [unit for unit in units if unit in self._doers]
        for unit in unanswered:
            self._doers[unit].remove(event.worker)
        given_up = None
        if unanswered and unanswered[0] is units[0]:  # it died while it did this one; the rest only waited
            self._deaths[units[0]] = self._deaths.get(units[0], 0) + 1
            if self._deaths[units[0]] >= _DEATHS:
                given_up = unanswered.pop(0)
                del self._deaths[given_up], self._doers[given_up]
        orphans = [unit for unit in unanswered if not self._doers[unit]]
        for unit in orphans:
            del self._doers[unit]
        queue.put_first(orphans)
        if given_up is None:
            return None
        why = f"{_DEATHS} workers ended while they did it, the last one so: {event.reason}"
        return Answer(given_up.number, error=why, final=True)

    def _deal(self, queue: UnitQueue, watch: Watch | None) -> None:
        """Gives every worker that has nothing a unit, or, if none waits, one that another worker is slow with; then a second
        unit to each as long as there are plenty."""
        ready = [(number, worker) for number, worker in enumerate(self._workers) if worker.state == "ready"]
        for depth in range(_AHEAD + 1 if self._alike else 1):
            for number, worker in ready:
                if len(worker.units) != depth or (depth and not queue.holds(_PLENTY * len(self._workers))):
                    continue
                elsewhere = [unit for other in self._workers if other is not worker for unit in other.kept]
                unit = queue.take(worker.kept, elsewhere)
                if unit is None:
                    unit = self._slow()
                    if unit is None:
                        return
                    self.reissued += 1
                elif watch is not None:
                    watch(unit, 0.0)
                self._doers.setdefault(unit, []).append(number)
                if not worker.units:
                    worker.started = time.monotonic()
                worker.units.append(unit)
                worker.keep(unit)
                self.pool.send(number, unit)

    def _slow(self) -> Unit | None:
        """The first unit with one doer of the worker that has been at its own for longest, if that takes more than `SLOW` times
        the median."""
        if not self._alike or len(self._seconds) < _LEAST_DONE:
            return None
        limit = max(SLOW * statistics.median(self._seconds), _LEAST_SLOW)
        now = time.monotonic()
        for worker in sorted(self._workers, key=lambda w: w.started):
            for unit in worker.units if now - worker.started >= limit else ():
                if len(self._doers.get(unit, ())) == 1:
                    return unit
        return None
