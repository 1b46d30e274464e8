"""Stops at random moments: the same command goes on, and ends with the bits of a run that nothing disturbed."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from pycotmech import paper
from pycotmech.cli import app
from pycotmech.runs import experiment
from pycotmech.runs.events import read_events
from tests.faults.conftest import ONLY, PAPER, RUN
from tests.faults.same import differing, wrong_values
from tests.reference.forked import ended, start, stopped

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a POSIX system")

COMMAND = ("run", "--model", "tiny-cot", "--examples", "2", "--shots", "0", "--steps", "1,5,9", "--threads", "1", "--quiet")


def shell(out: Path) -> None:
    sys.argv = ["pycotmech", *COMMAND, "--out", str(out)]
    app.main()


def seconds_of(work, place: Path) -> float:
    """How long it takes undisturbed, here and now."""
    begin = time.monotonic()
    assert ended(start(work, place / "errors"), 300) == 0, (place / "errors").read_text("utf-8")
    return time.monotonic() - begin


def goes_on(out: Path, truth: Path, tally, kind: str) -> None:
    """Checks what a stop left, finishes it, and checks the end."""
    wrong = wrong_values(out, truth)
    experiment.run(RUN, out)
    wrong += differing(out, truth)
    tally.add(kind, "lost" if wrong else "same bits")
    assert not wrong


def stop_and_go_on(kind, n, make, truth, place, tally, signals=(signal.SIGKILL,), codes=(-signal.SIGKILL,), gap=0.0) -> None:
    """Until n of them were stopped before their end. make: (folder) -> what is done in it."""
    rng, stops = random.Random(kind), 0
    whole = seconds_of(lambda: make(place / "whole"), place)
    assert not differing(place / "whole", truth)
    for number in itertools.count():
        assert number < 10 * n, "they end before they are stopped"
        out = place / str(number)
        code = stopped(start(lambda out=out: make(out), place / "errors"), rng.uniform(0, whole), *signals, gap=gap)
        if code == 0:
            continue
        assert code in codes, (place / "errors").read_text("utf-8")
        goes_on(out, truth, tally, kind)
        shutil.rmtree(out)
        stops += 1
        if stops == n:
            return


def serial(out: Path) -> None:
    experiment.run(RUN, out)


def test_killed_a_few_times(run_folder, tmp_path, tally):
    stop_and_go_on("SIGKILL, one process (a few)", 3, serial, run_folder, tmp_path, tally)


@pytest.mark.slow
def test_killed_at_30_moments(run_folder, tmp_path, tally):
    stop_and_go_on("SIGKILL, one process", 30, serial, run_folder, tmp_path, tally)


@pytest.mark.slow
def test_killed_again_and_again(run_folder, tmp_path, tally):
    """Ten stops of one folder, each soon after the last."""
    rng, out, kind = random.Random(7), tmp_path / "out", "SIGKILL, ten times in one folder"
    whole = seconds_of(lambda: serial(tmp_path / "whole"), tmp_path)
    for _ in range(10):
        stopped(start(lambda: serial(out), tmp_path / "errors"), rng.uniform(0.1 * whole, 0.6 * whole), signal.SIGKILL)
        wrong = wrong_values(out, run_folder)
        assert not wrong
        tally.add(kind, "same bits")
    experiment.run(RUN, out)
    assert not differing(out, run_folder)


@pytest.mark.slow
def test_killed_at_30_moments_with_two_workers(run_folder, tmp_path, tally):
    """From the moment that the folder has a log: before, nothing is there that could be lost."""

    def two(out: Path) -> None:
        experiment.run(RUN, out, workers=2)

    kind, rng, stops = "SIGKILL of the main process of two local workers", random.Random(2), 0
    begin = time.monotonic()
    pid = start(lambda: two(tmp_path / "whole"), tmp_path / "errors")
    begun = _begun(pid, tmp_path / "whole") - begin
    assert ended(pid, 300) == 0
    whole = time.monotonic() - begin - begun
    assert not differing(tmp_path / "whole", run_folder)
    for number in range(300):
        out = tmp_path / str(number)
        pid = start(lambda out=out: two(out), tmp_path / "errors")
        _begun(pid, out)
        if stopped(pid, rng.uniform(0, whole), signal.SIGKILL) == 0:
            continue
        goes_on(out, run_folder, tally, kind)
        shutil.rmtree(out)
        stops += 1
        if stops == 30:
            return
    raise AssertionError("they end before they are stopped")


def _begun(pid: int, out: Path) -> float:
    """Waits for the folder's log."""
    end = time.monotonic() + 120
    while not read_events(out).events:
        assert time.monotonic() < end and ended(pid, 0.002) is None
    return time.monotonic()


@pytest.mark.slow
def test_sigterm_through_the_shell(run_folder, tmp_path, tally):
    stop_and_go_on("SIGTERM", 10, shell, run_folder, tmp_path, tally, (signal.SIGTERM,), (130, -signal.SIGTERM))


@pytest.mark.slow
@pytest.mark.parametrize("gap", [0.0, 0.02])
def test_ctrl_c_twice_through_the_shell(run_folder, tmp_path, tally, gap):
    """The second comes while the first is being answered, or at once."""
    twice = (signal.SIGINT, signal.SIGINT)
    stop_and_go_on("Ctrl-C twice", 5, shell, run_folder, tmp_path, tally, twice, (130, 70), gap)


@pytest.mark.slow
def test_the_paper_killed(paper_folder, tmp_path, tally):
    def work(out: Path) -> None:
        paper.run(PAPER, out, only=ONLY)

    rng, kind, stops = random.Random(3), "SIGKILL of paper", 0
    whole = seconds_of(lambda: work(tmp_path / "whole"), tmp_path)
    while stops < 10:
        out = tmp_path / f"{stops}"
        if stopped(start(lambda out=out: work(out), tmp_path / "errors"), rng.uniform(0, whole), signal.SIGKILL) == 0:
            shutil.rmtree(out)
            continue
        outcome = paper.run(PAPER, out, only=ONLY)
        same = not outcome.failures and all(_equal(out, paper_folder, name) for name in ONLY)
        tally.add(kind, "same bits" if same else "lost")
        assert same and "costs" in json.loads((out / "paper.json").read_text("utf-8"))
        stops += 1


def _equal(one: Path, two: Path, name: str) -> bool:
    import pycotmech as pcm

    a, b = (pcm.open_results(folder)[name] for folder in (one, two))
    return (
        a.drop_attrs().identical(b.drop_attrs())
        and (one / f"tables/{name}.csv").read_text() == (two / f"tables/{name}.csv").read_text()
    )
