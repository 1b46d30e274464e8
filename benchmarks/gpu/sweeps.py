"""A sweep over all heads of a model whose weights were drawn on the device: cold, warm, replayed; beside hooked forwards and
beside the bare matrix products of the same sweep."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import LlamaConfig

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import product_name
from benchmarks.gpu.found import Found
from benchmarks.machine import recorded
from pycotmech.engine import graphs

HOOKED = 8
"""Hooked forwards that are timed one by one."""
REPLAYED = 0.05
"""Of the spread of effects, how far those of replays may be from those before. Launched alike they are the same; a library
that takes another kernel while launches are recorded moves them by a few hundredths, a wrong buffer by all of them."""
QUESTIONS = [("last", 512), ("suffix", 640)]
"""Which positions are patched, and how many tokens the prompts have."""
_GRAPHS = "PYCOTMECH_CUDA_GRAPHS"
SMALL = dict(vocab_size=100, hidden_size=128, intermediate_size=160, num_attention_heads=8)


def sweeps(bench: Bench, found: Found, config: LlamaConfig) -> pcm.Model:
    """Both questions: T = 512 patched at the last position, T = 640 patched at the last 40 (small: one of 64)."""
    bench.forget_peak()
    model = pcm.Model(llama7b.random_llama(config, torch.bfloat16, bench.device), check=False)
    weights = sum(w.numel() * w.element_size() for w in model.hf.parameters()) / 2**30
    found.fact("weights in GiB", round(weights, 3))
    for positions, T in [("suffix", 64)] if bench.small else QUESTIONS:
        name = f"T = {T}, " + ("last position" if positions == "last" else f"{llama7b.SUFFIX} positions")
        if bench.left() < 15:
            found.not_run(name)
            continue
        with found.part(name):
            _one(bench, found, model, name, positions, T)
    if (peak := bench.peak_gib()) is not None:
        found.fact("peak device memory in GiB, weights included", round(peak, 2))
    return model


def _one(bench: Bench, found: Found, model: pcm.Model, name: str, positions: str, T: int) -> None:
    clean, corrupted, where = llama7b.prompts(positions, T, model.cfg.d_vocab)
    given = llama7b.arguments(where)
    times = 1 if bench.small else 3

    def sweep() -> pcm.Sweep:
        return pcm.patch_heads(model, clean, corrupted, **given)

    with _graphs(False):
        first = bench.waited(sweep, times=1)  # with it kernels are compiled
        swept = sweep()
        sampled = llama7b.sampled_heads(model.cfg)
        heads = [*sampled, *(h for h in llama7b.part(model.cfg, HOOKED) or [] if h not in sampled)]
        hand = llama7b.by_hand(model, clean, corrupted, where, heads)
        few = llama7b.ByHand(sampled, hand.logits[: 2 + len(sampled)], hand.seconds[: len(sampled)])
        try:
            found.fact(f"{name}: rounding", llama7b.check_rounding(model, clean, corrupted, where, swept, few))
            wrong = 0
        except AssertionError as error:
            found.fact(f"{name}: rounding", str(error)[:600])
            wrong = 1
        good = found.check(f"{name}: statements on rounding that do not hold", wrong, 0)
        found.fact(f"{name}: plan", str(swept.plan))
        found.figure(f"{name}: first call, kernels compiled in it", first.median * 1e3, "ms", checked=good)
        cold = bench.waited(sweep, times=times, before=model.prefixes.clear)
        found.figure(
            f"{name}: cold prefix, launched one by one", cold.median * 1e3, "ms", checked=good, spread=_ms(cold.spread)
        )
        warm = bench.waited(sweep, times=times)
        found.figure(
            f"{name}: warm prefix, launched one by one", warm.median * 1e3, "ms", checked=good, spread=_ms(warm.spread)
        )
    fastest = cold.median
    if bench.cuda:
        with _graphs(True):
            with _launched_one_by_one(model):
                swept = sweep()  # prompts padded as they are for a replay
            again = [sweep() for _ in range(3)][-1]  # seen, captured, replayed
            size = float(torch.as_tensor(swept.raw).double().std())
            off = llama7b.rms(torch.as_tensor(again.raw).double() - torch.as_tensor(swept.raw).double())
            good &= found.check(f"{name}: a replay's values against those before, of their spread", off / size, REPLAYED)
            replayed = bench.waited(sweep, times=times)
            found.figure(
                f"{name}: warm prefix, replayed", replayed.median * 1e3, "ms", checked=good, spread=_ms(replayed.spread)
            )
            again_cold = bench.waited(sweep, times=times, before=model.prefixes.clear)
            what = f"{name}: cold prefix, replayed"
            found.figure(what, again_cold.median * 1e3, "ms", checked=good, spread=_ms(again_cold.spread))
            fastest = again_cold.median

    each, n = statistics.median(hand.seconds[1:]), model.cfg.n_layers * model.cfg.n_heads
    found.figure(f"{name}: one hooked forward", each * 1e3, "ms", checked=good)
    found.figure(f"{name}: {n} hooked forwards to one sweep with a cold prefix", each * n / fastest, "times", checked=good)
    with _graphs(False), products_apart(model), recorded(attention=False) as products:
        model.prefixes.clear()
        sweep()
    bare = _bare(bench, products.linears)
    found.figure(f"{name}: its products with weights, bare", bare * 1e3, "ms", checked=good)
    found.figure(f"{name}: of a sweep with a cold prefix", bare / fastest * 100, "% bare products", checked=good)
    if ceiling := bench.figure_of("ceilings", product_name(torch.bfloat16)):
        least = float(swept.plan.flop) / ceiling / 1e12
        found.figure(f"{name}: FLOP of the plan at the speed of the largest product", least * 1e3, "ms", checked=good)


def _ms(spread: tuple[float, float]) -> tuple[float, float]:
    return spread[0] * 1e3, spread[1] * 1e3


@contextmanager
def _graphs(on: bool) -> Iterator[None]:
    before = os.environ.get(_GRAPHS)
    os.environ[_GRAPHS] = "1" if on else "0"
    try:
        yield
    finally:
        os.environ.pop(_GRAPHS)
        if before is not None:
            os.environ[_GRAPHS] = before


@contextmanager
def _launched_one_by_one(model: pcm.Model) -> Iterator[None]:
    """The passes that would be replayed, with as many rows, as they are before they are captured."""
    kept = graphs.kept.of(model.family)
    assert kept is not None
    before, kept.limit = kept.limit, 0
    try:
        yield
    finally:
        kept.limit = before


@contextmanager
def products_apart(model: pcm.Model) -> Iterator[None]:
    """Products have buffers of their own in the block: those that share one are not recorded."""
    before, model.family.few_launches = model.family.few_launches, False
    try:
        yield
    finally:
        model.family.few_launches = before


def _bare(bench: Bench, linears: list[tuple[int, Tensor]]) -> float:
    """Seconds of these products, one after another, on the model's own weights; on a GPU as a graph, so that no launch is
    waited for."""
    most: dict[tuple[int, torch.dtype], int] = {}
    for rows, weight in linears:
        for width in weight.shape:
            most[width, weight.dtype] = max(most.get((width, weight.dtype), 0), rows)
    made = {
        (width, dtype): [torch.randn(rows, width, device=bench.device).to(dtype) for _ in range(2)]
        for (width, dtype), rows in most.items()
    }

    def run() -> None:
        for rows, weight in linears:
            out, wide = weight.shape
            torch.mm(made[wide, weight.dtype][0][:rows], weight.T, out=made[out, weight.dtype][1][:rows])

    run()
    if not bench.cuda:
        return bench.timed(run, times=1, warm=0).median
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, stream=stream):
        run()
    return bench.timed(graph.replay, times=3).median
