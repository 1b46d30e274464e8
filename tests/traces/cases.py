"""Traces of small models with random tokens."""

from __future__ import annotations

import torch

import pycotmech as pcm
from pycotmech.traces import Trace
from tests.reference.tiny import tiny_llama


def tiny(**sizes) -> pcm.Model:
    return pcm.Model(tiny_llama(**sizes), None, name="tiny")


def random_trace(
    model: pcm.Model,
    lengths: tuple[int, ...] = (3, 5, 4, 2, 6, 3, 4, 5, 3),
    *,
    prompt: int = 5,
    seed: int = 0,
    answer: bool = True,
) -> Trace:
    """A trace of random tokens: a prompt, sentences of these lengths, a cue of two tokens and an answer of two."""
    n = prompt + sum(lengths)
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, model.cfg.d_vocab, (n + 4,), generator=g)
    ends = [prompt + sum(lengths[: i + 1]) for i in range(len(lengths))]
    spans = list(zip([prompt, *ends[:-1]], ends, strict=True))
    return Trace.from_tokens(model, tokens, sentences=spans, answer=(n + 2, n + 4) if answer else None, name=f"random {seed}")
