"""The plan of a run over traces, and what two runs must agree on; the command itself is tested in tests/cli/test_trace.py."""

from __future__ import annotations

from pycotmech.runs.trace_run import TracePlan, TraceSettings, plan_of
from tests.traces.cases import random_trace, tiny


def test_the_plan_counts_the_rows_of_each_analysis(tmp_path):
    model = tiny()
    trace = random_trace(model)
    settings = TraceSettings("tiny", tmp_path / "t.jsonl", controls=0)
    plan = plan_of(model, [trace], settings)
    T = len(trace)
    assert plan.forwards["suppress"] == T + sum(T - s.stop for s in trace.sentences)
    assert plan.forwards["receiver_heads"] == trace.reasoning.stop
    without = plan_of(model, [random_trace(model, answer=False)], settings)
    assert without.forwards["early_answers"] == without.forwards["chain_use"] == 0
    assert "in all" in str(plan) and plan.seconds > 0
    assert "2 min" in str(TracePlan(1, 1, 1, {"suppress": 120.0}, 1.0))


def test_the_identity_holds_the_files_content_and_nothing_that_changes_no_number(tmp_path):
    file = tmp_path / "t.jsonl"
    file.write_text("a")
    one = TraceSettings("tiny", file, memory_gb=1.0, threads=1).identity()
    assert one == TraceSettings("tiny", file).identity()
    file.write_text("b")
    assert one != TraceSettings("tiny", file).identity()
