"""Dealing units: who gets which, what a lost or slow worker costs, and what is given up."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from pycotmech.runs.workers import scheduler as module
from pycotmech.runs.workers.pool import Answered, Event, Lost, Ready, Refused
from pycotmech.runs.workers.queue import WINDOW, UnitQueue
from pycotmech.runs.workers.scheduler import Scheduler
from pycotmech.runs.workers.units import Answer, PatchUnit, Unit
from tests.runs.workers.doubles import unit_of


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


class FakePool:
    """Workers that answer in the next `wait`, as `play` says for a worker and a unit: an event, or None for not yet."""

    def __init__(self, n: int, play: Callable[[int, Unit], Event | None] | None = None, clock: Clock | None = None) -> None:
        self.n, self.clock = n, clock
        self.play = play or (lambda worker, unit: Answered(worker, Answer(unit.number, seconds=1.0)))
        self.started: list[int] = []
        self.sent: list[tuple[int, int]] = []
        self.closed = False
        self._events: list[Event] = []
        self._doing: dict[int, list[Unit]] = {}

    def start(self, worker: int) -> None:
        self.started.append(worker)
        self._doing[worker] = []
        self._events.append(Ready(worker))

    def send(self, worker: int, unit: Unit) -> None:
        self.sent.append((worker, unit.number))
        self._doing[worker].append(unit)

    def wait(self, timeout: float) -> list[Event]:
        if self.clock is not None:
            self.clock.now += timeout
        events, self._events = self._events, []
        for worker, units in self._doing.items():
            event = self.play(worker, units[0]) if units else None
            if event is not None:
                units.pop(0)
                events.append(event)
        return events

    def close(self) -> None:
        self.closed = True


def numbers(engine: Scheduler, queue: UnitQueue) -> list[int]:
    return [answer.unit for answer in engine.answers(queue)]


def test_every_unit_is_answered_once_and_only_as_many_are_taken_as_are_needed():
    taken = []
    pool = FakePool(2)
    units = (taken.append(i) or unit_of(i) for i in range(1000))
    with Scheduler(pool) as engine:
        answers = engine.answers(UnitQueue(units))
        first = [next(answers).unit for _ in range(4)]
        assert len(taken) <= len(pool.sent) + WINDOW
        assert sorted(first + [answer.unit for answer in answers]) == list(range(1000))
    assert pool.closed and len(pool.sent) == 1000


def test_nothing_to_do_starts_nobody():
    pool = FakePool(2)
    assert numbers(Scheduler(pool), UnitQueue([])) == [] and pool.started == []


def test_a_worker_keeps_its_prefix():
    """Units of two prompts' beginnings, in turn: each worker computes one of them."""
    units = [unit_of(i, prefix=1 + i % 2) for i in range(40)]
    assert units[0].beginning[0] != units[1].beginning[0] and unit_of(0).beginning.size == 0
    pool = FakePool(2)
    assert sorted(numbers(Scheduler(pool), UnitQueue(units))) == list(range(40))
    for worker in range(2):
        assert len({units[number].beginning[0] for w, number in pool.sent if w == worker}) == 1


