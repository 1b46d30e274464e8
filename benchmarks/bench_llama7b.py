"""The all-heads sweep at the shape of Llama-2 7B: 32 layers x 32 heads, bfloat16, random weights, real configuration.

Weights are drawn once; nothing about the timing depends on their values. Prompts differ in the last 40 tokens. The whole
model needs about 16 GiB of memory; `--layers 4` tries the same on a part of it. The baseline is one hooked Hugging Face
forward per head (SDPA, last logits only) for a few heads spread over the layers, times their number. Peak memory is that of
the process until the sweep ended: weights and everything else. Correctness: against the same interventions in float32, one
layer's weights widened at a time, the sweep is no further off than hooked Hugging Face forwards in bfloat16.

    pytest benchmarks/bench_llama7b.py --benchmark-only -k last
"""

from __future__ import annotations

import copy
import resource
import time
from functools import cache

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from pycotmech.patching.evaluate import Evaluator
from tests.reference.truth import logits_of, patched_logits, z_of

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


def sampled_heads(cfg) -> list[tuple[int, int]]:
    layers = sorted({0, cfg.n_layers // 4, cfg.n_layers // 2, max(cfg.n_layers - 2, 0)})
    return [(l, (5 + 7 * l) % cfg.n_heads) for l in layers]


@torch.no_grad()
def widened_logits(hf, clean, corrupted, heads, where) -> torch.Tensor:
    """Last logits [2 + n, V] in float32 of the clean run, the corrupted run and n hooked runs, as one batch that goes through
    the layers once; only the layer it is in is widened."""
    base, D = hf.model, hf.model.layers[0].self_attn.head_dim
    at = slice(None) if where is None else where
    tokens = torch.stack([clean, *[corrupted] * (1 + len(heads))])
    x = base.embed_tokens(tokens).float()
    rotary = base.rotary_emb(x, position_ids=torch.arange(len(clean))[None])
    for l, layer in enumerate(base.layers):

        def patch(_module, args, l=l):
            z = args[0].unflatten(-1, (-1, D)).clone()
            for i, (layer_, h) in enumerate(heads):
                if layer_ == l:
                    z[2 + i, at, h] = z[0, at, h]
            return (z.flatten(-2),)

        wide = copy.deepcopy(layer).float()
        wide.self_attn.o_proj.register_forward_pre_hook(patch)
        x = x + wide.self_attn(wide.input_layernorm(x), position_embeddings=rotary, attention_mask=None)[0]
        x = torch.cat([row + wide.mlp(wide.post_attention_layernorm(row)) for row in x.split(1)])
    n = copy.deepcopy(base.norm).float()(x[:, -1])
    return torch.cat([n @ part.float().T for part in hf.lm_head.weight.split(8192)], -1)


def check(pcm_model: pcm.Model, clean, corrupted, where, sweep: pcm.Sweep) -> float:
    """Asserts that the runs and the sweep are as close to float32 as Hugging Face's are: the logits of both prompts, and the
    effects of the sampled heads, which scatter more, being few. Gives the mean seconds of one hooked forward."""
    hf, heads = pcm_model.hf, sampled_heads(pcm_model.cfg)
    source, theirs, times = z_of(hf, clean), [logits_of(hf, t, keep=1)[0] for t in (clean, corrupted)], []
    for l, h in heads:
        start = time.perf_counter()
        theirs.append(patched_logits(hf, corrupted, source, l, h, where))
        times.append(time.perf_counter() - start)
    truth, theirs = widened_logits(hf, clean, corrupted, heads, where).double(), torch.stack(theirs).double()
    ours = torch.stack([pcm_model.run(t, positions=[-1]).logits[0] for t in (clean, corrupted)]).double()
    rms = lambda x: float(x.square().mean().sqrt())  # noqa: E731
    assert rms(ours - truth[:2]) <= 1.1 * rms(theirs[:2] - truth[:2])
    read = lambda x: x[..., ANSWER] - x[..., WRONG]  # noqa: E731
    measured = torch.tensor([sweep.clean_metric[0], sweep.corrupted_metric[0]]).double()
    assert rms(measured - read(truth[:2])) <= 4 * rms(theirs[:2] - truth[:2])  # two differences of two logits
    effects = [read(x[2:]) - read(x[1]) for x in (truth, theirs)]
    own = torch.tensor([sweep.raw[l, h] for l, h in heads]).double() - float(sweep.corrupted_metric[0])
    assert rms(own - effects[0]) <= 2 * rms(effects[1] - effects[0]), (own, *effects)
    return float(np.mean(times))


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

    pcm_model.prefixes.clear()
    sweep = benchmark.pedantic(lambda: pcm.patch_heads(pcm_model, clean, corrupted, **arguments), rounds=1, iterations=1)
    seconds = benchmark.stats.stats.min
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    weights = sum(w.numel() * w.element_size() for w in hf.parameters()) / 2**30

    one = check(pcm_model, clean, corrupted, where, sweep)
    n = cfg.n_layers * cfg.n_heads
    beyond = sum(sweep_seconds)
    report(
        f"Llama-2 7B shape, {layers} layers, bfloat16, T = {T}, {positions}: {n} heads",
        seconds,
        baseline="hooked forward per head",
        baseline_seconds=one * n,
        note=f"{beyond:.1f} s beyond the runs of the prompts ({seconds - beyond:.1f} s); "
        f"peak memory {peak:.1f} GiB, {weights:.1f} of them weights",
    )
