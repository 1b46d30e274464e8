"""Each head's cut against one hooked float64 forward for each head."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.close import assert_allclose
from tests.reference.eager import kl_rows
from tests.reference.small_families import small
from tests.reference.truth import double, edited, logits_of
from tests.traces.cases import random_trace, tiny


def reference(model, trace, keys, target, rows="after"):
    hf, cfg = double(model.hf), model.cfg
    base = logits_of(hf, trace.tokens)
    answer = trace.answer
    reads = range(answer.start - 1, answer.stop - 1) if target == "answer" else range(*trace.spans()[target])
    queries = list(reads) if rows == "target" else list(range(max(keys) + 1, len(trace)))
    out = np.zeros((cfg.n_layers, cfg.n_heads))
    for l in range(cfg.n_layers):
        for h in range(cfg.n_heads):
            with edited(hf, [("edge", l, h, queries, list(keys))]):
                cut = logits_of(hf, trace.tokens)
            if target == "answer":
                a, b = (torch.log_softmax(x[list(reads)], -1)[range(len(reads)), trace.answer_tokens] for x in (base, cut))
                out[l, h] = float((a - b).sum())
            else:
                out[l, h] = kl_rows(base, cut)[list(reads)].mean()
    return out


@pytest.mark.parametrize("target", ["answer", 6])
@pytest.mark.parametrize("rows", ["after", "target"])
def test_one_forward_for_each_head(target, rows):
    model = tiny(n_layers=3, n_key_value_heads=2)
    trace = random_trace(model)
    found = pcm.traces.head_influence(model, trace, source=2, target=target, rows=rows)
    want = reference(model, trace, range(*trace.spans()[2]), target, rows)
    assert_allclose(found.values, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "qwen2", "gpt_oss"])
def test_families(family):
    model = pcm.Model(small(family), None, name=family)
    trace = random_trace(model, (3, 5, 2, 4))
    found = pcm.traces.head_influence(model, trace, source="reasoning")
    want = reference(model, trace, range(trace.reasoning.start, trace.reasoning.stop), "answer")
    assert_allclose(found.values, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_several_sentences_with_a_gap_between_them():
    model = tiny()
    trace = random_trace(model)
    keys = [p for j in (1, 3) for p in range(*trace.spans()[j])]
    found = pcm.traces.head_influence(model, trace, source=[3, 1], target="answer")
    assert_allclose(found.values, reference(model, trace, keys, "answer"), rtol=1e-4, atol=1e-5)
    assert found.about["settings"]["source"] == "sentences 1 and 3"


def test_an_answer_right_after_the_reasoning_is_read_at_its_last_token():
    model = tiny()
    whole = random_trace(model)
    end = whole.reasoning.stop
    trace = pcm.traces.Trace.from_tokens(
        model, whole.tokens[: end + 1], sentences=whole.spans().tolist(), answer=(end, end + 1)
    )
    found = pcm.traces.head_influence(model, trace, source="reasoning")
    want = reference(model, trace, range(trace.reasoning.start, end - 1), "answer")
    assert_allclose(found.values, want, rtol=1e-4, atol=1e-5)


def test_it_is_kept_drawn_and_told(tmp_path):
    model = tiny()
    found = pcm.traces.head_influence(model, random_trace(model), source=0)
    found.save(tmp_path)
    again = pcm.traces.HeadInfluence.load(tmp_path)
    assert again.findings() == found.findings() and len(again.table()) == 8
    again.plot(path=tmp_path / "h.png")


def test_wrong_arguments_are_named():
    model = tiny()
    trace = random_trace(model)
    for options, why in [
        ({"source": 9}, "source: got 9"), ({"source": []}, "source: got no sentence"), ({"source": "all"}, "source: got 'all'"),
        ({"source": 3, "target": 2}, "target: 2 begins at token"), ({"source": 0, "rows": "none"}, "rows: got 'none'"),
        ({"source": 0, "target": "end"}, "target: got 'end'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=why):
            pcm.traces.head_influence(model, trace, **options)
