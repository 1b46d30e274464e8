"""The engine without workers: units are done in this process, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from pycotmech.runs.workers.engine import Engine, Watch
from pycotmech.runs.workers.queue import UnitQueue
from pycotmech.runs.workers.replica import Replica
from pycotmech.runs.workers.units import Answer


class SerialEngine(Engine):
    """replica: of the model in this process."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica

    def answers(self, queue: UnitQueue, watch: Watch | None = None) -> Iterator[Answer]:
        while (unit := queue.take()) is not None:
            if watch is None:
                yield self.replica.answer(unit)
            else:
                watch(unit, 0.0)
                yield self.replica.answer(unit, lambda share, unit=unit: watch(unit, share))

    def close(self) -> None:
        pass
