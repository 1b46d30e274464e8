"""Attribution patching on SmolLM2-135M: its time against the exact sweep's, and how well it agrees with it.

The same prompts as bench_patching: about 640 tokens, a suffix of about 40. Sweeps are of all positions, cold: the shared
few-shot prefix is forgotten before each call.

    pytest benchmarks/bench_attribution.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import numpy as np
import pytest

import pycotmech as pcm
from benchmarks.bench_patching import load
from benchmarks.by_hand import prompt_pair
from benchmarks.conftest import best_of

pytestmark = [pytest.mark.benchmark(group="attribution"), getattr(pytest.mark, "135m")]

SCREEN = 20


@pytest.mark.parametrize("site", ["z", "q", "k", "v"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_screen(dtype, site, benchmark, report):
    model = load(dtype)
    clean, corrupted, answer, wrong = prompt_pair(model.tokenizer)
    arguments = dict(site=site, metric="logit_diff", answer=answer, wrong=wrong)

    def cold(call, **more):
        model.prefixes.clear()
        return call(model, clean, corrupted, **arguments, **more)

    exact, found, screened_sweep = cold(pcm.patch_heads), cold(pcm.attribute_heads), cold(pcm.patch_heads, screen=SCREEN)
    same = np.abs(screened_sweep.values - exact.values)[screened_sweep.exact].max()
    assert screened_sweep.exact.sum() == SCREEN and same <= max(1e-4 * np.abs(exact.effect).max(), exact.noise_floor)

    benchmark.pedantic(lambda: cold(pcm.attribute_heads), rounds=3, iterations=1)
    swept = best_of(2, lambda: cold(pcm.patch_heads))
    note = str(found.agreement(exact))
    name = f"{dtype}, {site}: "
    report(
        name + "all heads to first order",
        benchmark.stats.stats.min,
        baseline="sweep",
        baseline_seconds=swept,
        note=note,
    )
    screened = best_of(2, lambda: cold(pcm.patch_heads, screen=SCREEN))
    report(name + f"screen = {SCREEN}", screened, baseline="sweep", baseline_seconds=swept)
