"""What a scheduler needs of the workers that it deals units to, wherever they run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pycotmech.runs.workers.units import Answer, Unit


@dataclass(frozen=True)
class Ready:
    """A worker has loaded its model."""

    worker: int


@dataclass(frozen=True)
class Answered:
    """A worker has answered its unit."""

    worker: int
    answer: Answer


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and with it all units that it had been sent. reason: as far as it is known."""

    worker: int
    reason: str


@dataclass(frozen=True)
class Refused:
    """A worker cannot do what it is for, and starting it again would change nothing."""

    worker: int
    error: Exception


Event = Ready | Answered | Lost | Refused


class Pool(Protocol):
    """Workers, numbered from 0, each of which does its units one after the other, as they were sent. Nothing runs before
    `start`."""

    n: int

    def start(self, worker: int) -> None:
        """Starts a worker, or starts a lost one again. It says `Ready` when it can take a unit."""
        ...

    def send(self, worker: int, unit: Unit) -> None:
        """Gives a unit to a worker that is ready, also while it does another. A worker that is gone says `Lost`, once."""
        ...

    def wait(self, timeout: float) -> list[Event]:
        """Waits at most so many seconds until something happens."""
        ...

    def close(self) -> None:
        """Ends all workers at once, whatever they are doing."""
        ...
