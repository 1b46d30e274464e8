"""Ray's actors as workers, on a cluster of two in this process. Slow: Ray takes seconds to start."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest

from pycotmech.runs import Settings, experiment, read
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.workers import UnitQueue
from pycotmech.runs.workers import ray as module
from pycotmech.runs.workers.scheduler import Scheduler
from tests.runs.workers.doubles import SPEC, unit_of

SETTINGS = Settings(model="tiny-cot", examples=2, shots=0, steps=(1, 5), threads=1)


def test_ray_that_is_missing_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'expected it from pip install "pycotmech\[ray\]"'):
        module.import_ray()


class Killer(ProgressReporter):
    """Kills the process of an actor when the first sweep begins."""

    def __init__(self) -> None:
        self.killed = 0

    def at(self, done: float, where: str = "") -> None:
        import psutil

        if "step" in where and not self.killed:
            actors = [p for p in psutil.process_iter(["cmdline"]) if any("ray::_Actor" in c for c in p.info["cmdline"] or ())]
            actors[0].kill()
            self.killed += 1


@pytest.mark.slow
def test_two_actors_one_of_them_killed_give_the_bits_of_one_process(tmp_path):
    pytest.importorskip("ray", reason="needs the extra ray")
    experiment.run(SETTINGS, tmp_path / "serial")
    killer = Killer()
    outcome = experiment.run(SETTINGS, tmp_path / "ray", engine="ray", workers=2, progress=killer)
    assert killer.killed == 1 and not outcome.failures
    one, two = read(tmp_path / "serial"), read(tmp_path / "ray")
    for name in ("raw", "values", "effect", "noise_floor", "clean_metric", "right", "state"):
        np.testing.assert_array_equal(one[name], two[name])
    assert two.attrs["about"]["plan"]["engine"] == "ray"


@pytest.mark.slow
def test_a_unit_that_kills_its_actors_fails_and_the_others_are_done():
    pytest.importorskip("ray", reason="needs the extra ray")
    said = {3: "dies", 4: "fails"}
    with Scheduler(module.RayPool(SPEC, 2, None)) as engine:
        answers = {a.unit: a for a in engine.answers(UnitQueue(unit_of(i, said.get(i, "")) for i in range(12)))}
        assert engine.restarts == 2
    assert sorted(answers) == list(range(12))
    assert answers[3].final and "2 workers ended" in answers[3].error and answers[4].error == "this one cannot be done"
    assert all(answers[i].sweeps[0].raw[0, 0] == i for i in range(12) if i not in (3, 4))


@pytest.mark.slow
def test_what_goes_wrong_at_the_start_is_said():
    pytest.importorskip("ray", reason="needs the extra ray")
    with (
        Scheduler(module.RayPool(dataclasses.replace(SPEC, device="refused"), 1, None)) as engine,
        pytest.raises(ValueError, match="device: got 'refused'; expected another"),
    ):
        list(engine.answers(UnitQueue([unit_of(0)])))
    with pytest.raises(ConnectionError, match=r"ray_address: no cluster answers at 127.0.0.1:1"):
        module.RayPool(SPEC, 1, "127.0.0.1:1")
    assert os.environ.get("RAY_ADDRESS") is None
