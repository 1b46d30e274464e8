"""`attention_summary` of one prompt of 32,768 tokens: tokens per second and peak device memory, all statistics of 16 rows."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found
from benchmarks.gpu.smollm2 import smollm2_shape
from benchmarks.gpu.sweeps import SMALL

ROUNDED = 5e-2
"""Of the received attention of a short prompt against Hugging Face's eager patterns, both of a model in bfloat16."""


def run(bench: Bench, found: Found) -> None:
    T = 256 if bench.small else 32768
    shapes = (
        {"small": llama7b.shape(4, **SMALL)}
        if bench.small
        else {"SmolLM2-135M": smollm2_shape(), "Llama-2 7B": llama7b.shape()}
    )
    for name, config in shapes.items():
        if bench.left() < 10:
            found.not_run(name)
            continue
        with found.part(name):
            config.max_position_embeddings = 2 * T
            _shape(bench, found, name, config, T)


def _shape(bench: Bench, found: Found, name: str, config: LlamaConfig, T: int) -> None:
    model = pcm.Model(llama7b.random_llama(config, torch.bfloat16, bench.device), check=False)
    good = _against_eager(bench, found, name, model)
    tokens = torch.randint(config.vocab_size, (T,), generator=torch.Generator().manual_seed(2))
    segments = {f"part {i}": slice(1 + i * T // 8, 1 + (i + 1) * T // 8 if i < 7 else T) for i in range(8)}
    asked = dict(segments=segments, rows=list(range(T - 16, T)), top_k=8)
    summary = pcm.attention_summary(model, tokens, **asked)
    good &= found.check(f"{name}: masses of a row less 1", float(np.abs(summary.mass.sum(-1) - 1).max()), 1e-3)
    got = summary.received.sum(-1)
    good &= found.check(f"{name}: attention received less the number of rows", float(np.abs(got - 16).max()), 2e-2)
    bench.forget_peak()
    t = bench.waited(lambda: pcm.attention_summary(model, tokens, **asked), times=2)
    found.figure(f"{name}: attention_summary of {T:,} tokens", T / t.median, "tokens/s", checked=good)
    if (peak := bench.peak_gib()) is not None:
        found.figure(f"{name}: peak device memory, weights included", peak, "GiB", checked=good)


def _against_eager(bench: Bench, found: Found, name: str, model: pcm.Model) -> bool:
    """The attention received in a short prompt, layer by layer as Hugging Face's own eager attention has it."""
    tokens = torch.randint(model.cfg.d_vocab, (96,), generator=torch.Generator().manual_seed(3))
    ours = torch.from_numpy(pcm.attention_summary(model, tokens).received)
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        patterns = model.hf(tokens[None].to(bench.device), output_attentions=True, use_cache=False).attentions
    finally:
        model.hf.set_attn_implementation(before)
    theirs = torch.stack([p[0].float().sum(1) for p in patterns]).cpu()  # [L, H, T]
    first = slice(0, 2)  # later layers differ by what rounding has become there
    error = float((ours - theirs)[first].norm() / theirs[first].norm())
    return found.check(f"{name}: received against eager attention, T = 96", error, ROUNDED)
