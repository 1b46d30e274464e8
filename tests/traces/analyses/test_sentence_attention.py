"""Sentence attention, vertical scores and kurtosis against the patterns of eager attention, read off block by block."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

import pycotmech as pcm
from pycotmech.traces.analyses import sentence_attention as module
from tests.reference.close import assert_allclose
from tests.reference.eager import patterns, sentence_matrix, vertical_loop
from tests.reference.small_families import small
from tests.traces.cases import random_trace, tiny


def reference(model, trace):
    found = patterns(model.hf, trace.tokens, model.cfg.n_layers)
    return np.stack([sentence_matrix(layer, trace.spans().tolist()) for layer in found])


@pytest.mark.parametrize("sizes", [{"n_layers": 3}, {"n_layers": 2, "n_heads": 6, "n_key_value_heads": 2, "d_head": 8}])
def test_it_is_the_mean_of_the_pattern_over_pairs_of_tokens(sizes):
    model = tiny(**sizes)
    trace = random_trace(model)
    found = pcm.traces.sentence_attention(model, trace)
    assert found.values.shape == (model.cfg.n_layers, model.cfg.n_heads, 9, 9)
    assert_allclose(found.values, reference(model, trace), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gemma2", "qwen2", "gpt2", "gpt_neox", "gpt_oss"])
def test_windows_and_soft_caps_are_the_layers_own(family):
    model = pcm.Model(small(family), None, name=family)
    trace = random_trace(model)
    assert_allclose(pcm.traces.sentence_attention(model, trace).values, reference(model, trace), rtol=1e-4, atol=1e-5)


def test_heads_taken_one_after_another_give_the_same(monkeypatch):
    model = tiny(n_heads=6, n_key_value_heads=3)
    trace = random_trace(model)
    at_once = pcm.traces.sentence_attention(model, trace).values
    monkeypatch.setattr(module, "_MASS_BYTES", 1)
    np.testing.assert_array_equal(pcm.traces.sentence_attention(model, trace).values, at_once)


def test_vertical_scores_and_kurtosis_are_the_published_ones():
    rng = np.random.default_rng(0)
    matrix = np.tril(rng.random((2, 3, 12, 12)))
    found = pcm.traces.vertical_scores(matrix, proximity=4)
    for l in range(2):
        for h in range(3):
            assert_allclose(found[l, h], vertical_loop(matrix[l, h], 4), rtol=1e-12)
    assert np.isnan(found[..., -4:]).all()
    assert_allclose(
        pcm.traces.kurtosis(found), scipy.stats.kurtosis(found, axis=-1, fisher=True, bias=True, nan_policy="omit"), rtol=1e-10
    )


def test_ranks_in_a_row_replace_its_attention_where_depth_is_controlled():
    matrix = np.tril(np.random.default_rng(1).random((7, 7)))
    found = pcm.traces.vertical_scores(matrix, proximity=2, control_depth=True)
    row = matrix[5, :4]  # sentence 5 ranks those at least 2 before it
    ranks = scipy.stats.rankdata(row) / 4
    others = [scipy.stats.rankdata(matrix[i, : i - 1])[3] / (i - 1) for i in (6,)]
    assert_allclose(found[3], np.mean([ranks[3], *others]))


def test_scores_that_are_equal_have_no_kurtosis():
    assert np.isnan(pcm.traces.kurtosis(np.array([0.2, 0.2, 0.2, np.nan])))
    assert np.isnan(pcm.traces.kurtosis(np.array([0.2, np.nan])))


def test_it_is_kept_and_read_back(tmp_path):
    model = tiny()
    found = pcm.traces.sentence_attention(model, random_trace(model))
    found.save(tmp_path)
    again = pcm.traces.SentenceAttention.load(tmp_path)
    np.testing.assert_array_equal(again.values, found.values)
    assert again.findings() == found.findings()
    found.plot(path=tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert {"later", "earlier", "attention"} <= set(found.graph(top=2).columns)
    found.plot_graph(heads=[(0, 1)], path=tmp_path / "graph.png")
    assert list(found.figures()) == ["graph"] and (tmp_path / "graph.png").stat().st_size > 1000


def test_a_trace_of_another_model_is_refused():
    trace = random_trace(tiny(d_vocab=200), seed=3)
    with pytest.raises(ValueError, match="trace: holds the token"):
        pcm.traces.sentence_attention(tiny(d_vocab=61), trace)
    with pytest.raises(TypeError, match="trace: got Tensor"):
        pcm.traces.sentence_attention(tiny(), torch.arange(4))


def test_too_few_sentences_are_said_and_no_head_is_named():
    model = tiny()
    trace = pcm.traces.Trace.from_tokens(model, list(range(4, 16)), sentences=[(2, 5), (5, 8), (8, 12)])
    (line,) = pcm.traces.sentence_attention(model, trace).findings()
    assert line.endswith("over 3 sentences: too few for vertical scores, which leave out sentences nearer than 4")
