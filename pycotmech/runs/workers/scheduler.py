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
from pycotmech.runs.workers.queue import Tokens, UnitQueue, shared_beginning
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
    """units: what it does, then what it was sent ahead. started: seconds at which it began the first of them. kept: the prompts
    [T] that it did last, one of each beginning."""

    state: str = "off"  # off, starting, ready
    units: deque[Unit] = field(default_factory=deque)
    started: float = 0.0
    kept: list[Tokens] = field(default_factory=list)

    def keep(self, tokens: Tokens) -> None:
        """Takes note of the prompt that it does now, in the place of one with the same beginning."""
        if tokens.size:
            others = [prompt for prompt in self.kept if shared_beginning(prompt, tokens) < BEGINNING]
            self.kept = [*others, tokens][-_KEPT:]


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
        orphans = [unit for unit in units if self._is_orphan(unit, event.worker)]
        for unit in orphans:
            del self._doers[unit]
        if units and (units[0] in orphans or units[0] in self._doers):
            lost = units[0]
            self._deaths[lost] = self._deaths.get(lost, 0) + 1
            if self._deaths[lost] >= _DEATHS:
                self._doers.pop(lost, None)
                del self._deaths[lost]
                queue.put_first([unit for unit in orphans if unit is not lost])
                return Answer(
                    lost.number, error=f"{_DEATHS} workers ended while they did it, the last one so: {event.reason}", final=True
                )
        queue.put_first(orphans)
        return None

    def _is_orphan(self, unit: Unit, worker: int) -> bool:
        """Whether a unit that this worker had has no other doer, and no answer. The worker is taken off its doers."""
        doers = self._doers.get(unit)
        if doers is None:
            return False
        doers.remove(worker)
        return not doers

    def _deal(self, queue: UnitQueue, watch: Watch | None) -> None:
        """Gives every worker that has nothing a unit, or, if none waits, one that another worker is slow with; then a second
        unit to each as long as there are plenty."""
        ready = [(number, worker) for number, worker in enumerate(self._workers) if worker.state == "ready"]
        for depth in range(_AHEAD + 1 if self._alike else 1):
            for number, worker in ready:
                if len(worker.units) != depth or (depth and not queue.holds(_PLENTY * len(self._workers))):
                    continue
                elsewhere = [prompt for other in self._workers if other is not worker for prompt in other.kept]
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
                worker.keep(unit.beginning)
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
