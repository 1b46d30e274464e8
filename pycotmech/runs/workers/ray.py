"""Workers as actors of Ray: on this machine, or on the machines and GPUs of a cluster."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pycotmech.runs.workers.pool import Answered, Event, Lost, Ready, Refused
from pycotmech.runs.workers.process import opened
from pycotmech.runs.workers.units import ReplicaSpec, Unit


def import_ray() -> Any:
    """Returns the module `ray`. Raises ImportError saying how to install it."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ImportError('engine: ray is not installed; expected it from pip install "pycotmech[ray]"') from error


_PATIENCE = 300.0
"""Seconds for which an actor that Ray is starting again may be away before it counts as lost once more."""


def _reach(address: str) -> None:
    """Raises ConnectionError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # "auto" and other words of Ray
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except OSError as error:
        raise ConnectionError(f"ray_address: no cluster answers at {address} ({error})") from error


class RayPool:
    """Actors, each with one replica.

    Ray starts an actor that is lost again, on the same or another machine; its first task after that finds the model loaded.

    spec: of every worker. n: how many; None: one for each GPU (device cuda) or for each core of the cluster. address: of a
    running cluster; None: Ray is started in this process with as many cores as are needed, and stopped at the end.
    Raises ConnectionError where there is no cluster at the address, ValueError where it has too few cores or GPUs.
    """

    def __init__(self, spec: ReplicaSpec, n: int | None, address: str | None) -> None:
        ray = self._ray = import_ray()
        threads, gpus = spec.threads or 1, int(spec.device.startswith("cuda"))
        self._started = not ray.is_initialized()
        if self._started:
            handler = signal.getsignal(signal.SIGTERM)
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
            if address is None:
                cores = threads * (n or max(1, (os.cpu_count() or 1) // threads))
                ray.init(num_cpus=cores, include_dashboard=False, **quiet)
            else:
                _reach(address)
                try:
                    ray.init(address=address, **quiet)
                except Exception as error:
                    raise ConnectionError(f"ray_address: no cluster answers at {address} ({error})") from error
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process with another exit code
        has = ray.cluster_resources()
        room = int(has.get("GPU", 0)) if gpus else int(has.get("CPU", 0)) // threads
        self.n = n or max(1, room)
        if self.n > room:
            what = f"{room} GPUs" if gpus else f"{int(has.get('CPU', 0))} cores, each worker having {threads}"
            self.close()
            raise ValueError(f"workers: got {n}, but the cluster has {what}; expected at most {max(room, 0)}")
        # Ray shows each actor its own GPU alone, as the first one.
        self._spec = replace(spec, device="cuda" if gpus else spec.device)
        self._options: dict[str, Any] = {"num_cpus": threads, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": 0}
        if self._started and address is None:
            self._options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        self._actors: dict[int, Any] = {}
        self._away: dict[int, float] = {}  # since when a worker is gone that Ray is starting again
        self._tasks: dict[Any, tuple[int, bool]] = {}  # reference -> worker, and whether it is a unit

    def start(self, worker: int) -> None:
        ray = self._ray
        if worker not in self._actors:
            actor = ray.remote(_Actor)
            self._actors[worker] = actor.options(**self._options).remote(self._spec)
        self._tasks[self._actors[worker].ready.remote()] = worker, False

    def send(self, worker: int, unit: Unit) -> None:
        self._tasks[self._actors[worker].answer.remote(unit)] = worker, True

    def wait(self, timeout: float) -> list[Event]:
        ray, found = self._ray, []
        done, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        if done:  # and whatever else has come meanwhile
            done, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0)
        for reference in done:
            if reference not in self._tasks:
                continue  # of an actor that was found to be gone
            worker, of_unit = self._tasks.pop(reference)
            try:
                content = ray.get(reference)
            except ray.exceptions.RayActorError as error:
                since = self._away.setdefault(worker, time.monotonic())
                if not of_unit and time.monotonic() - since < _PATIENCE:
                    time.sleep(0.2)
                    self.start(worker)
                else:
                    self._tasks = {task: of for task, of in self._tasks.items() if of[0] != worker}
                    found.append(self._gone(worker, error))
            except ray.exceptions.RayTaskError as error:
                found.append(Refused(worker, RuntimeError(str(error))))
            else:
                refused = isinstance(content, Exception)
                self._away.pop(worker, None)
                found.append(Answered(worker, content) if of_unit else Refused(worker, content) if refused else Ready(worker))
        return found

    def close(self) -> None:
        ray = self._ray
        for actor in self.__dict__.get("_actors", {}).values():
            with suppress(Exception):  # a cluster that is gone has no actors
                ray.kill(actor)
        self._actors, self._tasks = {}, {}
        if self._started:
            ray.shutdown()

    def _gone(self, worker: int, error: Exception) -> Event:
        text = " ".join(str(error).split())
        return Lost(worker, text[:200])


class _Actor:
    """What runs in an actor. An error of opening is kept and given back, since one in `__init__` would be a dead actor."""

    def __init__(self, spec: ReplicaSpec) -> None:
        self.error: Exception | None = None
        try:
            self.replica = opened(spec)
        except Exception as error:
            self.error = error if isinstance(error, (ValueError, OSError)) else RuntimeError(f"{type(error).__name__}: {error}")

    def ready(self) -> Exception | None:
        return self.error

    def answer(self, unit: Unit) -> Any:
        return self.replica.answer(unit)
