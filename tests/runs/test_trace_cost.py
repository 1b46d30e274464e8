"""The work of analyses of traces, counted from sizes, against rows counted by hand."""

from __future__ import annotations

import pytest

from pycotmech.runs.trace_cost import demands
from tests.traces.cases import random_trace, tiny


def test_the_work_of_each_analysis():
    model = tiny(n_layers=3)
    cfg, trace = model.cfg, random_trace(model)
    found = demands(cfg, [trace, trace], proximity=4, controls=2)
    per_trace = {f"trace_00{i}/{name}" for i in range(2) for name in ("suppress", "early_answers", "answer_paths")}
    assert set(found) == {"receiver_heads", "chain_use"} | per_trace
    rows = {name: demand.token_forwards(cfg) for name, demand in found.items()}
    T, S, stop, tail, end = 44, 9, 40, 4, 43
    assert (len(trace), trace.n_sentences, trace.reasoning.stop) == (T, S, stop)
    assert rows["receiver_heads"] == 2 * stop and rows["trace_001/answer_paths"] == T
    assert rows["trace_000/suppress"] == end + 3 * sum(end - s.stop for s in trace.sentences)
    assert rows["trace_000/early_answers"] == stop + (S + 1) * tail
    heads = cfg.n_heads * sum(range(1, cfg.n_layers + 1)) * tail / cfg.n_layers  # each from its layer on
    assert rows["chain_use"] == pytest.approx(2 * (6 * (stop - 5 + tail) + T + heads))


def test_what_the_traces_do_not_allow_costs_nothing():
    model = tiny(n_layers=2)
    without = demands(model.cfg, [random_trace(model, answer=False)], proximity=4, controls=1)
    assert set(without) == {"receiver_heads", "trace_000/suppress"}
    assert set(demands(model.cfg, [random_trace(model)], proximity=6, controls=1)) == {
        f"trace_000/{name}" for name in ("suppress", "early_answers", "answer_paths")
    }
