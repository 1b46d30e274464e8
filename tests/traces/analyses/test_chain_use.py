"""The conditions against whole forwards, and what the question refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.traces.analyses.chain_use import chain_probabilities
from tests.reference.close import assert_allclose
from tests.reference.truth import double, logits_of
from tests.traces.cases import random_trace, tiny


def test_each_condition_is_a_forward_of_its_own():
    model = tiny(n_layers=3)
    trace, other = random_trace(model), random_trace(model, (4, 6), seed=1)
    chains = [trace.tokens[trace.reasoning], trace.tokens[:0], other.tokens[other.reasoning]]
    found = chain_probabilities(model, trace, chains)
    for chain, p in zip(chains, found):
        ids = torch.cat((trace.tokens[trace.prompt], chain, trace.cue, trace.answer_tokens))
        logp = torch.log_softmax(logits_of(double(model.hf), ids), -1)[-3:-1]
        assert_allclose(np.log(p), float(logp[[0, 1], trace.answer_tokens].sum()), atol=1e-4)
    assert_allclose(chain_probabilities(model, trace, chains, 1e-4), found, rtol=1e-5)


def test_full_and_none_are_the_ends_of_early_answering():
    model = tiny(n_layers=2)
    traces = [random_trace(model, seed=s) for s in range(3)]
    found = pcm.traces.is_chain_used(model, traces)
    p, early = found.data["probability"], found.data["early"].values
    assert_allclose(p.sel(condition="full").values, early[:, 9], rtol=1e-4)
    assert_allclose(p.sel(condition="none").values, early[:, 0], rtol=1e-4)
    through = found.verdicts()[3]
    assert through.word == "not decided"  # three traces can give no p-value that small
    assert through.evidence.endswith("whether that is beyond chance takes 5 traces or more, and there are 3")
    with pytest.raises(
        ValueError, match=r"alpha: got 0\.05, which sign flips of 3 traces cannot reach; expected 5 traces or more"
    ):
        found.heads()
    assert sum(float(share.mean) for share in found.when().values()) == pytest.approx(1)


@pytest.mark.parametrize("controls", [0, 1])
def test_the_evidence_is_for_a_reader_of_the_report(controls):
    """No message of an error, no "unknown", and the reason of every verdict that is open."""
    model = tiny(n_layers=2)
    found = pcm.traces.is_chain_used(model, [random_trace(model, seed=s) for s in range(2)], shuffles=1, controls=controls)
    for verdict in found.verdicts():
        assert not set(verdict.evidence.replace(",", " ").split()) & {"expected", "got", "unknown", "nan", "scores:"}, verdict
        if verdict.word == "not decided":
            reasons = ("lies on both sides", "decides nothing: ", "beyond chance", "no control", "decided before")
            assert any(reason in verdict.evidence for reason in reasons), verdict
    if controls == 0:
        assert found.verdicts()[2].evidence.endswith("no control was asked for")


def test_too_few_traces_and_missing_answers_are_named():
    model = tiny()
    with pytest.raises(ValueError, match="traces: got one"):
        pcm.traces.is_chain_used(model, [random_trace(model)])
    with pytest.raises(ValueError, match=r"traces\[1\]: random 1 has no answer"):
        pcm.traces.is_chain_used(model, [random_trace(model), random_trace(model, seed=1, answer=False)])
    with pytest.raises(ValueError, match="done: got 1 for 2"):
        pcm.traces.is_chain_used(model, [random_trace(model), random_trace(model, seed=1)], done=[None])


def test_one_answer_for_all_is_said():
    model = tiny()
    a = random_trace(model)
    found = pcm.traces.is_chain_used(model, [a, a.named("again")], shuffles=1)
    assert any("the same answer" in note for note in found.about["notes"])


def test_an_open_question_says_how_many_traces_would_decide_it():
    from pycotmech.traces.analyses.chain_use import _answered

    rng = np.random.default_rng(0)
    base = pcm.traces.is_chain_used(tiny(n_layers=2), [random_trace(tiny(n_layers=2), seed=s) for s in range(2)])
    probability = np.zeros((6, 4))
    probability[:, 0] = rng.uniform(0.1, 0.9, 6)
    probability[:, 3] = probability[:, 0] - 0.06 - 0.4 * rng.standard_normal(6)
    use = pcm.traces.ChainUse(base.data.isel(trace=[0, 1] * 3).assign(probability=(("trace", "condition"), probability)), {
        **base.about, "traces": ["a"] * 6, "sentences": base.about["sentences"] * 3})  # fmt: skip
    depends, order, *_ = use.verdicts()
    assert depends.word == "yes" and depends.needed is None and "would decide" not in depends.evidence
    assert order.word == "not decided" and order.needed > 6
    assert "only more than 0.05 counts, and the interval lies on both sides of that. " in order.evidence
    assert order.evidence.endswith(("there are 6", "would decide it"))
    assert (
        _answered("q", "not decided", "e", 6, np.inf).evidence == "e. No feasible number of traces like these would decide it"
    )
    assert _answered("q", "not decided", "e", 6, 5).evidence == "e. A few more traces like these may decide it; there are 6"
    assert _answered("q", "not decided", "e", 1, np.nan).needed is None
