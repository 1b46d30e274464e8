"""Traces: receiver heads against one eager forward for each head, suppression against one masked forward for each sentence.

Receiver heads, at the shape of Qwen2.5-1.5B (28 layers of 12 heads, 2 of them for keys and values) with random weights and a
small vocabulary, whose unembedding only the baseline computes. The published loop runs the model once for each head with
`output_attentions` on eager attention, keeps one head's pattern and averages its blocks. A few of its 336 forwards are timed
and multiplied. Ours is one call of `receiver_heads` with the null that the loop does not have.

Suppression, on SmolLM2-135M: 60 sentences, 1,500 tokens, the prompt 40 % of them. The baselines are one forward for each
sentence with a mask [T, T], on eager attention as published, and on SDPA, the best that a user can do with Hugging Face; both
with logits of the later sentences only, from which KL is taken. A few forwards, spread evenly, are timed and multiplied. The
bound by rows is the number of rows that each side puts through the layers, divided: what is missing to it, or more than it, is
attention, unembedding, divergence and the library of the products.

Each side is measured once, ours first and cold, and its peak memory counts from its own start (weights included). A row is
reported only if what was timed agrees with the baseline to 1e-4 of the largest value. --layers and --tokens make both smaller.

    pytest benchmarks/bench_traces.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import gc
import itertools
import time
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.initialization import no_init_weights

import pycotmech as pcm
from benchmarks import llama7b
from pycotmech.traces import Trace
from tests.reference.eager import sentence_matrix, vertical_loop

T, PROMPT_SHARE, S = 1500, 0.4, 60
T_HEADS = 1000
"""Tokens of the trace whose receiver heads are found: a forward of this shape takes half a minute on two cores at 1,500."""

SAMPLED_HEADS, SAMPLED_SENTENCES = 2, 4
"""Forwards of each baseline that are timed."""

TOLERANCE = 1e-4
"""Of the largest value."""


def made_trace(model: pcm.Model, length: int, n: int = S) -> Trace:
    """Random tokens, n sentences of equal length after the prompt."""
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, model.cfg.d_vocab - 10, (length,), generator=g)
    ends = np.linspace(PROMPT_SHARE * length, length, n + 1).round().astype(int).tolist()
    return Trace.from_tokens(model, tokens, sentences=list(itertools.pairwise(ends)))


def qwen(layers: int) -> nn.Module:
    """The shape of Qwen2.5-1.5B, weights that keep the variance of what they multiply."""
    config = Qwen2Config(
        vocab_size=4096, hidden_size=1536, intermediate_size=8960, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    with no_init_weights():
        hf = Qwen2ForCausalLM(config).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for name, weight in hf.named_parameters():
        if weight.ndim == 1:
            weight.fill_(0 if name.endswith("bias") else 1)
        else:
            weight.uniform_(-1, 1, generator=g).mul_((3 / weight.shape[1]) ** 0.5)
    return hf


def error(found: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, as a share of the largest value; where one of both is not finite, neither may be."""
    known = np.isfinite(want)
    assert np.array_equal(known, np.isfinite(found))
    return float(np.abs(found - want)[known].max() / np.abs(want[known]).max())


