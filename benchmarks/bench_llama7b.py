"""The all-heads sweep at the shape of Llama-2 7B: 32 layers x 32 heads, bfloat16, random weights, real configuration.

Weights are drawn once; nothing about the timing depends on their values. Prompts differ in the last 40 tokens. The whole
model needs about 16 GiB of memory; `--layers 4` tries the same on a part of it. The baseline is one hooked Hugging Face
forward per head (SDPA, last logits only) for a few heads spread over the layers, times their number. Peak memory is that of
the process until the sweep ended: weights and everything else.

    pytest benchmarks/bench_llama7b.py --benchmark-only -k last
"""

from __future__ import annotations

import resource
import time
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from benchmarks.conftest import best_of
from pycotmech.patching.evaluate import Evaluator
from tests.reference.truth import patched_logits, z_of

SUFFIX = 40
ANSWER, WRONG = 7, 11


@cache
def model(layers: int = 32) -> pcm.Model:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            hf = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, attn_implementation="sdpa")).eval()
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


def prompts(positions: str, T: int) -> tuple[torch.Tensor, torch.Tensor, list[int] | None]:
    """Clean, corrupted, positions to patch."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(32000, (T,), generator=generator)
    corrupted = clean.clone()
    corrupted[T - SUFFIX :] = torch.randint(32000, (SUFFIX,), generator=generator)
    if positions == "last":
        corrupted[-1] = clean[-1]
    return clean, corrupted, [T - 1] if positions == "last" else None


@pytest.fixture
def sweep_seconds(monkeypatch) -> list[float]:
    """Seconds of each staircase, from the joins to the metric: what a sweep takes beyond the runs of the prompts."""
    seconds: list[float] = []
    run = Evaluator.run

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = run(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    monkeypatch.setattr(Evaluator, "run", timed)
    return seconds


@pytest.mark.parametrize(("positions", "T"), [("last", 512), ("suffix", 640)])
def test_all_heads(positions, T, benchmark, report, request, sweep_seconds):
    layers = request.config.getoption("--layers")
    pcm_model = model(layers)
    hf, cfg = pcm_model.hf, pcm_model.cfg
    clean, corrupted, where = prompts(positions, T)
    arguments = dict(positions=where, metric="logit_diff", answer=ANSWER, wrong=WRONG, normalize=False)

    sweep = benchmark.pedantic(lambda: pcm.patch_heads(pcm_model, clean, corrupted, **arguments), rounds=1, iterations=1)
    seconds = benchmark.stats.stats.min
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    weights = sum(w.numel() * w.element_size() for w in hf.parameters()) / 2**30

    source = z_of(hf, clean)
    hooked, times = {}, []
    sample = [(l, (5 + 7 * l) % cfg.n_heads) for l in sorted({0, layers // 2, max(layers - 2, 0)})]
    for l, h in sample:
        times.append(best_of(1, lambda l=l, h=h: hooked.update({(l, h): patched_logits(hf, corrupted, source, l, h, where)})))
    ours = np.array([sweep.raw[l, h] for l, h in sample])
    theirs = np.array([float(hooked[s][ANSWER].float() - hooked[s][WRONG].float()) for s in sample])
    # 16-bit on both sides; bfloat16 logits alone are rounded to 2^-8 of their size.
    assert np.abs(ours - theirs).max() < 0.1 * np.abs(np.concatenate((ours, theirs))).max() + 0.05, (ours, theirs)

    n = cfg.n_layers * cfg.n_heads
    beyond = sum(sweep_seconds)
    report(
        f"Llama-2 7B shape, {layers} layers, bfloat16, T = {T}, {positions}: {n} heads",
        seconds,
        baseline="hooked forward per head",
        baseline_seconds=float(np.mean(times)) * n,
        note=f"{beyond:.1f} s beyond the runs of the prompts ({seconds - beyond:.1f} s); "
        f"peak memory {peak:.1f} GiB, {weights:.1f} of them weights",
    )
