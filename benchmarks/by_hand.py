"""What a user can write with hooks on a Hugging Face model, one head at a time: the baselines of the patching benchmarks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import pycotmech as pcm
from tests.reference.truth import hooked, logits_of, replace_z, z_of

ROUNDINGS = 2
"""How many times the error of hooks in 16 bit a sweep in 16 bit may have: two estimates of rounding over a few heads."""


def prompt_pair(tokenizer, shots: int = 8) -> tuple[Tensor, Tensor, int, int]:
    """Clean, corrupted, answer, wrong of step 5 (the first induction step) of one example: a long few-shot part in common."""
    example = pcm.cot.make_examples(1, shots=shots, seed=0, tokenizer=tokenizer)[0]
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


def strongest_heads(effects: np.ndarray, layers: int) -> list[tuple[int, int]]:
    """In each of so many layers, spread evenly, the head with the largest effect: there a wrong value shows. effects [L, H]."""
    chosen = np.linspace(0, len(effects) - 1, layers).round().astype(int)
    return [(int(l), int(np.nanargmax(np.abs(effects[l])))) for l in chosen]


@cache
def widened(hf: nn.Module) -> nn.Module:
    """The same weights in float32: a copy, if they are not."""
    return hf if hf.dtype == torch.float32 else copy.deepcopy(hf).float()


def check_heads(
    hf: nn.Module,
    clean: Tensor,
    corrupted: Tensor,
    heads: Sequence[tuple[int, int]],
    effects: np.ndarray,
    *,
    answer: int,
    wrong: int,
    positions: list[int] | None = None,
) -> None:
    """Raises AssertionError unless the effects [L, H] of patching z on the logit difference are, at these heads, those of
    hooked forwards. Effects of several ways, [n, L, H], are each compared with the same forwards.

    In float32 they are equal within a thousandth of the largest. In 16 bit their root-mean-square error against hooks on the
    same weights in float32 is at most `ROUNDINGS` times that of hooks in 16 bit, or of logits that are rounded to 16 bit and
    otherwise exact: of a few heads, hooks may be closer than that by chance. Also raises if effects of 0 would pass.
    """

    largest = 0.0

    def by_hooks(hf: nn.Module) -> np.ndarray:
        nonlocal largest
        source = z_of(hf, clean)
        base = logits_of(hf, corrupted, keep=1)[0]
        largest = float(base[[answer, wrong]].abs().max())
        patched = [hooked_forward(hf, corrupted, source, l, h, positions) for l, h in heads]
        return np.array([logit_difference(x, answer, wrong) for x in patched]) - logit_difference(base, answer, wrong)

    truth = by_hooks(widened(hf))
    if hf.dtype == torch.float32:
        size = lambda x: float(np.abs(x).max())  # noqa: E731
        limit, floor = 1e-3 * size(truth), 1e-4  # of a logit difference: what float32 leaves of it
    else:
        size = lambda x: float(np.linalg.norm(x))  # noqa: E731
        by_them = size(by_hooks(hf) - truth)
        # Four logits, each off by up to half of eps, uniformly: 2 / sqrt(3) of that in each difference of differences.
        rounded = np.sqrt(len(heads) / 3) * torch.finfo(hf.dtype).eps * largest
        floor = limit = ROUNDINGS * max(by_them, float(rounded))
    if not size(truth) > floor:
        raise AssertionError(f"heads {heads}: effects {truth} are not above rounding, {floor:.2g}; they check nothing")
    for found in effects if effects.ndim == 3 else effects[None]:
        here = np.array([found[head] for head in heads])
        error = size(here - truth)
        if not error <= limit:
            raise AssertionError(
                f"heads {heads}: effects {here} here, {truth} by hooks; error {error:.3g}, at most {limit:.3g}"
            )
