"""The checks of Llama-2 7B run to their end on a small model; they hold where they should, or fail with the reason.

The small model has other numbers: those that are published are replaced by its own, or by wrong ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import pycotmech as pcm
from pycotmech.cot.tools.cost import Cost
from tests.acceptance import llama2_7b as acceptance

ROOT = Path(__file__).parents[2]
SMALL = acceptance.Sizes(made=6, blocks=2, used=4, graphs=3, means=2, questions=24, shots=2, mean_ontology="fictional")
STANDS_IN = replace(
    acceptance.PAPER,
    accuracy={"fictional": 0.7},
    writers=((3, 5), (0, 0)),
    rank=16,
    late=2,
    early_end=1,
    high_start=3,
    removed=(0, 4, 4, 8, 8, 8, 16, 16, 24, 32),
    probe_depths=(0, 4),
)


@pytest.fixture(scope="module")
def run():
    return acceptance.Run(pcm.Model.from_pretrained("tiny-cot"), SMALL, STANDS_IN)


@pytest.fixture(scope="module")
def found(run):
    return {part.__name__: part(run) for part in acceptance.PARTS}


def test_every_part_ends_in_checks(found):
    names = [check.name for checks in found.values() for check in checks]
    assert len(set(names)) == len(names) and set(found) == {"accuracy", "knock_out", "writers", "abidance", "probes"}
    assert len(found["knock_out"]) == 20 and len(found["writers"]) == 3 and len(found["abidance"]) == 3
    for checks in found.values():
        for check in checks:
            assert check.found == check.found and check.low <= check.published <= check.high, check  # a number


def test_what_is_so_holds_and_what_is_not_fails_because(found):
    by_name = {check.name: check for checks in found.values() for check in checks}
    untouched = by_name["step 0: accuracy without 0 heads"]
    assert untouched.holds and untouched.found == 1 and str(untouched).startswith("holds: step 0")
    everything = by_name["step 9: accuracy without 32 heads"]
    assert not everything.holds and str(everything).startswith("fails: step 9") and "because it is not in" in str(everything)
    assert by_name["rank of 3.5 among the writers"].holds
    assert replace(untouched, found=0.94).holds is False and replace(untouched, found=0.96).holds


def test_the_whole_solutions_that_are_right_are_used(run):
    _, graded = run.first
    assert len(run.examples) == 4 and run.right.all() and graded.all_right.sum() >= 4
    assert all(bool(graded.all_right[e.index]) for e in run.examples)
    alone = acceptance.Run(run.model, replace(SMALL, made=2), STANDS_IN)
    with pytest.raises(AssertionError, match="solutions right: too few to go on"):
        _ = alone.examples


def test_the_published_numbers_are_those_of_the_protocol():
    """Each stands in docs/protocol.md as well."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    paper = acceptance.PAPER
    assert f"{paper.accuracy['fictional']:.1%}".replace("%", " %") in text and "52.5 %" in text
    told = [f"{removed} ({accuracy:.2f})".replace("(0.", "(.") for removed, accuracy in zip(paper.removed, paper.kept_accuracy)]
    assert f"| induction | {', '.join(told)} |" in text
    assert "848 of 856 writers are in layer 16 or above" in text and paper.late_share == pytest.approx(0.9907, abs=1e-4)
    assert all(f"L{l}H{h}" in text for l, h in paper.writers)
    assert ".707 at depth 10" in text and ".75 at 16" in text


def test_what_it_costs_is_predicted_before():
    costs = acceptance.predicted(acceptance.LLAMA, acceptance.Sizes())
    assert set(costs) == {part.__name__ for part in acceptance.PARTS} and all(c.flop > 1e12 for c in costs.values())
    text = acceptance.plan(acceptance.LLAMA, acceptance.Sizes())
    total = sum(costs.values(), Cost()).flop / acceptance.H100
    assert text.startswith("predicted, not measured: ") and acceptance.shown_time(total) in text and len(text.splitlines()) == 6
    page = (ROOT / "docs" / "acceptance.md").read_text()
    assert f"about {acceptance.shown_time(total)}" in page


def test_without_weights_the_reason_is_said(monkeypatch):
    monkeypatch.delenv(acceptance.WHERE, raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"{acceptance.WHERE} is not set; expected a folder"):
        acceptance.weights()


@pytest.mark.slow
def test_without_weights_it_is_skipped_with_the_reason():
    environment = {k: v for k, v in os.environ.items() if k != acceptance.WHERE and not k.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/acceptance/llama2_7b.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "5 skipped" in done.stdout, done.stdout + done.stderr
    assert f"{acceptance.WHERE} is not set; expected a folder" in done.stdout
