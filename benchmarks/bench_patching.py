"""The all-heads sweep on SmolLM2-135M against what a user can do with hooks.

About 640 tokens, a shared few-shot prefix, a suffix of about 40 tokens that differs; all 270 heads. Both sides use the same
weights, tokens, dtype, threads and SDPA; the baselines keep the last position's logits only. Ours is everything: the shared
prefix, both runs, the sweep, the metric. The baselines run a few heads, spread evenly over the layers, times their number.

    pytest benchmarks/bench_patching.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
import pytest
import torch
from transformers import DynamicCache

import pycotmech as pcm
from benchmarks.conftest import best_of
from tests.reference.truth import hooked, replace_z, z_of

SAMPLE = 6


@cache
def load(dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained("smollm2-135m", dtype=dtype)


@cache
def prompt_pair() -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Clean, corrupted, answer, wrong of step 5 (the first induction step) of one example."""
    example = pcm.cot.make_examples(1, shots=8, seed=0, tokenizer=load("float32").tokenizer)[0]
    step = example.steps[5]
    return step.clean, step.corrupted, int(step.answer), int(step.wrong)


def sampled_heads(model: pcm.Model) -> list[tuple[int, int]]:
    layers = np.linspace(0, model.cfg.n_layers - 1, SAMPLE).round().astype(int)
    return [(int(l), (3 * i) % model.cfg.n_heads) for i, l in enumerate(layers)]


@torch.no_grad()
def hooked_forward(hf, base, source_z, l, h, positions):
    with hooked(replace_z(hf, l, h, source_z[l][:, h], positions)):
        return hf(base[None], use_cache=False, logits_to_keep=1).logits[0, -1]


@torch.no_grad()
def cached_forward(hf, prefix_cache, suffix, source_z, l, h, positions, first):
    """Hooks on the suffix over a key-value cache of the shared prefix: the strongest thing to write by hand."""
    where = None if positions is None else [p - first for p in positions]
    with hooked(replace_z(hf, l, h, source_z[l][first:, h], where)):
        logits = hf(suffix[None], past_key_values=prefix_cache, use_cache=True, logits_to_keep=1).logits[0, -1]
    prefix_cache.crop(-len(suffix))  # what this forward added
    return logits


@pytest.mark.parametrize("positions", ["suffix", "last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_heads(dtype, positions, benchmark, report):
    model, (clean, corrupted, answer, wrong) = load(dtype), prompt_pair()
    hf, T = model.hf, len(clean)
    first = int((clean != corrupted).nonzero()[0])
    where = None if positions == "suffix" else [T - 1]
    arguments = dict(positions=where, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)

    sweep = pcm.patch_heads(model, clean, corrupted, **arguments)
    source_z, heads = z_of(hf, clean), sampled_heads(model)
    difference = lambda logits: float(logits[answer].double() - logits[wrong].double())  # noqa: E731

    # Correctness first: the sampled heads against a hooked forward in float32 of the same weights.
    exact = hf if dtype == "float32" else copy.deepcopy(hf).float()
    exact_z = z_of(exact, clean)
    zero = difference(exact(corrupted[None], use_cache=False, logits_to_keep=1).logits[0, -1])
    truth = np.array([difference(hooked_forward(exact, corrupted, exact_z, l, h, where)) - zero for l, h in heads])
    ours = np.array([sweep.effect[l, h] for l, h in heads])
    own_zero = difference(hf(corrupted[None], use_cache=False, logits_to_keep=1).logits[0, -1])
    theirs = np.array([difference(hooked_forward(hf, corrupted, source_z, l, h, where)) - own_zero for l, h in heads])
    largest = np.abs(sweep.effect).max()
    if dtype == "float32":
        assert np.abs(ours - truth).max() <= 1e-3 * largest, (ours, truth)
    else:
        assert np.linalg.norm(ours - truth) <= np.linalg.norm(theirs - truth), (ours, theirs, truth)

    seconds = benchmark.pedantic(lambda: pcm.patch_heads(model, clean, corrupted, **arguments), rounds=3, iterations=1)
    seconds = benchmark.stats.stats.min
    n = model.cfg.n_layers * model.cfg.n_heads
    plain = sum(best_of(2, lambda l=l, h=h: hooked_forward(hf, corrupted, source_z, l, h, where)) for l, h in heads)
    runs = best_of(2, lambda: z_of(hf, clean))  # the baselines run the source once too
    name = f"{dtype}, T = {T}, suffix {T - first}, {positions}: {n} heads"
    report(name, seconds, baseline="hooked forward per head", baseline_seconds=plain / len(heads) * n + runs)

    with torch.no_grad():
        prefix_cache = DynamicCache()
        hf(corrupted[None, :first], past_key_values=prefix_cache, use_cache=True, logits_to_keep=1)
    own = [difference(cached_forward(hf, prefix_cache, corrupted[first:], source_z, l, h, where, first)) for l, h in heads]
    assert np.abs(np.array(own) - own_zero - theirs).max() <= (1e-3 if dtype == "float32" else 0.3) * largest
    cached = sum(
        best_of(2, lambda l=l, h=h: cached_forward(hf, prefix_cache, corrupted[first:], source_z, l, h, where, first))
        for l, h in heads
    )
    report(name, seconds, baseline="hooks over a prefix cache", baseline_seconds=cached / len(heads) * n + runs)
