"""The all-heads sweep against the matrix products it is made of, run bare: how much of the machine it uses.

The products of one sweep are recorded with their shapes (benchmarks/machine.py) and run again, each by the best library
call, alternating with whole sweeps in the same process. The ratio is that of the medians; the ratio of processor times is
printed beside it, since other load on the machine disturbs it less. Correctness first: a few heads against one hooked forward
each.

    pytest benchmarks/bench_machine.py --benchmark-only -k smollm2 [--threads 1]
    pytest benchmarks/bench_machine.py --benchmark-only -k llama --layers 4      # the whole model: bench_llama7b.py
"""

from __future__ import annotations

import statistics
import time
from collections import Counter

import pytest
import torch

import pycotmech as pcm
from benchmarks import bench_patching, llama7b
from benchmarks.by_hand import check_heads, prompt_pair, strongest_heads
from benchmarks.machine import Bare, recorded

pytestmark = pytest.mark.benchmark(group="share of the machine")

LIMITS = {("smollm2", torch.float32): 1.35, ("smollm2", torch.bfloat16): 1.6, ("llama", torch.bfloat16): 1.35}
"""What the ratio may be; a busy machine exceeds them by chance, so they are printed and not asserted."""


def measure(model: pcm.Model, clean, corrupted, name: str, kind: str, rounds: int, report, **arguments) -> None:
    def call() -> None:
        model.prefixes.clear()  # the prompts' runs are part of every sweep, as of its products
        pcm.patch_heads(model, clean, corrupted, normalize=False, **arguments)

    with recorded() as recording:
        call()
    bare = Bare(recording)
    bare.run()  # buffers
    wall: dict[str, list[float]] = {"sweep": [], "bare": []}
    processor: dict[str, list[float]] = {"sweep": [], "bare": []}
    spent: Counter = Counter()
    for i in range(2 * rounds):
        what, run = [("sweep", call), ("bare", bare.run)][i % 2]
        start = time.perf_counter(), time.process_time()
        result = run()
        wall[what].append(time.perf_counter() - start[0])
        processor[what].append(time.process_time() - start[1])
        if what == "bare":
            spent.update(result)
    seconds, bare_seconds = (statistics.median(wall[w]) for w in ("sweep", "bare"))
    ratio = statistics.median(processor["sweep"]) / statistics.median(processor["bare"])
    with recorded() as timed:  # where the rest goes: the same calls in the sweep itself
        call()
    parts = ", ".join(f"{w} {timed.seconds[w]:.2f}/{spent[w] / rounds:.2f} s" for w in ("linear", "attention"))
    dtype = model.cfg.dtype
    note = (
        f"sweep/bare {seconds / bare_seconds:.2f}, of processor time {ratio:.2f} (at most {LIMITS[kind, dtype]}); "
        f"{parts}; {recording.flop / 1e12:.2f} TFLOP"
    )
    report(
        f"{name}, {dtype}".replace("torch.", ""), seconds, baseline="bare products", baseline_seconds=bare_seconds, note=note
    )


@getattr(pytest.mark, "135m")
@pytest.mark.parametrize("positions", ["suffix", "last"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_smollm2(dtype, positions, benchmark, report):
    model = bench_patching.load(dtype)
    clean, corrupted, answer, wrong = prompt_pair(model.tokenizer)
    where = None if positions == "suffix" else [len(clean) - 1]
    pair = dict(positions=where, metric="logit_diff", answer=answer, wrong=wrong)
    effects = pcm.patch_heads(model, clean, corrupted, normalize=False, **pair).effect
    check_heads(model.hf, clean, corrupted, strongest_heads(effects, 5), effects, positions=where, answer=answer, wrong=wrong)
    name = f"SmolLM2-135M, T = {len(clean)}, {positions}"
    rounds = 3 if positions == "suffix" else 7
    benchmark.pedantic(lambda: measure(model, clean, corrupted, name, "smollm2", rounds, report, **pair), rounds=1)


@getattr(pytest.mark, "7b")
@pytest.mark.parametrize(("positions", "T"), [("last", 512), ("suffix", 640)])
def test_llama(positions, T, benchmark, report, request):
    layers = request.config.getoption("--layers")
    model = llama7b.model(layers)
    clean, corrupted, where = llama7b.prompts(positions, T)
    given = llama7b.arguments(where)
    found = pcm.patch_heads(model, clean, corrupted, **given)
    hand = llama7b.by_hand(model, clean, corrupted, where, llama7b.sampled_heads(model.cfg))
    llama7b.check_rounding(model, clean, corrupted, where, found, hand)
    del given["normalize"]  # `measure` says so itself
    name = f"Llama-2 7B shape, {layers} layers, T = {T}, {positions}"
    rounds = 2 if positions == "suffix" else 3
    benchmark.pedantic(lambda: measure(model, clean, corrupted, name, "llama", rounds, report, **given), rounds=1)
