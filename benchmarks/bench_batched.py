"""Many small sweeps in one call against one call each: SmolLM2-135M, last position only, all 270 heads, cold caches.

16 prompts x 10 steps are 160 pairs that share their few-shot block. Each call begins with nothing kept
(`model.prefixes.clear()`): alone, a pair runs the block and its own prompts; together, the block is run once, a clean prompt
that begins another one not at all, and the corrupted ones from where they differ. Single calls are timed for a few pairs,
spread evenly, times their number.

    pytest benchmarks/bench_batched.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pycotmech as pcm
from benchmarks.conftest import best_of

pytestmark = [pytest.mark.benchmark(group="pairs"), getattr(pytest.mark, "135m")]

PROMPTS, SAMPLE = 16, 8


@cache
def load(dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained("smollm2-135m", dtype=dtype)


@cache
def steps() -> list:
    examples = pcm.cot.make_examples(PROMPTS, shots=8, seed=0, tokenizer=load("float32").tokenizer)
    return [step for example in examples for step in example.steps]


def sweep(model: pcm.Model, chosen: list, metric: str):
    """One call, cold: of a list of pairs, or of one."""
    model.prefixes.clear()
    names = ("clean", "corrupted", "answer", "wrong")
    arguments = {name: [getattr(s, name) for s in chosen] for name in names}
    return pcm.patch_heads(model, **arguments, positions=[-1], metric=metric, normalize=False)


@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_160_pairs(dtype, metric, benchmark, report):
    model, chosen = load(dtype), steps()
    sample = np.linspace(0, len(chosen) - 1, SAMPLE).round().astype(int)
    together = sweep(model, chosen, metric)
    for i in sample:  # correctness first: the values are those of a call for each
        alone = sweep(model, [chosen[i]], metric)
        change = alone.raw[0] - alone.corrupted_metric
        error = np.abs(together.raw[i] - together.corrupted_metric[i] - change)
        if dtype == "float32":
            assert error.max() <= 1e-4 * np.abs(change).max(), (i, error.max())
        else:  # two roundings of the same prompt part by some units of the 16-bit model's noise
            assert np.sqrt((error**2).mean()) <= 0.05 * np.abs(change).max(), (i, error.max())

    benchmark.pedantic(lambda: sweep(model, chosen, metric), rounds=2, iterations=1)
    seconds = benchmark.stats.stats.min / len(chosen)
    single = sum(best_of(2, lambda i=i: sweep(model, [chosen[i]], metric)) for i in sample) / SAMPLE
    name = f"{dtype}, {metric}, {len(chosen)} pairs, last position: each"
    report(name, seconds, baseline="one cold call for each", baseline_seconds=single, note=f"{together.plan.chunks} chunk(s)")
    assert single >= 2 * seconds