@pytest.mark.parametrize("workers", [2, 5])
def test_the_steps_of_an_example_are_done_by_one_worker(workers):
    """All examples begin with the same shots, and the prompts of one extend each other. At the end, when fewer examples than
    workers are left, their steps are shared out."""
    shots, n, steps = np.ones(600, np.int64), 40, 10

    def unit(number: int) -> PatchUnit:
        example, step = divmod(number, steps)
        clean = np.concatenate([shots, np.full(30 + step, 2 + example)])
        corrupted = clean.copy()
        corrupted[610] = 0
        return PatchUnit(number, (clean,), (corrupted,), (None,), (None,), "")

    pool = FakePool(workers)
    assert sorted(numbers(Scheduler(pool), UnitQueue(map(unit, range(n * steps))))) == list(range(n * steps))
    doers = [{worker for worker, number in pool.sent if number // steps == example} for example in range(n)]
    assert sum(len(found) > 1 for found in doers) < workers
    shares = [sum(worker == w for worker, _ in pool.sent) for w in range(workers)]
    assert max(shares) - min(shares) <= 1
    last = [number for worker, number in pool.sent if worker == 0]
    assert all(b == a + 1 for a, b in itertools.pairwise(last) if a // steps == b // steps)  # in their order


def test_units_put_first_while_others_are_done_come_next():
    queue = UnitQueue(unit_of(i) for i in range(6))
    found = []
    for answer in Scheduler(FakePool(1)).answers(queue):
        found.append(answer.unit)
        if answer.unit == 2:
            queue.put_first([unit_of(100), unit_of(101)])
        if answer.unit == 5:
            queue.put_first([unit_of(102)])
    assert found == [0, 1, 2, 3, 4, 100, 101, 5, 102]  # 3 was being done when 2 was seen, and 4 waited for it


def test_the_unit_of_a_lost_worker_is_done_again():
    lost = itertools.count()

    def play(worker: int, unit: Unit) -> Event:
        if unit.number == 3 and next(lost) == 0:
            return Lost(worker, "signal SIGKILL")
        return Answered(worker, Answer(unit.number))

    pool = FakePool(2, play)
    engine = Scheduler(pool)
    assert sorted(numbers(engine, UnitQueue(unit_of(i) for i in range(8)))) == list(range(8))
    assert engine.restarts == 1 and len(pool.started) == 3
    sent = [number for _, number in pool.sent]
    assert sent.count(3) == 2 and max(map(sent.count, sent)) == 2  # what had been sent ahead of it is done by another, too


def test_a_unit_that_costs_two_workers_is_given_up_and_the_others_are_done():
    def play(worker: int, unit: Unit) -> Event:
        return Lost(worker, "signal SIGKILL") if unit.number == 3 else Answered(worker, Answer(unit.number))

    engine = Scheduler(FakePool(2, play))
    answers = {answer.unit: answer for answer in engine.answers(UnitQueue(unit_of(i) for i in range(8)))}
    assert sorted(answers) == list(range(8)) and engine.restarts == 2
    assert answers[3].final and "2 workers ended" in answers[3].error and "SIGKILL" in answers[3].error
    assert all(answers[i].error is None for i in range(8) if i != 3)


def test_a_slow_unit_is_given_to_a_second_worker_and_the_first_answer_counts(monkeypatch):
    clock = Clock(monkeypatch)
    began: dict[int, float] = {}

    def play(worker: int, unit: Unit) -> Event | None:
        if unit.number == 5 and worker == began.setdefault(5, worker):
            return None  # hangs at its first worker
        return Answered(worker, Answer(unit.number, seconds=1.0))

    pool = FakePool(2, play, clock)
    engine = Scheduler(pool)
    assert sorted(numbers(engine, UnitQueue(unit_of(i) for i in range(12)))) == list(range(12))
    stuck = [number for worker, number in pool.sent if worker == began[5]][-2:]
    assert stuck[0] == 5 and engine.reissued == 2  # and the unit that it had been sent ahead
    assert [w for w, number in pool.sent if number == 5] == [began[5], 1 - began[5]]
    assert [number for _, number in pool.sent[-2:]] == stuck  # only when nothing else waited
    # The late answers of the slow worker are dropped, also if numbers begin again, and it works on.
    pool.play = lambda worker, unit: Answered(worker, Answer(unit.number, seconds=1.0, error=unit.where))
    again = list(engine.answers(UnitQueue(unit_of(i, "again") for i in range(10))))
    assert sorted(answer.unit for answer in again) == list(range(10)) and {answer.error for answer in again} == {"again"}
    assert {worker for worker, _ in pool.sent[-10:]} == {0, 1}


def test_without_a_median_nothing_is_slow(monkeypatch):
    clock = Clock(monkeypatch)
    pool = FakePool(2, lambda worker, unit: Answered(worker, Answer(unit.number)) if clock.now > 50 else None, clock)
    engine = Scheduler(pool)
    assert numbers(engine, UnitQueue([unit_of(0)])) == [0] and engine.reissued == 0


def test_workers_that_never_start_end_the_run():
    class Dead(FakePool):
        def start(self, worker: int) -> None:
            self.started.append(worker)
            self._events.append(Lost(worker, "exit code 3"))

    pool = Dead(2)
    with pytest.raises(RuntimeError, match="3 ended before they were ready, the last one so: exit code 3"):
        numbers(Scheduler(pool), UnitQueue([unit_of(0)]))


def test_a_worker_that_refuses_ends_the_run_with_its_error():
    class Refusing(FakePool):
        def start(self, worker: int) -> None:
            self._events.append(Refused(worker, ValueError("model: no such")))

    with pytest.raises(ValueError, match="model: no such"):
        numbers(Scheduler(Refusing(2)), UnitQueue([unit_of(0)]))
