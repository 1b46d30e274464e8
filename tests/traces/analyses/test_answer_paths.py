"""Parts of the answer's logit: they add up to what `pcm.head_logits` says of each head."""

from __future__ import annotations

import pytest

import pycotmech as pcm
from tests.reference.close import assert_allclose
from tests.reference.eager import patterns
from tests.reference.small_families import small
from tests.traces.cases import random_trace, tiny


@pytest.mark.parametrize("family", ["tiny", "gemma3_text", "olmo2", "gpt2", "qwen2"])
def test_parts_add_up_to_the_heads_share(family):
    model = tiny(n_key_value_heads=2) if family == "tiny" else pcm.Model(small(family), None, name=family)
    trace = random_trace(model, (3, 5, 2, 4))
    found = pcm.traces.answer_paths(model, trace)
    at = trace.answer.start
    every = list(range(model.cfg.d_vocab))
    whole = pcm.head_logits(model, trace.tokens[:at], positions=-1, answer=every).heads
    want = whole[..., int(trace.tokens[at])] - whole.mean(-1)
    assert_allclose(found.values, want, rtol=1e-3, atol=1e-4)


def test_a_soft_cap_of_logits_is_no_sum():
    model = pcm.Model(small("gemma2"), None, name="gemma2")
    with pytest.raises(NotImplementedError, match="soft-capped"):
        pcm.traces.answer_paths(model, random_trace(model))


def test_masses_are_the_patterns_rows():
    model = tiny(n_layers=2)
    trace = random_trace(model)
    found = pcm.traces.answer_paths(model, trace)
    row = patterns(model.hf, trace.tokens, 2)[:, :, trace.answer.start - 1]
    a, b = trace.spans()[4]
    assert_allclose(found.data["mass"].sel(part="sentence 4").values, row[..., a:b].sum(-1).numpy(), rtol=1e-4)
    assert_allclose(found.data["mass"].sum("part").values, 1.0, rtol=1e-5)


def test_it_is_kept_drawn_and_told(tmp_path):
    model = tiny()
    found = pcm.traces.answer_paths(model, random_trace(model))
    found.save(tmp_path)
    again = pcm.traces.AnswerPaths.load(tmp_path)
    assert again.findings() == found.findings()
    assert again.table()["part"].tolist()[:3] == ["first token", "prompt", "sentence 0"]
    again.plot(path=tmp_path / "p.png")
    with pytest.raises(ValueError, match="has no answer"):
        pcm.traces.answer_paths(model, random_trace(model, answer=False))
