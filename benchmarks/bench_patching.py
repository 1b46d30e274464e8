"""The all-heads sweep on SmolLM2-135M against what a user can do with hooks.

About 640 tokens, a shared few-shot prefix, a suffix of about 40 tokens that differs; all 270 heads. Both sides use the same
weights, tokens, dtype, threads and SDPA; the baselines keep the last position's logits only. Ours is everything: the shared
prefix, both runs, the sweep, the metric. The baselines run a few heads, spread evenly over the layers (in each the one with the
largest effect), times their number.

    pytest benchmarks/bench_patching.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import pycotmech as pcm
from benchmarks.by_hand import (
    cache_of,
    cached_forward,
    check_heads,
    hooked_forward,
    logit_difference,
    prompt_pair,
    strongest_heads,
)
from benchmarks.conftest import best_of
from tests.reference.truth import logits_of, z_of

pytestmark = [pytest.mark.benchmark(group="heads"), getattr(pytest.mark, "135m")]

SAMPLE = 6


@cache
def load(dtype: str) -> pcm.Model:
    return pcm.Model.from_pretrained("smollm2-135m", dtype=dtype)


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
    source_z, heads = z_of(hf, clean), strongest_heads(sweep.effect, SAMPLE)
    check_heads(hf, clean, corrupted, heads, sweep.effect, answer=answer, wrong=wrong, positions=where)

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
    theirs = np.full(sweep.shape, np.nan)
    zero = logit_difference(logits_of(hf, corrupted, keep=1)[0], answer, wrong)
    for l, h in heads:
        logits = cached_forward(hf, prefix, corrupted, source_z, l, h, first, where)
        theirs[l, h] = logit_difference(logits, answer, wrong) - zero
    check_heads(hf, clean, corrupted, heads, theirs, answer=answer, wrong=wrong, positions=where)
    cached = sum(
        best_of(2, lambda l=l, h=h: cached_forward(hf, prefix, corrupted, source_z, l, h, first, where)) for l, h in heads
    )
    report(name, seconds, baseline="hooks over a prefix cache", baseline_seconds=cached / len(heads) * n + runs)
