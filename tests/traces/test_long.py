"""A trace of more than 10,000 tokens: nothing of size T x T is made. One head's pattern would be 440 MB."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch

import pycotmech as pcm
from benchmarks.llama7b import forget_peak, peak_gib
from tests.traces.cases import tiny

T, PROMPT, S = 10_500, 9_700, 40
PATTERN_GIB = 4 * T * T / 2**30


@pytest.fixture(scope="module")
def model():
    return tiny(n_layers=2, n_heads=2, n_positions=T + 4)


@pytest.fixture(scope="module")
def trace(model):
    tokens = torch.randint(3, model.cfg.d_vocab, (T + 4,), generator=torch.Generator().manual_seed(0))
    ends = np.linspace(PROMPT, T, S + 1).round().astype(int).tolist()
    return pcm.traces.Trace.from_tokens(model, tokens, sentences=list(itertools.pairwise(ends)), answer=(T + 2, T + 4))


QUESTIONS = {
    "receiver_heads": lambda m, t: pcm.traces.receiver_heads(m, t, draws=20, alpha=0.1),
    "suppress": lambda m, t: pcm.traces.suppress(m, t, controls=0),
    "early_answers": pcm.traces.early_answers,
    "head_influence": lambda m, t: pcm.traces.head_influence(m, t, source=30),
    "answer_paths": pcm.traces.answer_paths,
}


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("name", QUESTIONS)
def test_memory_grows_with_the_tokens_and_not_with_their_square(model, trace, name):
    model.run(trace.tokens[:64])
    forget_peak()
    before = peak_gib()
    QUESTIONS[name](model, trace)
    assert peak_gib() - before < PATTERN_GIB / 2
