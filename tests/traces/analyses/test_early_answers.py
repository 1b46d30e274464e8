"""Early answers against one whole forward for each truncation, and the lens against `pcm.logit_lens`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.close import assert_allclose
from tests.reference.truth import double, logits_of
from tests.traces.cases import random_trace, tiny


def forced(model, trace, cue):
    """Log probability of the answer after 0, 1, ... sentences, one float64 forward each."""
    hf, answer = double(model.hf), trace.answer_tokens
    out, best = [], []
    for end in [trace.reasoning.start, *trace.spans()[:, 1]]:
        ids = torch.cat((trace.tokens[:end], cue, answer))
        logits = torch.log_softmax(logits_of(hf, ids), -1)[len(ids) - len(answer) - 1 : -1]
        out.append(float(logits[range(len(answer)), answer].sum()))
        best.append(bool((logits.argmax(-1) == answer).all()))
    return np.array(out), np.array(best)


@pytest.mark.parametrize("cue", [None, [], [7, 8, 9]])
def test_each_truncation_is_a_forward_of_its_own(cue):
    model = tiny(n_layers=3, n_key_value_heads=2)
    trace = random_trace(model)
    found = pcm.traces.early_answers(model, trace, cue=cue)
    want, best = forced(model, trace, trace.cue if cue is None else torch.tensor(cue, dtype=torch.long))
    assert_allclose(np.log(found.values), want, atol=1e-4)
    np.testing.assert_array_equal(found.data["same"].values.astype(bool), best)
    assert_allclose(found.data["lens"].values[:, -1], found.values, rtol=1e-5)


def test_the_lens_is_the_logit_lens():
    model = tiny(n_layers=3)
    trace = random_trace(model)
    found = pcm.traces.early_answers(model, trace)
    end = trace.spans()[3, 1]
    ids = torch.cat((trace.tokens[:end], trace.cue, trace.answer_tokens))
    first, second = (
        pcm.logit_lens(model, ids, positions=p, answer=int(t), top_k=0).probabilities[:, 0]
        for p, t in zip((-3, -2), trace.answer_tokens)
    )
    assert_allclose(found.data["lens"].values[4], first * second, rtol=1e-3, atol=1e-8)


def test_small_budgets_give_the_same():
    model = tiny(n_layers=3)
    trace = random_trace(model)
    a, b = pcm.traces.early_answers(model, trace), pcm.traces.early_answers(model, trace, memory_gb=1e-4)
    assert_allclose(b.values, a.values, rtol=1e-5)


def test_when_it_is_decided():
    import xarray as xr

    def of(same, p=None):
        n = len(same)
        data = {"same": ("after", np.array(same, float)), "share": ("after", np.linspace(0, 1, n))}
        data |= {"probability": ("after", np.array(same if p is None else p, float))}
        data |= {"lens": (("after", "layer"), np.full((n, 2), np.nan))}
        return pcm.traces.EarlyAnswers(xr.Dataset(data, coords={"after": np.arange(n), "layer": [0, 1]}), {})

    assert of([0, 0, 1, 1]).decided == 2 and of([1, 1, 1]).decided == 0 and of([1, 0, 1]).decided == 2
    assert of([1, 1, 0]).decided is None
    assert of([1, 1, 1]).area_over_curve == 0 and of([0, 0, 0]).area_over_curve == 1
    assert_allclose(of([0, 1, 1]).area_over_curve, 0.25)


def test_it_is_kept_drawn_and_told(tmp_path):
    model = tiny()
    found = pcm.traces.early_answers(model, random_trace(model))
    found.save(tmp_path)
    again = pcm.traces.EarlyAnswers.load(tmp_path)
    assert again.findings() == found.findings() and len(again.table()) == 10
    again.plot(path=tmp_path / "e.png")
    assert pcm.traces.early_answers(model, random_trace(model), lens=False).decided_layer.tolist() == [-1] * 10


def test_wrong_arguments_are_named():
    model = tiny()
    with pytest.raises(ValueError, match="has no answer"):
        pcm.traces.early_answers(model, random_trace(model, answer=False))
    with pytest.raises(ValueError, match="cue: holds token ids"):
        pcm.traces.early_answers(model, random_trace(model), cue=[999])
    with pytest.raises(ValueError, match="cue: got a text"):
        pcm.traces.early_answers(model, random_trace(model), cue="so")
