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

import pycotmech as pcm
from benchmarks.by_hand import cache_of, cached_forward, hooked_forward, logit_difference, prompt_pair
from benchmarks.conftest import best_of
from tests.reference.truth import z_of

SAMPLE = 6


@cache
def load(dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained("smollm2-135m", dtype=dtype)


def sampled_heads(model: pcm.Model) -> list[tuple[int, int]]:
    layers = np.linspace(0, model.cfg.n_layers - 1, SAMPLE).round().astype(int)
    return [(int(l), (3 * i) % model.cfg.n_heads) for i, l in enumerate(layers)]


@pytest.mark.parametrize("positions", ["suffix", "last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_heads(dtype, positions, benchmark, report):
    model = load(dtype)
    clean, corrupted, answer, wrong = prompt_pair(model.tokenizer)
    hf, T = model.hf, len(clean)
    first = int((clean != corrupted).nonzero()[0])
    where = None if positions == "suffix" else [T - 1]
    arguments = dict(positions=where, metric="logit_diff", answer=answer, wrong=wrong, normalize=False)

    sweep = pcm.patch_heads(model, clean, corrupted, **arguments)
    source_z, heads = z_of(hf, clean), sampled_heads(model)
    difference = lambda logits: logit_difference(logits, answer, wrong)  # noqa: E731

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

    def cold() -> None:
        model.prefixes.clear()
        pcm.patch_heads(model, clean, corrupted, **arguments)

    benchmark.pedantic(cold, rounds=3, iterations=1)
    seconds = benchmark.stats.stats.min
    n = model.cfg.n_layers * model.cfg.n_heads
    plain = sum(best_of(2, lambda l=l, h=h: hooked_forward(hf, corrupted, source_z, l, h, where)) for l, h in heads)
    runs = best_of(2, lambda: z_of(hf, clean))  # the baselines run the source once too
    name = f"{dtype}, T = {T}, suffix {T - first}, {positions}: {n} heads"
    report(name, seconds, baseline="hooked forward per head", baseline_seconds=plain / len(heads) * n + runs)

    prefix = cache_of(hf, corrupted[:first])
    own = [difference(cached_forward(hf, prefix, corrupted, source_z, l, h, first, where)) for l, h in heads]
    assert np.abs(np.array(own) - own_zero - theirs).max() <= (1e-3 if dtype == "float32" else 0.3) * largest
    cached = sum(
        best_of(2, lambda l=l, h=h: cached_forward(hf, prefix, corrupted, source_z, l, h, first, where)) for l, h in heads
    )
    report(name, seconds, baseline="hooks over a prefix cache", baseline_seconds=cached / len(heads) * n + runs)