def test_receiver_heads(benchmark, report, say, request):
    layers, tokens = min(28, request.config.getoption("--layers")), request.config.getoption("--tokens") or T_HEADS
    hf = qwen(layers)
    model = pcm.Model(hf, None, name="qwen-1.5b shape", check=False)
    trace = made_trace(model, tokens)
    say(f"{layers} layers are drawn; receiver_heads of {tokens} tokens")
    llama7b.forget_peak()
    found = benchmark.pedantic(pcm.traces.receiver_heads, (model, trace), rounds=1, iterations=1)
    seconds, peak = benchmark.stats.stats.min, llama7b.peak_gib()
    say(f"{seconds:.1f} s, peak {peak:.2f} GiB; the published loop")
    gc.collect()
    llama7b.forget_peak()
    clock, spans, worst = 0.0, trace.spans().tolist(), 0.0
    for l, h in [(0, 5), (layers - 1, 11), (layers // 2, 3)][:SAMPLED_HEADS]:
        start = time.perf_counter()
        with torch.no_grad():
            pattern = hf(trace.tokens[None], output_attentions=True, use_cache=False).attentions[l][0, h]
        scores = vertical_loop(sentence_matrix(pattern[None], spans)[0], 4)
        kurtosis = scipy.stats.kurtosis(scores[np.isfinite(scores)])
        clock += time.perf_counter() - start
        worst = max(worst, error(found.data["vertical"].values[0, l, h], scores))
        worst = max(worst, error(found.data["kurtosis"].values[:1, l, h], np.array([kurtosis])))
        del pattern
    eager_peak = llama7b.peak_gib()
    assert worst <= TOLERANCE, f"scores differ by {worst:.1e} of the largest"
    baseline = clock / SAMPLED_HEADS * layers * 12
    say(f"{clock / SAMPLED_HEADS:.1f} s a head, peak {eager_peak:.2f} GiB; scores agree to {worst:.0e}")
    report(
        f"receiver heads, {layers} layers x 12 heads, T = {tokens}",
        seconds,
        baseline="one eager forward for each head",
        baseline_seconds=baseline,
        note=f"{SAMPLED_HEADS} of {layers * 12} forwards timed; scores within {worst:.0e}; peak {peak:.2f} GiB, eager's "
        f"{eager_peak:.2f} GiB",
    )


@dataclass(frozen=True)
class Loop:
    """One masked forward for each sentence. seconds: for all of them; peak in GiB; error of what was timed of ours."""

    seconds: float
    peak: float
    error: float


@torch.no_grad()
def masked_forwards(hf: nn.Module, trace: Trace, found: np.ndarray, attention: str) -> Loop:
    """The loop over sentences with another attention of Hugging Face, at a few of them."""
    spans, length, clock, worst = trace.spans().tolist(), len(trace), 0.0, 0.0
    sampled = np.linspace(0, len(spans) - 2, SAMPLED_SENTENCES).round().astype(int).tolist()
    before, hf.config._attn_implementation = hf.config._attn_implementation, attention
    gc.collect()
    llama7b.forget_peak()
    try:
        start = time.perf_counter()
        base = hf(trace.tokens[None], use_cache=False, logits_to_keep=length - spans[0][1]).logits[0]
        first = time.perf_counter() - start
        for j in sampled:
            a, b = spans[j]
            start = time.perf_counter()
            seen = torch.ones(length, length, dtype=torch.bool).tril()
            seen[b:, a:b] = False
            mask = seen if attention == "sdpa" else torch.where(seen, 0.0, torch.finfo(hf.dtype).min)
            logits = hf(trace.tokens[None], attention_mask=mask[None, None], use_cache=False, logits_to_keep=length - b).logits[
                0
            ]
            kl = divergence(base[b - length :], logits)
            theirs = np.array([kl[c - b : d - b].mean() for c, d in spans[j + 1 :]])
            clock += time.perf_counter() - start
            worst = max(worst, float(np.abs(found[j + 1 :, j] - theirs).max()))
    finally:
        hf.config._attn_implementation = before
    seconds = first + clock / len(sampled) * (len(spans) - 1)
    return Loop(seconds, llama7b.peak_gib(), worst / float(np.nanmax(found)))


def divergence(base: Tensor, logits: Tensor) -> Tensor:
    """KL of rows [n, V], as one writes it down."""
    p, q = torch.log_softmax(base, -1), torch.log_softmax(logits, -1)
    return (p.exp() * (p - q)).sum(-1)


def test_suppression(benchmark, report, say, request):
    tokens = request.config.getoption("--tokens") or T
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    trace = made_trace(model, tokens)
    spans = trace.spans().tolist()
    say(f"suppression of {S} sentences in {tokens} tokens")
    llama7b.forget_peak()
    result = benchmark.pedantic(
        pcm.traces.suppress, (model, trace), {"controls": 0}, rounds=1, iterations=1, warmup_rounds=0
    )  # fmt: skip
    found, seconds, peak = result.values, benchmark.stats.stats.min, llama7b.peak_gib()
    ours = tokens + sum(tokens - b for _, b in spans)
    bound = S * tokens / ours
    say(f"{seconds:.1f} s, peak {peak:.2f} GiB; {ours:,} rows")
    for name, attention in (("eager", "eager"), ("SDPA", "sdpa")):
        theirs = masked_forwards(model.hf, trace, found, attention)
        assert theirs.error <= TOLERANCE, f"{name}: KL differs by {theirs.error:.1e} of the largest"
        say(f"{name}: {theirs.seconds:.0f} s, peak {theirs.peak:.2f} GiB; KL agrees to {theirs.error:.0e}")
        report(
            f"suppression of {S} sentences, T = {tokens}",
            seconds,
            baseline=f"one masked {name} forward for each sentence",
            baseline_seconds=theirs.seconds,
            note=f"bound by rows {bound:.2f}x; {SAMPLED_SENTENCES} forwards timed; KL within {theirs.error:.0e}; peak "
            f"{peak:.2f} GiB, theirs {theirs.peak:.2f} GiB",
        )
