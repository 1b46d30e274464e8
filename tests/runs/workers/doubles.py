"""Stand-ins for a replica: they load no model and answer at once, or fail as the unit's place says."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import psutil

from pycotmech.runs import Settings
from pycotmech.runs.workers import Answer, PatchUnit, ReplicaSpec


def workers_here() -> list[psutil.Process]:
    """Local workers that this process has started, without those that end while they are looked at."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie too
            if any("runs.workers.process" in part for part in process.cmdline()):
                found.append(process)
    return found


SPEC = ReplicaSpec(Settings(model="none"), "cpu", 1, None, opener="tests.runs.workers.doubles:open_double")


def unit_of(number: int, where: str = "", prefix: int = 0) -> PatchUnit:
    """A unit of one step whose prompts begin with 128 tokens `prefix`, and are all their own with prefix 0."""
    clean = np.full(200, prefix)
    corrupted = clean.copy()
    corrupted[150 if prefix else 0] = 99
    return PatchUnit(number, (clean,), (corrupted,), (None,), (None,), where)


class Double:
    """Answers a unit with its number as effect. where: "dies" ends the process, "fails" is an error, "slow" takes minutes the
    first time that the file named after it is missing."""

    def answer(self, unit: PatchUnit) -> Answer:
        what, _, file = unit.where.partition(" ")
        if what == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "fails":
            return Answer(unit.number, error="this one cannot be done")
        if what == "slow":
            try:
                os.close(os.open(file, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                time.sleep(600)
        raw = np.full((2, 2), float(unit.number))
        found = SimpleNamespace(pid=os.getpid(), raw=raw, loaded="torch" in sys.modules)
        return Answer(unit.number, sweeps=[found], seconds=0.01)


def open_double(spec: ReplicaSpec) -> Double:
    if spec.device == "refused":
        raise ValueError("device: got 'refused'; expected another")
    if spec.device == "dies":
        os._exit(3)
    return Double()
