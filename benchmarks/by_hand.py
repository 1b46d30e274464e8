"""What a user can write with hooks on a Hugging Face model, one head at a time: the baselines of the patching benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import DynamicCache

import pycotmech as pcm
from tests.reference.truth import hooked, replace_z


def prompt_pair(tokenizer) -> tuple[Tensor, Tensor, int, int]:
    """Clean, corrupted, answer, wrong of step 5 (the first induction step) of one example: a long few-shot part in common."""
    example = pcm.cot.make_examples(1, shots=8, seed=0, tokenizer=tokenizer)[0]
    step = example.steps[5]
    return step.clean, step.corrupted, int(step.answer), int(step.wrong)


def logit_difference(logits: Tensor, answer: int, wrong: int) -> float:
    return float(logits[answer].double() - logits[wrong].double())


@torch.no_grad()
def hooked_forward(hf: nn.Module, base: Tensor, source_z: list[Tensor], l: int, h: int, positions=None) -> Tensor:
    """The last position's logits [V], the only ones computed, with one head's z from the other run."""
    with hooked(replace_z(hf, l, h, source_z[l][:, h], positions)):
        return hf(base[None], use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def cache_of(hf: nn.Module, prefix: Tensor) -> DynamicCache:
    cache = DynamicCache()
    hf(prefix[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


@torch.no_grad()
def cached_forward(
    hf: nn.Module, cache: DynamicCache, base: Tensor, source_z: list[Tensor], l: int, h: int, first: int, positions=None
) -> Tensor:
    """The same, of the tokens from `first` on over a cache of those before: the strongest thing to write by hand."""
    where = None if positions is None else [p - first for p in positions]
    with hooked(replace_z(hf, l, h, source_z[l][first:, h], where)):
        logits = hf(base[None, first:], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    cache.crop(first - len(base))  # what this forward added
    return logits
