"""Receiver heads and suppression against the published functions of Thought Anchors, on the same weights and tokens."""

from __future__ import annotations

import numpy as np
import pytest

import pycotmech as pcm
from tests.peers.thought_anchors import log_kl_matrix, published, run
from tests.reference.close import assert_allclose
from tests.traces.cases import random_trace, tiny

pytestmark = pytest.mark.peers

N = 3


@pytest.fixture(scope="module")
def theirs():
    return published()


@pytest.fixture(scope="module")
def model():
    return tiny(n_layers=3, n_key_value_heads=2, d_model=64)  # its hooks take d_model / n_heads for the size of a head


@pytest.fixture(scope="module")
def traces(model):
    return [random_trace(model, seed=s) for s in range(N)]


def matrices(theirs, model, trace) -> np.ndarray:
    """[L, H, S, S]."""
    weights, spans = run(theirs, model.hf, trace.tokens)["attention_weights"], [tuple(s) for s in trace.spans().tolist()]
    average = theirs.attention._compute_averaged_matrix
    return np.stack([[average(weights[l][0, h].numpy(), spans) for h in range(4)] for l in range(3)])


def test_attention_from_sentence_to_sentence(theirs, model, traces):
    found = pcm.traces.sentence_attention(model, traces[0]).values
    assert_allclose(found, matrices(theirs, model, traces[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("control_depth", [False, True])
def test_receiver_heads(theirs, model, traces, control_depth):
    found = pcm.traces.receiver_heads(model, traces, top=5, draws=20, alpha=0.1, control_depth=control_depth)
    kurtosis, vertical = [], []
    for trace in traces:
        scores = np.array(
            [
                [theirs.attention.get_vertical_scores(m, proximity_ignore=4, control_depth=control_depth) for m in layer]
                for layer in matrices(theirs, model, trace)
            ]
        )
        vertical.append(scores)
        kurtosis.append(theirs.receivers.get_3d_ar_kurtosis(scores))
    assert_allclose(found.data["vertical"].values, np.array(vertical), rtol=1e-4, atol=1e-7)
    assert_allclose(found.data["kurtosis"].values, np.array(kurtosis), rtol=1e-4, atol=1e-4)
    mean = np.mean(kurtosis, 0)
    best = np.unravel_index(theirs.receivers.get_top_k_layer_head_kurts(mean, 5), mean.shape)
    assert found.top == list(zip(*(axis.tolist() for axis in best)))
    scores = theirs.receivers.get_receiver_head_scores(np.array(found.top), vertical[0])
    assert_allclose(found.sentence_scores(0), scores, rtol=1e-4, atol=1e-7)


def test_suppression(theirs, model, traces):
    found = pcm.traces.suppress(model, traces[0], definition="published", controls=0)
    want = log_kl_matrix(theirs, model.hf, traces[0])
    assert_allclose(found.data["log_kl"].values, want, rtol=1e-4, atol=1e-4)
    rows = want.copy()
    for i in range(1, len(rows)):  # as the published figure takes it
        rows[i] -= np.nanmean(rows[i])
    assert_allclose(found.normalised("later"), rows, rtol=1e-4, atol=1e-4)


def test_what_the_published_compression_adds(theirs, model, traces):
    """A token that is kept of the untouched run and not of the other counts there with a log probability of about -1.7e9: with
    tails cut, every entry is larger than on whole distributions."""
    found = pcm.traces.suppress(model, traces[0], definition="published", controls=0).data["log_kl"].values
    rough = log_kl_matrix(theirs, model.hf, traces[0], share=0.9999)
    known = np.isfinite(rough)
    assert np.array_equal(known, np.isfinite(found))
    assert (rough > found)[known].all() and (rough - found)[known].mean() > 1
