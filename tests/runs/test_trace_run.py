"""The plan of a run over traces, and what two runs must agree on; the command itself is tested in tests/cli/test_trace.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pycotmech.files.whole import write_sealed
from pycotmech.model import Model
from pycotmech.runs.status import TRACE
from pycotmech.runs.trace_run import TracePlan, TraceSettings, plan_of, run_traces
from tests.traces.cases import random_trace, tiny


def test_the_plan_counts_the_rows_of_each_analysis(tmp_path):
    model = tiny()
    trace = random_trace(model)
    settings = TraceSettings("tiny", tmp_path / "t.jsonl", controls=0)
    plan = plan_of(model, [trace], settings)
    T = len(trace) - 1  # the last token predicts nothing that is read
    assert plan.forwards["suppress"] == T + sum(T - s.stop for s in trace.sentences)
    assert plan.forwards["receiver_heads"] == trace.reasoning.stop
    assert set(plan.times) == set(plan.units) and plan.seconds == pytest.approx(sum(plan.times.values()))
    assert plan.seconds == pytest.approx(sum(plan.forwards.values()) / plan.speed)
    without = plan_of(model, [random_trace(model, answer=False)], settings)
    assert without.forwards["early_answers"] == without.forwards["chain_use"] == 0
    assert "in all" in str(plan) and plan.seconds > 0
    assert "2 min" in str(TracePlan(1, 1, 1, {"suppress": 120.0}, 1.0))


def test_the_plan_says_what_the_traces_do_not_allow(tmp_path):
    model = tiny()
    one = plan_of(model, [random_trace(model, (3, 4, 5, 3, 2, 4))], TraceSettings("tiny", tmp_path / "t.jsonl"))
    assert set(one.units) == {f"trace_000/{name}" for name in ("suppress", "early_answers", "answer_paths")}
    first, last = one.left_out
    assert first == (
        "receiver_heads, as the longest trace has 6 sentences; at proximity 4 it takes a trace of 8, or --proximity 2"
    )
    assert last == "chain_use, which compares traces: it takes two with answers, and there are 1"
    assert f"left out: {first}" in str(one) and "receiver_heads   " not in str(one)
    two = [random_trace(model, seed=0), random_trace(model, seed=1, answer=False)]
    found = plan_of(model, two, TraceSettings("tiny", tmp_path / "t.jsonl")).left_out
    assert [line.split(",")[0] for line in found] == ["early_answers and answer_paths of random 1", "chain_use"]


def test_the_identity_holds_the_files_content_and_nothing_that_changes_no_number(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text("a")
    one = TraceSettings("tiny", file, memory_gb=1.0, threads=1).identity()
    assert one == TraceSettings("tiny", file).identity()
    file.write_text("b")
    assert one != TraceSettings("tiny", file).identity()


def test_other_settings_are_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    """What only a loaded model tells, its weights and configuration, is no difference until then."""
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    settings = TraceSettings("tiny", file)
    out = tmp_path / "out"
    out.mkdir()
    write_sealed(out / TRACE, {"identity": settings.identity() | {"weights": "sha256:1", "config": "sha256:2"}})

    def loaded(*args, **options):
        raise InterruptedError

    monkeypatch.setattr(Model, "from_pretrained", loaded)
    with pytest.raises(InterruptedError):
        run_traces(settings, out)
    with pytest.raises(ValueError, match=r"contains results of other settings: top was 20, now 5; seed was 0, now 1\. Give"):
        run_traces(replace(settings, top=5, seed=1), out)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"proximity": 0}, "proximity: got 0; expected 1 or more"), ({"seed": 2**32}, "seed: got 4294967296")],
)
def test_what_an_analysis_would_refuse_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch, wrong, message):
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    monkeypatch.setattr(Model, "from_pretrained", lambda *a, **o: pytest.fail("loaded before the settings were checked"))
    with pytest.raises(ValueError, match=message):
        run_traces(TraceSettings("tiny", file, **wrong), tmp_path / "out")
