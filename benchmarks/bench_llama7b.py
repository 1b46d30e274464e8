"""The all-heads sweep at the shape of Llama-2 7B: 32 layers x 32 heads, bfloat16, random weights, real configuration.

Prompts differ in the last 40 tokens; T = 512, patched at the last position, and T = 640, patched everywhere. Each case goes
through these steps and prints what it has after each, so that a run that is broken off loses nothing:

1. exactness on a cut of three layers at the true widths in float32 (benchmarks/llama7b.py);
2. the sweep, from cold caches: seconds, those beyond the runs of the prompts, peak memory of the process;
3. the sweep's matrix products again, bare (benchmarks/machine.py), unless `--no-bare`;
4. the baseline: one hooked Hugging Face forward per head (SDPA, last logits only), timed once each for a head in the first
   layer, the middle and the last but one, times the number of heads;
5. the sweep is no further from float32 than these forwards are.

The table at the end holds what passed all of them. `--heads 128` sweeps every eighth head only, says so in every line, and
says what all heads would take by the token-forwards of the two plans: an extrapolation, not a figure. `--layers 4` takes a
part of the model. The whole model needs 12.6 GiB for the weights, and less than 16 in all.

    pytest benchmarks/bench_llama7b.py --benchmark-only -k last
    pytest benchmarks/bench_llama7b.py --benchmark-only -k suffix --heads 128
    pytest benchmarks/bench_llama7b.py --benchmark-only -k suffix --no-bare
"""

from __future__ import annotations

import gc
import statistics
import time

import pytest

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.machine import Bare, Recording, recorded

pytestmark = [pytest.mark.benchmark(group="heads"), getattr(pytest.mark, "7b")]


@pytest.mark.parametrize(("positions", "T"), [("last", 512), ("suffix", 640)])
def test_all_heads(positions, T, benchmark, report, say, request):
    layers, n_heads, with_bare = (request.config.getoption(o) for o in ("--layers", "--heads", "--no-bare"))
    say("exact: " + llama7b.check_exactly(llama7b.cut(min(3, layers)), positions))
    gc.collect()

    start = time.perf_counter()
    model = llama7b.model(layers)
    cfg, total = model.cfg, model.cfg.n_layers * model.cfg.n_heads
    weights = sum(w.numel() * w.element_size() for w in model.hf.parameters()) / 2**30
    say(f"{weights:.1f} GiB of weights after {time.perf_counter() - start:.0f} s")

    clean, corrupted, where = llama7b.prompts(positions, T)
    given, chosen = llama7b.arguments(where), llama7b.part(cfg, n_heads)
    n = total if chosen is None else len(chosen)
    which = f"all {total} heads" if chosen is None else f"PART: {n} of {total} heads"
    name = f"Llama-2 7B shape, {layers} layers, bfloat16, T = {T}, {positions}, {which}"
    plan = pcm.plan_heads(model, clean, corrupted, heads=chosen, **given)
    say(f"{name}: {plan}")

    model.prefixes.clear()
    llama7b.forget_peak()
    benchmark.name += f", {which}"
    processor = -time.process_time()
    with recorded() as products, llama7b.staircase_seconds() as stairs:
        found = benchmark.pedantic(lambda: pcm.patch_heads(model, clean, corrupted, heads=chosen, **given), rounds=1)
    processor += time.process_time()
    seconds, beyond = benchmark.stats.stats.min, sum(stairs)
    notes = [
        f"{beyond:.1f} s beyond the runs of the prompts ({seconds - beyond:.1f} s)",
        f"peak memory {llama7b.peak_gib():.1f} GiB, {weights:.1f} of them weights",
    ]
    say(f"{name}: {seconds:.1f} s; " + "; ".join(notes))
    in_full = seconds
    if chosen is not None:
        times = pcm.plan_heads(model, clean, corrupted, **given).token_forwards / plan.token_forwards
        in_full += beyond * (times - 1)
        notes.append(f"all heads EXTRAPOLATED: {in_full:.0f} s, {beyond * times:.0f} of them beyond the runs")
        say(f"{notes[-1]} ({times:.2f} times those of the part, by token-forwards)")

    if with_bare:
        notes.append(against_bare(seconds, processor, products))
        say(notes[-1])
    del products

    heads = llama7b.sampled_heads(cfg, chosen)
    hand = llama7b.by_hand(model, clean, corrupted, where, heads)
    each = statistics.mean(hand.seconds)
    one_by_one = ", ".join(f"{x:.1f}" for x in hand.seconds)
    say(f"hooked forwards of {heads}: {one_by_one} s; times {n}: {each * n:.0f} s, {each * n / seconds:.0f}x the sweep's")
    if chosen is not None:
        notes.append(f"all heads EXTRAPOLATED: {each * total / in_full:.0f}x, against {each * total:.0f} s")
        say(notes[-1])
    say("rounding: " + llama7b.check_rounding(model, clean, corrupted, where, found, hand))
    report(name, seconds, baseline="hooked forward per head", baseline_seconds=each * n, note="; ".join(notes))


def against_bare(seconds: float, processor: float, products: Recording) -> str:
    """The sweep to its products in wall time, and in processor time, which other load on the machine disturbs less."""
    bare = Bare(products)
    own = -time.process_time()
    spent = bare.run()
    own += time.process_time()
    parts = ", ".join(f"{kind} {products.seconds[kind]:.1f}/{spent[kind]:.1f} s" for kind in ("linear", "attention"))
    return (
        f"sweep/bare {seconds / spent.total():.2f}, of processor time {processor / own:.2f} ({spent.total():.1f} s bare; "
        f"{parts}; {products.flop / 1e12:.1f} TFLOP)"
    )
