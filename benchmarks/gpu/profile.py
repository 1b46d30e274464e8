"""How many kernels a sweep launches, and which take the time: a cold sweep launched one by one, and a replayed one."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found
from benchmarks.gpu.sweeps import SMALL

LONGEST = 25


def run(bench: Bench, found: Found) -> None:
    # A number of launches does not depend on widths.
    sizes = SMALL if bench.small else dict(hidden_size=512, intermediate_size=1376, num_attention_heads=32, vocab_size=2000)
    T = 64 if bench.small else 512
    config = llama7b.shape(4 if bench.small else 32, **sizes)
    model = pcm.Model(llama7b.random_llama(config, torch.bfloat16, bench.device), check=False)
    clean, corrupted, where = llama7b.prompts("last", T, config.vocab_size)

    def sweep() -> pcm.Sweep:
        return pcm.patch_heads(model, clean, corrupted, **llama7b.arguments(where))

    sweep()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    for name in ("second call, prefix cold", "fourth call, prefix warm"):
        model.prefixes.clear()
        if "warm" in name:
            sweep()
        with found.part(name), profile(activities=activities) as seen:
            sweep()
            bench.sync()
        events = seen.key_averages()
        kernels = [e for e in events if "cuda" in str(e.device_type).lower()]
        found.fact(f"{name}: kernels on the device", sum(e.count for e in kernels))
        found.fact(
            f"{name}: launches of the host", sum(e.count for e in events if "LaunchKernel" in e.key or "GraphLaunch" in e.key)
        )
        for e in sorted(kernels, key=lambda e: -e.self_device_time_total)[:LONGEST]:
            found.fact(f"{name}: {e.key[:80]}", f"{e.count} times, {e.self_device_time_total / 1e3:.3f} ms")
