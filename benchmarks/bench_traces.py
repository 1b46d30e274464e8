"""Traces: receiver heads against one eager forward for each head, suppression against one masked forward for each sentence.

Receiver heads, at the shape of R1-Distill-Qwen-1.5B (28 layers of 12 heads, 2 of them for keys and values) with random
weights: the published loop runs the model once for each head with `output_attentions` on eager attention and keeps one head's
pattern. A few of its 336 forwards are timed and multiplied; our one pass holds no T x T pattern. --layers cuts the model.

Suppression, on SmolLM2-135M: 60 sentences, 1,500 tokens, the prompt 40 % of them. The baseline is what a user can do best with
Hugging Face: one forward for each sentence with a mask [T, T] given to SDPA, on the same weights, with logits of the later
sentences only. A few forwards, spread evenly, are timed and multiplied. The bound by rows is the number of rows that both put
through the layers, divided: what remains after it is the attention, the unembedding and the divergence.

    pytest benchmarks/bench_traces.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import gc
import itertools
import time

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import pycotmech as pcm
from benchmarks import llama7b
from pycotmech.traces import Trace
from tests.reference.eager import sentence_matrix

T, PROMPT, S = 1500, 600, 60
SAMPLE = 3


def made_trace(model: pcm.Model, length: int = T, prompt: int = PROMPT, n: int = S) -> Trace:
    """Random tokens, sentences of equal length after the prompt."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, model.cfg.d_vocab - 10, (length,), generator=g)
    ends = np.linspace(prompt, length, n + 1).round().astype(int).tolist()
    return Trace.from_tokens(model, tokens, sentences=list(itertools.pairwise(ends)))


def test_receiver_heads(benchmark, report, request):
    layers = min(28, request.config.getoption("--layers"))
    config = Qwen2Config(
        vocab_size=4096, hidden_size=1536, intermediate_size=8960, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=4096, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    hf = Qwen2ForCausalLM(config).eval()
    model = pcm.Model(hf, None, name="qwen-1.5b shape", check=False)
    trace = made_trace(model)
    llama7b.forget_peak()
    benchmark.pedantic(
        lambda: pcm.traces.receiver_heads(model, trace, draws=20, alpha=0.1), rounds=1, iterations=1, warmup_rounds=0
    )
    seconds, ours_peak = benchmark.stats.stats.min, llama7b.peak_gib()
    found = pcm.traces.sentence_attention(model, trace).values
    gc.collect()
    llama7b.forget_peak()
    start, spans = time.perf_counter(), trace.spans().tolist()
    with torch.no_grad():
        for l, h in [(0, 0), (layers // 2, 5), (layers - 1, 11)][:SAMPLE]:
            pattern = hf(trace.tokens[None], output_attentions=True, use_cache=False).attentions[l][0, h]
            theirs = sentence_matrix(pattern[None], spans)[0]
            np.testing.assert_allclose(found[l, h], theirs, rtol=1e-3, atol=1e-6)
            del pattern
    baseline = (time.perf_counter() - start) / SAMPLE * layers * 12
    report(
        f"receiver heads, {layers} layers x 12 heads, T = {T}",
        seconds,
        baseline="one eager forward for each head",
        baseline_seconds=baseline,
        note=f"{SAMPLE} of {layers * 12} forwards timed; peak {ours_peak:.2f} GiB, eager's {llama7b.peak_gib():.2f} GiB",
    )


def test_suppression(benchmark, report):
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    trace = made_trace(model)
    llama7b.forget_peak()
    found = benchmark.pedantic(
        lambda: pcm.traces.suppress(model, trace, controls=0), rounds=1, iterations=1, warmup_rounds=0
    ).values
    seconds, ours_peak = benchmark.stats.stats.min, llama7b.peak_gib()
    gc.collect()
    llama7b.forget_peak()
    hf, spans = model.hf, trace.spans().tolist()
    before, hf.config._attn_implementation = hf.config._attn_implementation, "sdpa"
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    sampled, clock = np.linspace(0, S - 2, 2 * SAMPLE).round().astype(int).tolist(), 0.0
    try:
        with torch.no_grad():
            base = hf(trace.tokens[None], use_cache=False).logits[0]
            for j in sampled:
                a, b = spans[j]
                mask = causal.clone()
                mask[b:, a:b] = False
                start = time.perf_counter()
                logits = hf(trace.tokens[None], attention_mask=mask[None, None], use_cache=False, logits_to_keep=T - b).logits[
                    0
                ]
                p, q = torch.log_softmax(base[b:], -1), torch.log_softmax(logits, -1)
                rows = (p.exp() * (p - q)).sum(-1)
                clock += time.perf_counter() - start
                theirs = np.array([rows[c - b : d - b].mean() for c, d in spans[j + 1 :]])
                np.testing.assert_allclose(found[j + 1 :, j], theirs, rtol=0.02, atol=1e-4)
    finally:
        hf.config._attn_implementation = before
    baseline = clock / len(sampled) * (S - 1)
    ours = T + sum(T - b for _, b in spans)
    report(
        f"suppression of {S} sentences, T = {T}",
        seconds,
        baseline="one masked SDPA forward for each sentence",
        baseline_seconds=baseline,
        note=f"bound by rows {(S - 1) * T / ours:.2f}x; {len(sampled)} forwards timed; peak {ours_peak:.2f} GiB, theirs "
        f"{llama7b.peak_gib():.2f} GiB",
    )
