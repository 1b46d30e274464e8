"""The all-heads sweep at the shape of Llama-2 7B: 32 layers x 32 heads, bfloat16, random weights, real configuration.

Weights are drawn once; nothing about the timing depends on their values. Prompts differ in the last 40 tokens. Needs about
20 GiB of memory. The baseline is one hooked Hugging Face forward per head (SDPA, last logits only) for a few heads spread
over the layers, times 1,024.

    pytest benchmarks/bench_llama7b.py --benchmark-only -k last
"""

from __future__ import annotations

import resource
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from benchmarks.conftest import best_of
from tests.reference.truth import patched_logits, z_of

SUFFIX = 40
SAMPLE = [(0, 5), (15, 20), (30, 11)]


@cache
def model() -> pcm.Model:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            hf = LlamaForCausalLM(LlamaConfig(attn_implementation="sdpa")).eval()
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if weight.ndim == 1:
                weight.fill_(1)
                continue
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            weight.uniform_(-1, 1, generator=generator).mul_(gain * (3 / weight.shape[1]) ** 0.5)
    return pcm.Model(hf, check=False)


@pytest.mark.parametrize(("positions", "T"), [("last", 512), ("suffix", 640)])
def test_all_1024_heads(positions, T, benchmark, report):
    pcm_model = model()
    hf = pcm_model.hf
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(32000, (T,), generator=generator)
    corrupted = clean.clone()
    corrupted[T - SUFFIX :] = torch.randint(32000, (SUFFIX,), generator=generator)
    if positions == "last":
        corrupted[-1] = clean[-1]
    where = [T - 1] if positions == "last" else None
    arguments = dict(positions=where, metric="logit_diff", answer=7, wrong=11, normalize=False)

    sweep = benchmark.pedantic(lambda: pcm.patch_heads(pcm_model, clean, corrupted, **arguments), rounds=1, iterations=1)
    seconds = benchmark.stats.stats.min
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    source = z_of(hf, clean)
    hooked = {}
    times = []
    for l, h in SAMPLE:
        times.append(best_of(1, lambda l=l, h=h: hooked.update({(l, h): patched_logits(hf, corrupted, source, l, h, where)})))
    difference = lambda x: float(x[7].float() - x[11].float())  # noqa: E731
    ours = np.array([sweep.raw[l, h] for l, h in SAMPLE])
    theirs = np.array([difference(hooked[s]) for s in SAMPLE])
    # 16-bit on both sides; bfloat16 logits alone are rounded to 2^-8 of their size.
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(np.concatenate((ours, theirs))).max() + 0.05, (ours, theirs)

    with torch.no_grad():
        run = best_of(1, lambda: hf(clean[None], use_cache=False, logits_to_keep=1))
    report(
        f"Llama-2 7B shape, bfloat16, T = {T}, {positions}: 1024 heads",
        seconds,
        baseline="hooked forward per head",
        baseline_seconds=float(np.mean(times)) * 1024,
        note=f"one plain forward {run:.1f} s, peak memory {peak:.1f} GiB",
    )
