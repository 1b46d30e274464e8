"""What heads attend to and write, beside the attention and the logits of hooked passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.runs.head_views import (
    FILE,
    ViewedPrompt,
    head_views,
    keep_head_views,
    prompts_of_records,
    read_head_views,
    strongest_heads,
)
from pycotmech.runs.progress import ProgressReporter
from tests.reference.eager import patterns


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot", dtype="float32")


@pytest.fixture(scope="module")
def prompts():
    ids = torch.tensor([1, *np.random.default_rng(0).integers(5, 200, 23).tolist()])
    other = torch.cat((ids[:9], torch.tensor([7, 8])))
    return [ViewedPrompt("0", 2, ids[:15], "a"), ViewedPrompt("0", 5, ids, "b"), ViewedPrompt("0", 7, other, "c")]


def test_keys_and_words_are_those_of_a_hooked_pass(model, prompts):
    heads = [(3, 1), (0, 4)]
    found = head_views(model, prompts, heads)
    assert [(v["step"], v["read"], v["text"]) for v in found["views"]] == [(2, 14, 0), (5, 23, 0), (7, 10, 1)]
    assert found["cost"]["forwards"] == 4  # one text for the two prompts that begin it, one for the third
    for prompt, view in zip(prompts, found["views"]):
        patterns_of = patterns(model.hf, prompt.tokens, model.cfg.n_layers)
        logits = pcm.head_logits(
            model, prompt.tokens, answer=torch.arange(model.cfg.d_vocab)[None].expand(1, -1), positions=[-1]
        )
        for l, h in heads:
            one = view["heads"][f"{l}.{h}"]
            pattern = patterns_of[l, h, -1]
            top = pattern.topk(min(8, len(pattern)))
            assert one["keys"] == top.indices.tolist()
            np.testing.assert_allclose(one["mass"], top.values, atol=1e-4)
            adds = torch.from_numpy(logits.heads[0, l, h]).double()
            best = (adds - adds.mean()).topk(5)
            np.testing.assert_allclose(one["adds"], best.values, atol=1e-3)
            assert one["words"] == [model.tokenizer.decode([t]) for t in best.indices.tolist()]


def test_strongest_heads_lie_beyond_their_step_s_limit():
    values = np.zeros((2, 2, 3))
    values[0, 0, 1], values[0, 1, 2], values[1, 1, 0], values[1, 0, 0] = 0.5, -0.9, 0.2, np.nan
    assert strongest_heads(values, [0.1, 0.3]) == [(1, 2), (0, 1)]
    assert strongest_heads(values, [0.1, 0.1], each=1) == [(1, 2), (1, 0)]
    assert strongest_heads(values, [0.1, np.nan], most=1) == [(1, 2)] and strongest_heads(values, [1, 1]) == []


def test_prompts_are_those_of_finished_steps(model):
    steps = [{"step": s, "clean": [1, 5, 6 + s], "answer_word": f"w{s}"} for s in (0, 1)]
    records = [{"example": i, "steps": steps} for i in range(5)]
    found = prompts_of_records(model, records, {"0": [], "1": [1], "2": [0, 1], "3": [0], "4": [0]})
    assert [(p.example, p.step, p.answer) for p in found] == [("1", 1, "w1"), ("2", 0, "w0"), ("2", 1, "w1"), ("3", 0, "w0")]
    pair = prompts_of_records(model, [{"example": 0, "name": "x", "clean": [1, 5], "answer": 9}], {"x": [0]})
    assert [(p.example, p.step, p.answer) for p in pair] == [("x", 0, model.tokenizer.decode([9]))]


class Told(ProgressReporter):
    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def test_kept_once_and_read_back(model, prompts, tmp_path, monkeypatch):
    heads = [(3, 1)]
    assert keep_head_views(tmp_path, model, prompts, heads, {"seed": 0})
    first = (tmp_path / FILE).read_bytes()
    monkeypatch.setattr("pycotmech.runs.head_views.head_views", lambda *a, **k: pytest.fail("made again"))
    assert keep_head_views(tmp_path, model, prompts, heads, {"seed": 0}) and (tmp_path / FILE).read_bytes() == first
    found = read_head_views(tmp_path)
    assert found is not None and found["count"] == 1 and len(found["views"]) == 3
    (tmp_path / FILE).write_bytes(first.replace(b'"read": 14', b'"read": 13'))
    assert read_head_views(tmp_path) is None  # its digest does not hold


def test_what_cannot_be_made_is_said(model, prompts, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise ValueError("model: no sum over heads")

    monkeypatch.setattr("pycotmech.runs.head_views.head_views", refused)
    told = Told()
    assert not keep_head_views(tmp_path, model, prompts, [(0, 0)], {}, told)
    assert "heads.json is not written" in told.lines[0] and "no sum over heads" in told.lines[0]
    assert not keep_head_views(tmp_path, model, prompts, [], {}, told) and len(told.lines) == 1
