"""Workers as processes on this machine, each with a replica whose weights are mapped from one file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO

import pycotmech
from pycotmech.files.text import printable
from pycotmech.runs.workers.pool import Answered, Event, Lost, Ready, Refused
from pycotmech.runs.workers.process import ANSWERED, READY, receive, send
from pycotmech.runs.workers.units import ReplicaSpec, Unit


@dataclass
class _Process:
    process: subprocess.Popen
    connection: Connection
    errors: IO[bytes]


class LocalPool:
    """specs: of each worker."""

    def __init__(self, specs: list[ReplicaSpec]) -> None:
        self.specs, self.n = specs, len(specs)
        self._processes: dict[int, _Process] = {}
        self._lost: list[Event] = []

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are running."""
        return [running.process.pid for running in self._processes.values()]

    def start(self, worker: int) -> None:
        self._end(worker)
        ours, theirs = multiprocessing.Pipe()
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        threads = self.specs[worker].threads
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(_paths()))
        if threads is not None:
            environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pycotmech.runs.workers.process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment,
            process_group=0,  # Ctrl-C in a terminal reaches the main process alone, which ends its workers
        )  # fmt: skip
        theirs.close()
        self._processes[worker] = _Process(process, ours, errors)
        self._sent(worker, self.specs[worker])

    def send(self, worker: int, unit: Unit) -> None:
        self._sent(worker, unit)

    def wait(self, timeout: float) -> list[Event]:
        found, self._lost = self._lost, []
        by_connection = {running.connection: number for number, running in self._processes.items()}
        for connection in wait(list(by_connection), 0.0 if found else timeout):
            found.append(self._heard(by_connection[connection]))  # type: ignore[index]
        return found

    def close(self) -> None:
        for worker in list(self._processes):
            self._end(worker)
        self._lost.clear()

    def _heard(self, worker: int) -> Event:
        running = self._processes[worker]
        try:
            kind, content = receive(running.connection)
        except (EOFError, OSError):
            reason = self._reason(worker)
            self._end(worker)
            return Lost(worker, reason)
        if kind == READY:
            return Ready(worker)
        return Answered(worker, content) if kind == ANSWERED else Refused(worker, content)

    def _sent(self, worker: int, message: object) -> None:
        with suppress(OSError):  # it is gone; what `wait` hears of it next is the end
            send(self._processes[worker].connection, message)

    def _reason(self, worker: int) -> str:
        """How a worker ended, with the last line that it wrote to its standard error."""
        running = self._processes[worker]
        try:
            code = running.process.wait(5.0)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        running.errors.seek(0)
        lines = running.errors.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        last = f" ({printable(lines[-1])})" if lines and code > 0 else ""
        if code >= 0:
            return f"exit code {code}{last}"
        killed = ", as the system does when memory runs out" if -code == signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{killed}"

    def _end(self, worker: int) -> None:
        running = self._processes.pop(worker, None)
        if running is None:
            return
        running.process.kill()
        running.process.wait()
        running.connection.close()
        running.errors.close()


def _paths() -> list[str]:
    """Where a worker finds what this process has imported: the folder of this package first."""
    here = str(Path(pycotmech.__file__).resolve().parent.parent)
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return list(dict.fromkeys([here, *filter(None, given)]))
