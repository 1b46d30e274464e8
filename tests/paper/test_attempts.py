"""Analyses by workers: each as soon as what it needs is done, the longest first, and the bits of one process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from pycotmech import paper
from pycotmech.paper.attempts import at_once
from pycotmech.paper.entries import ENTRIES
from pycotmech.runs import ProgressReporter, Settings
from pycotmech.runs.workers import Answer, Engine, UnitQueue

SETTINGS = Settings(model="tiny-cot", examples=2, shots=1, steps=(2, 5), threads=1)


class Two(Engine):
    """Two workers that are none: units are begun in pairs, and the second of a pair ends first. fails: name of an analysis."""

    def __init__(self, fails: str = "") -> None:
        self.begun: list[str] = []
        self.given: dict[str, list[str]] = {}
        self.fails = fails

    def answers(self, queue: UnitQueue, watch=None) -> Iterator[Answer]:
        while pair := [unit for _ in range(2) if (unit := queue.take()) is not None]:
            self.begun += [unit.name for unit in pair]
            self.given |= {unit.name: list(unit.done) for unit in pair}
            for unit in reversed(pair):
                if unit.name == self.fails:
                    yield Answer(unit.number, error="steps: nothing to see", final=True)
                else:
                    yield Answer(unit.number, result=f"result of {unit.name}", seconds=2.0, warnings=(f"of {unit.name}",))

    def close(self) -> None:
        pass


def entry(name: str, *needs: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, needs=needs)


ENTRY_GRAPH = [entry("a"), entry("b", "a"), entry("c"), entry("d", "a", "c"), entry("e", "d")]
SECONDS = {"a": 1.0, "b": 9.0, "c": 5.0, "d": 3.0, "e": 1.0}


def attempts(engine: Engine, **before):
    done, found = dict(before), []
    entries = [e for e in ENTRY_GRAPH if e.name not in before]
    for attempt in at_once(engine, SETTINGS, None, entries, done, SECONDS, ProgressReporter()):
        found.append(attempt)
        if attempt.result is not None:
            done[attempt.entry.name] = attempt.result
    return found


def test_each_begins_when_what_it_needs_is_done_and_the_longest_first():
    engine = Two()
    with pytest.warns(UserWarning, match="of a"):
        found = attempts(engine)
    assert engine.begun == ["c", "a", "d", "b", "e"] and engine.given["d"] == ["a", "c"] and engine.given["e"] == ["d"]
    assert {a.entry.name: a.result for a in found} == {e.name: f"result of {e.name}" for e in ENTRY_GRAPH}
    assert all(a.seconds == 2.0 and not a.failure for a in found)


@pytest.mark.filterwarnings("ignore")
def test_one_that_fails_takes_only_those_with_it_that_need_it():
    found = {a.entry.name: a.failure for a in attempts(Two(fails="c"))}
    assert found == {"a": "", "b": "", "c": "steps: nothing to see", "d": "needs c", "e": "needs d"}


@pytest.mark.filterwarnings("ignore")
def test_what_is_done_already_is_given_and_not_done_again():
    engine = Two()
    assert len(attempts(engine, a="stored", c="stored")) == 3 and engine.begun == ["b", "d", "e"]


def same(one, two) -> bool:
    return all(one.data[name].identical(two.data[name]) for name in one.data)


@pytest.mark.skipif(os.name != "posix", reason="the local engine needs a POSIX system")
@pytest.mark.parametrize(
    "only",
    [("copy_heads", "decision_heads"), pytest.param(tuple(e.name for e in ENTRIES), marks=pytest.mark.slow)],
    ids=["two", "all"],
)
def test_two_workers_give_the_bits_of_one_process(tmp_path, only):
    one = paper.run(SETTINGS, tmp_path / "one", only=only)
    two = paper.run(SETTINGS, tmp_path / "two", only=only, workers=2)
    assert not one.failures and not two.failures and list(one.results) == list(two.results)
    for name in one.results:
        assert same(one.results[name], two.results[name]), name
    again = paper.run(SETTINGS, tmp_path / "two", only=only, workers=2)
    assert again.resumed == list(one.results)
    np.testing.assert_array_equal([v.word for _, v in one.verdicts], [v.word for _, v in again.verdicts])


def test_a_wrong_choice_is_named_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="workers: got 0; expected 1 or more"):
        paper.run(SETTINGS, tmp_path / "out", workers=0)
    with pytest.raises(ValueError, match="engine: got 'dask'"):
        paper.run(SETTINGS, tmp_path / "out", engine="dask")
    assert not (tmp_path / "out").exists()
