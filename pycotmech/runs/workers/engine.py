"""The engine of a run: what it is asked and which one is chosen."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Self, get_args

from pycotmech._choices import check_choice
from pycotmech.runs.workers.queue import UnitQueue
from pycotmech.runs.workers.units import Answer, Unit

EngineName = Literal["serial", "local", "ray"]

Watch = Callable[[Unit, float], None]
"""Called with a unit and the share of it that is done."""


class Engine(ABC):
    """Does units. Used as a context: at its end, whatever the reason, no worker is left."""

    @abstractmethod
    def answers(self, queue: UnitQueue, watch: Watch | None = None) -> Iterator[Answer]:
        """Yields the answer to each unit of the queue, in the order in which they come, until the queue is empty and nothing
        is being done. Units that the caller puts into the queue meanwhile are done too. Raises RuntimeError if workers do not
        start, and what loading the model raises in one."""

    @abstractmethod
    def close(self) -> None:
        """Ends what is running."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class EngineChoice:
    """Which engine does a run; without a name local if there are several workers, otherwise serial.

    workers: how many replicas; None: one for each core (local) or for each core or GPU of the cluster (ray). ray_address: of a
    running cluster ("auto" for one on this machine); None: one is started in this process.
    """

    name: EngineName | str | None = None
    workers: int | None = None
    ray_address: str | None = None

    @property
    def engine(self) -> str:
        several = self.workers is not None and self.workers > 1
        if self.name is not None:
            return self.name
        return "ray" if self.ray_address is not None else "local" if several else "serial"

    def check(self) -> None:
        """Raises ValueError naming the argument that is wrong."""
        check_choice("engine", self.engine, get_args(EngineName))
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers: got {self.workers}; expected 1 or more")
        if self.engine == "serial" and self.workers not in (None, 1):
            raise ValueError(f"workers: got {self.workers} for the serial engine, which has one; expected engine local or ray")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError(f"ray_address: has no meaning for the engine {self.engine}; expected engine ray")
        if self.engine == "local" and os.name != "posix":
            raise ValueError("engine: local needs a POSIX system; expected serial or ray")

    def n_workers(self, threads: int | None) -> int:
        """How many workers there are on this machine. threads: of each; None: one."""
        if self.engine == "serial":
            return 1
        return self.workers or max(1, (os.cpu_count() or 1) // (threads or 1))
