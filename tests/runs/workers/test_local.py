"""Processes as workers: the same bits as one process, whatever happens to them, and none of them left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest

import pycotmech as pcm
from pycotmech.runs import Settings, SweepState, experiment, read
from pycotmech.runs.progress import ProgressReporter
from pycotmech.runs.workers import EngineChoice, UnitQueue
from pycotmech.runs.workers.local import LocalPool
from pycotmech.runs.workers.replica import Replica, is_out_of_memory
from pycotmech.runs.workers.scheduler import Scheduler
from pycotmech.runs.workers.units import GradeUnit, PatchUnit, ReplicaSpec
from tests.runs.workers.doubles import SPEC, unit_of, workers_here

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the local engine needs a POSIX system")

SETTINGS = Settings(model="tiny-cot", examples=2, shots=0, steps=(1, 5, 9), threads=1)
NUMBERS = ("raw", "values", "effect", "noise_floor", "clean_metric", "corrupted_metric", "right", "state")


class Killer(ProgressReporter):
    """Kills a worker when the first sweep begins."""

    def __init__(self) -> None:
        self.task, self.killed, self.notes = "", 0, []

    def begin(self, task: str, total: int, unit: str = "") -> None:
        self.task = task

    def at(self, done: float, where: str = "") -> None:
        if self.task == "patching" and not self.killed:
            workers_here()[-1].kill()
            self.killed += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serial")
    assert experiment.run(SETTINGS, folder).done >= 4
    return folder


def test_two_workers_one_of_them_killed_give_the_bits_of_one_process(serial, tmp_path):
    killer = Killer()
    outcome = experiment.run(SETTINGS, tmp_path, workers=2, progress=killer)
    assert killer.killed == 1 and not outcome.failures and not workers_here()
    one, two = read(serial), read(tmp_path)
    for name in NUMBERS:
        np.testing.assert_array_equal(one[name], two[name])
    plan = two.attrs["about"]["plan"]
    assert plan["engine"] == "local" and plan["workers"] == 2 and plan["threads"] == 1


def test_a_double_dies_fails_and_is_slow(tmp_path):
    """In real processes: one unit kills every worker, one fails, one hangs at the first."""
    said = {3: "dies", 4: "fails", 17: f"slow {tmp_path / 'slow'}"}
    with Scheduler(LocalPool([SPEC, SPEC])) as engine:
        answers = {a.unit: a for a in engine.answers(UnitQueue(unit_of(i, said.get(i, "")) for i in range(18)))}
        assert len({a.sweeps[0].pid for a in answers.values() if a.sweeps}) >= 2
        assert engine.restarts == 2 and engine.reissued == 1
    assert sorted(answers) == list(range(18)) and not workers_here()
    assert answers[3].final and "SIGKILL" in answers[3].error and answers[4].error == "this one cannot be done"
    assert all(answers[i].sweeps[0].raw[0, 0] == i for i in range(18) if i not in (3, 4))
    assert not any(a.sweeps[0].loaded for a in answers.values() if a.sweeps), "a worker loads PyTorch before it knows its model"


def test_what_goes_wrong_at_the_start_is_said():
    with (
        Scheduler(LocalPool([replace(SPEC, device="refused")])) as engine,
        pytest.raises(ValueError, match="device: got 'refused'; expected another"),
    ):
        list(engine.answers(UnitQueue([unit_of(0)])))
    with (
        Scheduler(LocalPool([replace(SPEC, device="dies")])) as engine,
        pytest.raises(RuntimeError, match="3 ended before they were ready, the last one so: exit code 3"),
    ):
        list(engine.answers(UnitQueue([unit_of(0)])))
    assert not workers_here()


SCRIPT = """
import signal, sys
from pycotmech.runs.workers import UnitQueue
from pycotmech.runs.workers.local import LocalPool
from pycotmech.runs.workers.scheduler import Scheduler
from tests.runs.workers.doubles import SPEC, unit_of, workers_here

with Scheduler(pool := LocalPool([SPEC, SPEC])) as engine:
    units = [unit_of(0), *(unit_of(i, f"slow {sys.argv[1]}/{i}") for i in (1, 2))]
    for answer in engine.answers(UnitQueue(units)):
        print(*pool.pids, flush=True)
