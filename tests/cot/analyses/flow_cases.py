"""Prompts and their activations for the tests of sources, writers and flow."""

from __future__ import annotations

import torch

from pycotmech.cot.tools.activations import Prompt, text_activations
from tests.reference.planted import Planted
from tests.reference.planted import Prompt as PlantedPrompt

SITES = ("z", "q", "resid_pre", "resid_mid")


def asked(prompt: PlantedPrompt) -> Prompt:
    """A planted prompt as the analyses take it: the answer's word stands wherever its token does."""
    at = (prompt.tokens == prompt.answer).nonzero().flatten().tolist()
    spans = tuple(slice(p, p + 1) for p in at)
    return Prompt(prompt.tokens, prompt.answer, prompt.wrong, prompt.corrupted, prompt.segments, spans)


def activations_of(model, texts, sites=SITES, **options):
    """Of all texts, in order."""
    return [kept for batch in text_activations(model, texts, sites, **options) for _, kept in batch]


def planted_activations(planted: Planted, n: int, *, seed: int = 0):
    """[(what is asked, activations, planted prompt), ...]"""
    found = planted.prompts(n, seed)
    kept = activations_of(planted.model, [p.tokens for p in found], whole=True)
    return [(asked(p), acts, p) for p, acts in zip(found, kept, strict=True)]


def random_tokens(n: int, vocabulary: int = 61, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, vocabulary, (n,), generator=torch.Generator().manual_seed(seed))
