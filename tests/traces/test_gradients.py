"""Models whose weights take gradients, as Hugging Face's `from_pretrained` returns them: every question, no graph is kept."""

from __future__ import annotations

import pytest

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.traces.cases import random_trace

QUESTIONS = {
    "sentence_attention": pcm.traces.sentence_attention,
    "receiver_heads": lambda m, t: pcm.traces.receiver_heads(m, t, draws=20, alpha=0.1),
    "suppress": pcm.traces.suppress,
    "early_answers": pcm.traces.early_answers,
    "head_influence": lambda m, t: pcm.traces.head_influence(m, t, source=2),
    "head_influence on a sentence": lambda m, t: pcm.traces.head_influence(m, t, source=2, target=5),
    "answer_paths": pcm.traces.answer_paths,
    "is_chain_used": lambda m, t: pcm.traces.is_chain_used(m, [t, random_trace(m, seed=1)], shuffles=1),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_weights_that_take_gradients(name):
    model = pcm.Model(tiny_llama().requires_grad_(True), None, name="tiny")
    assert model.hf.lm_head.weight.requires_grad
    assert QUESTIONS[name](model, random_trace(model)).findings()
    assert all(weight.grad is None for weight in model.hf.parameters())