"""


@pytest.mark.parametrize("stop", ["SIGINT", "SIGINT twice", "SIGKILL"])
def test_no_worker_outlives_its_run(tmp_path, stop):
    """Also where it computes when the main process is gone."""
    root = str(Path(__file__).parents[3])
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    running = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=environment, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    pids = [int(pid) for pid in running.stdout.readline().split()]
    assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    for _ in range(2 if "twice" in stop else 1):
        running.send_signal(getattr(signal, stop.split()[0]))
    assert running.wait(60) != 0
    end = time.monotonic() + 30
    while (alive := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive


@dataclass(frozen=True)
class MappedWeights:
    """What a process maps of safetensors files. files: device and inode of each. rss, pss: megabytes that are resident, and the
    part of them that counts as its own. copied: megabytes that it has a copy of, since it wrote to them."""

    files: frozenset[tuple[str, str]]
    rss: float
    pss: float
    copied: float


def mapped_weights(pid: int) -> MappedWeights:
    files, kilobytes, counted = set(), {"Rss": 0, "Pss": 0, "Anonymous": 0}, False
    for line in Path(f"/proc/{pid}/smaps").read_text("utf-8", "replace").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = line.rstrip().endswith(".safetensors")
            if counted:
                _, _, _, device, inode, *_ = line.split()
                files.add((device, inode))
        elif counted and (name := line.partition(":")[0]) in kilobytes:
            kilobytes[name] += int(line.split()[1])
    return MappedWeights(frozenset(files), *(kilobytes[name] / 1024 for name in ("Rss", "Pss", "Anonymous")))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_replicas_map_one_copy_of_the_weights(tmp_path, monkeypatch, dtype):
    """Also in another dtype than the file's, for which the weights are written once."""
    from pycotmech.runs.workers import open_engine
    from pycotmech.runs.workers.sharing import is_mapped

    folder, cache = tmp_path / "model", tmp_path / "cache"
    from tests.reference.tiny import tiny_llama

    monkeypatch.setenv("PYCOTMECH_CACHE", str(cache))
    tiny_llama(seed=0, d_model=512, d_mlp=2048, n_layers=3).save_pretrained(folder)
    settings = Settings(model=str(folder), dtype=dtype, threads=1)
    model = pcm.Model.from_pretrained(folder, dtype=dtype)
    assert is_mapped(model) == (dtype == "float32")
    size = sum(t.numel() * t.element_size() for t in model.hf.state_dict().values()) / 2**20
    units = (GradeUnit(i, np.arange(1, 9), None, (((7, 0),),), "") for i in range(10**7))
    found: list[MappedWeights] = []

    def shared() -> bool:
        """A page counts as a process's own until another has read it too, and both begin when it suits them."""
        return len(found) == 2 and all(m.rss > 0.9 * size and m.pss < 0.6 * size for m in found)

    with open_engine(EngineChoice("local", 2), settings, model, memory_gb=1.0, identity={}) as engine:
        end = time.monotonic() + 300
        for answer in engine.answers(UnitQueue(units)):
            if answer.unit % 20 == 0:
                found = [mapped_weights(p.pid) for p in workers_here()]
            if shared() or time.monotonic() > end:
                break
    assert size > 30 and shared(), (size, found)
    assert found[0].files == found[1].files and found[0].files and not any(m.copied for m in found), found
    assert not (cache / "replicas").exists() or not list((cache / "replicas").iterdir())


def test_a_chunk_that_does_not_fit_is_cut_again(monkeypatch):
    model = pcm.Model.from_pretrained("tiny-cot")
    unit = PatchUnit(0, (np.array([1, 5, 3, 4]),), (np.array([1, 6, 3, 4]),), (None,), (None,), "line 1")
    replica = Replica(model, ReplicaSpec(Settings(model="tiny-cot"), "cpu", None, 1.0))
    honest, asked = Replica._patched, []

    def exhausted(self, unit, memory_gb, watch):
        asked.append(memory_gb)
        if memory_gb > 0.3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return honest(self, unit, memory_gb, watch)

    expected = replica.answer(unit)
    monkeypatch.setattr(Replica, "_patched", exhausted)
    answer = replica.answer(unit)
    assert asked == [1.0, 0.5, 0.25] and answer.error is None
    np.testing.assert_allclose(answer.sweeps[0].effect, expected.sweeps[0].effect, atol=expected.sweeps[0].noise_floor)
    assert "halved to 0.25 GB" in answer.notes[0] and "noise floor" in answer.notes[0]
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("mat1 and mat2 shapes"))


def test_an_error_of_one_unit_is_its_answer(monkeypatch):
    model = pcm.Model.from_pretrained("tiny-cot")
    replica = Replica(model, ReplicaSpec(Settings(model="tiny-cot"), "cpu", None, 1.0))
    unit = PatchUnit(7, (np.array([1, 5]),), (np.array([1, 9999]),), (None,), (None,), "line 1")
    answer = replica.answer(unit)
    assert answer.unit == 7 and "token id 9999 is outside the vocabulary" in answer.error and not answer.sweeps
    monkeypatch.setattr(Replica, "_patched", lambda *_: (_ for _ in ()).throw(KeyError("oops")))
    assert replica.answer(unit).error == "KeyError: 'oops'"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (EngineChoice("dask"), "engine: got 'dask'; expected one of serial, local, ray"),
        (EngineChoice("local", 0), "workers: got 0; expected 1 or more"),
        (EngineChoice("serial", 2), "workers: got 2 for the serial engine"),
        (EngineChoice("local", 2, "auto"), "ray_address: has no meaning for the engine local"),
    ],
)
def test_a_wrong_choice_is_named_before_anything_is_loaded(tmp_path, choice, message):
    with pytest.raises(ValueError) as caught:
        experiment.run(SETTINGS, tmp_path / "out", engine=choice.name, workers=choice.workers, ray_address=choice.ray_address)
    assert message in str(caught.value) and not (tmp_path / "out").exists()


def test_several_workers_are_local_and_an_address_is_of_ray():
    assert [c.engine for c in (EngineChoice(), EngineChoice(workers=1), EngineChoice(workers=3))] == [
        "serial",
        "serial",
        "local",
    ]
    assert EngineChoice(ray_address="auto").engine == "ray"
    assert EngineChoice("local").n_workers(1) == os.cpu_count() and EngineChoice("local", 3).n_workers(1) == 3


@pytest.mark.slow
def test_a_bad_example_is_reported_and_the_others_are_done(tmp_path):
    """In a worker too: a metric that is the same in both runs."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        '{"clean": [1, 5, 3, 4], "corrupted": [1, 6, 3, 4], "answer": 7, "wrong": 8}\n'
        '{"clean": [1, 5, 3, 4], "corrupted": [1, 6, 3, 4], "answer": 9, "wrong": 9}\n'.replace(' "wrong": 9', ' "wrong": 10')
    )
    settings = Settings(model="tiny-cot", pairs=pairs, metric="logit_diff", threads=1)
    outcome = experiment.run(settings, tmp_path / "out", engine="local", workers=1)
    assert outcome.done + len(outcome.failures) == 2
    assert (read(tmp_path / "out")["state"] == SweepState.FINISHED).sum() == outcome.done
