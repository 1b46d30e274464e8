"""What goes wrong with one unit among many: it costs no other, and is done again or reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pycotmech.engine.staircase import Staircase
from pycotmech.runs import Settings, SweepState, experiment, read
from pycotmech.runs.events import read_events
from pycotmech.runs.progress import ProgressReporter
from tests.faults.conftest import RUN
from tests.faults.same import differing
from tests.runs.workers.doubles import workers_here


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), MemoryError()]
)
def test_out_of_memory_in_a_chunk(run_folder, tmp_path, tally, monkeypatch, error):
    """From so many rows on, the allocator fails: smaller chunks, and on, within the noise floor."""
    plain, failed = Staircase.run, []

    def run(self):
        if self.rows.begins[-1] > 150:
            failed.append(self.rows.begins[-1])
            raise error
        return plain(self)

    monkeypatch.setattr(Staircase, "run", run)
    with pytest.warns(UserWarning, match="memory ran out while"):
        outcome = experiment.run(RUN, tmp_path / "out")
    found, truth = read(tmp_path / "out"), read(run_folder)
    floor = 2 * truth["noise_floor"].values[..., None, None]
    done = truth["state"].values == SweepState.FINISHED
    near = (np.abs(found["effect"].values - truth["effect"].values) <= floor)[done].all()
    whole = not outcome.failures and (found["state"].values == truth["state"].values).all()
    tally.add("out of memory in a chunk", "noise floor" if near and whole else "lost")
    assert near and whole and failed


def test_one_bad_example_among_many(tmp_path, tally):
    """One whose metric is the same in both runs: the answer and the wrong word have equal logits before and after."""
    pair = {"clean": [1, 5, 6, 7], "corrupted": [1, 5, 8, 7], "answer": 9, "wrong": 11}
    bad, n = 3, 7
    lines = [pair | {"clean": [1, 5, 6, 20 + i], "corrupted": [1, 5, 8, 20 + i]} for i in range(n)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    settings = Settings(model="tiny-cot", pairs=tmp_path / "mine.jsonl", metric="logit_diff", threads=1)
    experiment.run(settings, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        from pycotmech import patching

        honest = patching.patch_heads_each

        def patched(model, clean, corrupted, **options):
            if any(int(tokens[-1]) == 20 + bad for tokens in clean):
                raise ValueError("metric: logit_diff is the same in the clean and the corrupted run")
            return honest(model, clean, corrupted, **options)

        patch.setattr(patching, "patch_heads_each", patched)
        outcome = experiment.run(settings, tmp_path / "out")
    assert len(outcome.failures) == 1 and f"line {bad + 1}: metric: " in outcome.failures[0]
    found, truth = read(tmp_path / "out"), read(tmp_path / "whole")
    others = [i for i in range(n) if i != bad]
    assert found["state"].values[:, 0].tolist() == [int(i != bad) for i in range(n)]
    same = np.array_equal(found["raw"].values[others], truth["raw"].values[others])
    assert [e["example"] for e in read_events(tmp_path / "out").events if e["event"] == "failed"] == [bad]
    experiment.run(settings, tmp_path / "out")  # without the fault it is done as well
    same &= not differing(tmp_path / "out", tmp_path / "whole")
    for _ in others:
        tally.add("one bad example: the others", "same bits" if same else "lost")
    tally.add("one bad example: itself", "reported")
    assert same


class Killer(ProgressReporter):
    """Kills a worker as each of the first sweeps begins."""

    def __init__(self, kills: int) -> None:
        self.task, self.left, self.killed = "", kills, 0

    def begin(self, task: str, total: int, unit: str = "") -> None:
        self.task = task

    def at(self, done: float, where: str = "") -> None:
        workers = workers_here()
        if self.task == "patching" and self.left and workers:
            workers[-1].kill()
            self.left, self.killed = self.left - 1, self.killed + 1


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 2])
def test_workers_killed(run_folder: Path, tmp_path: Path, tally, kills):
    killer = Killer(kills)
    outcome = experiment.run(RUN, tmp_path / "out", workers=2, progress=killer)
    wrong = outcome.failures or differing(tmp_path / "out", run_folder)
    for _ in range(killer.killed):
        tally.add("a local worker killed", "lost" if wrong else "same bits")
    assert not wrong and killer.killed
