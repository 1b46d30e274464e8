"""Prompts and traces for the tests of sources, writers and flow."""

from __future__ import annotations

import torch

from pycotmech.cot.tools.activations import Prompt, traced
from tests.reference.planted import Planted
from tests.reference.planted import Prompt as PlantedPrompt

SITES = ("z", "q", "resid_pre", "resid_mid")


def asked(prompt: PlantedPrompt) -> Prompt:
    """A planted prompt as the analyses take it: the answer's word stands wherever its token does."""
    at = (prompt.tokens == prompt.answer).nonzero().flatten().tolist()
    spans = tuple(slice(p, p + 1) for p in at)
    return Prompt(prompt.tokens, prompt.answer, prompt.wrong, prompt.corrupted, prompt.segments, spans)


def traces_of(model, texts, sites=SITES, **options):
    """All traces, in order."""
    return [trace for batch in traced(model, texts, sites, **options) for _, trace in batch]


def planted_traces(planted: Planted, n: int, *, seed: int = 0):
    """[(what is asked, trace, planted prompt), ...]"""
    found = planted.prompts(n, seed)
    traces = traces_of(planted.model, [p.tokens for p in found], whole=True)
    return [(asked(p), trace, p) for p, trace in zip(found, traces, strict=True)]


def random_tokens(n: int, vocabulary: int = 61, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocabulary, (n,), generator=torch.Generator().manual_seed(seed))
