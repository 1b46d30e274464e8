"""Receiver heads: the published numbers, and the null, which removes what sentences do not cause."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.traces.analyses.receiver_heads import corrected
from tests.reference.close import assert_allclose
from tests.reference.eager import patterns, sentence_matrix, vertical_loop
from tests.traces.cases import random_trace, tiny


def test_kurtosis_and_ranks_agree_with_eager_attention_head_by_head():
    import scipy.stats

    model = tiny(n_layers=2)
    traces = [random_trace(model, seed=s) for s in range(3)]
    found = pcm.traces.receiver_heads(model, traces, top=3, draws=20, seed=1)
    want = np.zeros((3, 2, 4))
    for n, trace in enumerate(traces):
        of_layers = patterns(model.hf, trace.tokens, 2)
        for l in range(2):
            matrix = sentence_matrix(of_layers[l], trace.spans().tolist())
            for h in range(4):
                scores = vertical_loop(matrix[h], 4)
                want[n, l, h] = scipy.stats.kurtosis(scores[~np.isnan(scores)])
    assert_allclose(found.data["kurtosis"].values, want, rtol=1e-4, atol=1e-4)
    best = sorted(np.ndindex(2, 4), key=lambda p: -want.mean(0)[p])[:3]
    assert found.top == best
    halves = want[::2].mean(0)[1:].ravel(), want[1::2].mean(0)[1:].ravel()
    assert_allclose(found.reliability().mean, np.corrcoef(*halves)[0, 1], rtol=1e-4)


def test_attention_that_only_falls_with_distance_has_no_receiver_head():
    """All entries of a distance are exchangeable: no head may be named more often than at the rate alpha."""
    from pycotmech.traces.analyses.receiver_heads import _Shuffled

    rng, S, H, alpha, false = np.random.default_rng(0), 16, 8, 0.1, 0
    distance = np.subtract.outer(np.arange(S), np.arange(S))
    for trial in range(60):
        matrix = np.tril(np.exp(-0.2 * np.abs(distance)) * rng.lognormal(0, 1, (H, S, S)))
        null = _Shuffled(S, 4, 99, trial).kurtosis(torch.from_numpy(matrix))
        observed = pcm.traces.kurtosis(pcm.traces.vertical_scores(matrix))
        false += bool((corrected(observed, null) <= alpha).any())
    assert false <= 14  # 60 draws of a rate of 0.1 exceed 14 with a probability below 0.001


def test_a_head_that_looks_at_one_sentence_is_found_beyond_the_null():
    from pycotmech.traces.analyses.receiver_heads import _Shuffled

    rng, S = np.random.default_rng(2), 20
    matrix = np.tril(rng.lognormal(0, 0.5, (6, S, S)))
    matrix[3, :, 5] += 8 * (np.arange(S) > 5)
    null = _Shuffled(S, 4, 99, 0).kurtosis(torch.from_numpy(matrix))
    p = corrected(pcm.traces.kurtosis(pcm.traces.vertical_scores(matrix)), null)
    assert p[3] == 0.01 and (np.delete(p, 3) > 0.05).all()


def test_permutation_keeps_every_distance_to_itself():
    from pycotmech.traces.analyses.receiver_heads import _Shuffled

    S = 9
    s = _Shuffled(S, 3, 20, 0)
    distance = (s.later - s.earlier)[s.by_distance]
    for order in s.orders:
        assert torch.equal((s.later - s.earlier)[order], distance)
        assert sorted(order.tolist()) == list(range(len(order)))


def test_three_scores_have_no_shape_and_four_do():
    """Of three values the kurtosis is -1.5 whatever they are."""
    model = tiny()
    with pytest.raises(ValueError, match="the longest has 7 sentences; expected at least 8"):
        pcm.traces.receiver_heads(model, random_trace(model, (3,) * 7))
    found = pcm.traces.receiver_heads(model, random_trace(model, (3,) * 8), draws=20, alpha=0.1)
    assert np.ptp(found.values) > 0.1


def test_short_traces_are_left_out_and_said():
    model = tiny()
    found = pcm.traces.receiver_heads(model, [random_trace(model), random_trace(model, (3, 4))], draws=20, alpha=0.1)
    assert found.data.sizes["trace"] == 1 and any("too few sentences" in note for note in found.about["notes"])
    assert "needs two traces" in found.findings()[-1]
    with pytest.raises(ValueError, match="traces: the longest has 2 sentences"):
        pcm.traces.receiver_heads(model, [random_trace(model, (3, 4))])


def test_wrong_arguments_are_named():
    model = tiny()
    trace = random_trace(model)
    with pytest.raises(ValueError, match=r"alpha: got 0\.001"):
        pcm.traces.receiver_heads(model, trace, alpha=0.001)
    with pytest.raises(TypeError, match=r"traces\[1\]: got str"):
        pcm.traces.receiver_heads(model, [trace, "text"])
    with pytest.raises(ValueError, match="traces: the list is empty"):
        pcm.traces.receiver_heads(model, [])


def test_it_is_kept_and_drawn(tmp_path):
    model = tiny()
    found = pcm.traces.receiver_heads(model, [random_trace(model, seed=s) for s in range(2)], draws=20, alpha=0.1, top=4)
    found.save(tmp_path)
    again = pcm.traces.ReceiverHeads.load(tmp_path)
    assert again.top == found.top and again.named == found.named
    assert len(again.sentence_scores(1)) == 9
    found.plot(path=tmp_path / "heads.png")
    assert len(found.table()) == 8
