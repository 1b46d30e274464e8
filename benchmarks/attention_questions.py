"""The suite's questions on attention, the logit lens and traces."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

import pycotmech as pcm
from benchmarks import bench_attention, by_hand, llama7b
from benchmarks.asked import Asked, Way, close, load
from pycotmech import cost
from pycotmech.cost import Demand
from pycotmech.traces import Trace


def summary(dtype: str, T: int = 1024) -> Asked:
    """Masses, entropy, 8 top keys and attention received of every row, head and layer."""
    model = load("smollm2-135m", dtype)
    hf, cfg = model.hf, model.cfg
    tokens = torch.randint(3, cfg.d_vocab, (T,), generator=torch.Generator().manual_seed(1))
    segments = {"early": slice(1, T // 4), "middle": slice(T // 4, T // 2), "late": slice(T // 2, T)}
    call = lambda: pcm.attention_summary(model, tokens, segments=segments, top_k=8)  # noqa: E731
    before = hf.config._attn_implementation

    def forward(implementation: str, **more):
        hf.set_attn_implementation(implementation)
        try:
            with torch.no_grad():
                return hf(tokens[None], use_cache=False, logits_to_keep=1, **more)
        finally:
            hf.set_attn_implementation(before)

    def eager() -> None:
        """The patterns of all layers, as the model returns them, and the same statistics of each."""
        patterns = forward("eager", output_attentions=True).attentions
        for p in patterns:
            p = p[0].float()
            groups = [p[..., s].sum(-1) for s in (*segments.values(), slice(0, 1))]
            _ = groups, torch.special.entr(p).sum(-1), p.topk(8, -1), p.sum(1)

    def check(found: pcm.AttentionSummary) -> str:
        patterns = forward("eager", output_attentions=True).attentions
        off: list[np.ndarray] = []
        for l in (0, cfg.n_layers // 2, cfg.n_layers - 1):
            p = patterns[l][0, :, -8:].double()
            mass = torch.stack([p[..., s].sum(-1) for s in (*segments.values(), slice(0, 1))], -1).numpy()
            entropy = torch.special.entr(p).sum(-1).numpy()
            off += [found.mass[l, :, -8:] - mass, (found.entropy[l, :, -8:] - entropy) / entropy.max()]
        error = np.abs(np.concatenate([x.ravel() for x in off]))
        # In bfloat16 both round in every layer: single entries part by much, all of them by little.
        worst, limit = (error.max(), 1e-3) if dtype == "float32" else (np.sqrt((error**2).mean()), 0.05)
        assert worst <= limit, (worst, limit)
        return f"masses and entropies of three layers within {worst:.1e} of eager patterns"

    rivals = [
        Way("eager patterns and the same statistics", eager),
        Way("a forward with SDPA, no statistics", lambda: forward("sdpa")),
    ]
    demand = cost.summary(cfg, T)
    return Asked(Way("pycotmech", call), rivals, check, cfg, demand, note=f"T = {T}, all rows, layers and heads")


def kernel(dtype: str) -> Asked:
    """One layer's attention at the shape of Llama-2 7B with all statistics."""
    x = bench_attention.inputs(bench_attention.DTYPES[dtype])
    H, T, D = bench_attention.H, bench_attention.T, bench_attention.D
    cfg = replace(cost.without_weights(llama7b.shape(1)).cfg, dtype=bench_attention.DTYPES[dtype])

    def check(_found: object) -> str:
        bench_attention.check(x)
        return "two heads against float64"

    rivals = [
        Way("eager and the same statistics", lambda: bench_attention.eager(x)),
        Way("SDPA, z alone", lambda: bench_attention.fused(x)),
    ]
    demand = Demand(keys=T * (T + 1) / 2)
    note = f"{H} heads of {D}, T = {T}"
    return Asked(Way("attn_extract", lambda: bench_attention.ours(x)), rivals, check, cfg, demand, note=note)


def lens(dtype: str) -> Asked:
    """The logit lens of a prompt at every layer and position of its suffix."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, answer, _ = by_hand.prompt_pair(model.tokenizer)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    at = list(range(int((clean != corrupted).nonzero()[0]), T))
    call = lambda: pcm.logit_lens(model, clean, positions=at, answer=answer)  # noqa: E731

    @torch.no_grad()
    def by_states() -> list[torch.Tensor]:
        states = hf(clean[None], use_cache=False, logits_to_keep=1, output_hidden_states=True).hidden_states[1:]
        found = []
        for i, x in enumerate(states):  # the last one is normed already
            x = x[0, at]
            x = x if i == cfg.n_layers - 1 else hf.model.norm(x)
            logits = F.linear(x.float(), hf.lm_head.weight.float())
            p = logits.softmax(-1)
            _ = p.topk(5, -1), torch.special.entr(p).sum(-1)
            found.append(p[:, answer])
        return found

    def check(found: pcm.LogitLens) -> str:
        theirs = torch.stack(by_states(), 1).double().numpy()
        limit = 1e-3 if dtype == "float32" else 0.1
        return close(found.probabilities[..., 0], theirs, limit, "probabilities and those of states")

    rival = Way("hidden states, norm and unembedding by hand", by_states)
    return Asked(Way("pycotmech", call), [rival], check, cfg, note=f"T = {T}, {len(at)} positions")


def suppression(dtype: str, T: int = 450, prompt: int = 150, n: int = 15) -> Asked:
    """Each sentence of a trace cut from all that follows it."""
    model = load("smollm2-135m", dtype)
    hf, cfg = model.hf, model.cfg
    tokens = torch.randint(10, cfg.d_vocab - 10, (T,), generator=torch.Generator().manual_seed(0))
    ends = np.linspace(prompt, T, n + 1).round().astype(int).tolist()
    trace = Trace.from_tokens(model, tokens, sentences=list(itertools.pairwise(ends)))
    spans = trace.spans().tolist()
    call = lambda: pcm.traces.suppress(model, trace, controls=0)  # noqa: E731
    sample = [0, n // 2, n - 2]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    base = cache(torch.no_grad()(lambda: hf(tokens[None], use_cache=False).logits[0]))

    @torch.no_grad()
    def masked(chosen: list[int]) -> list[list[float]]:
        found = []
        for j in chosen:
            a, b = spans[j]
            mask = causal.clone()
            mask[b:, a:b] = False
            logits = hf(tokens[None], attention_mask=mask[None, None], use_cache=False, logits_to_keep=T - b).logits[0]
            p, q = torch.log_softmax(base()[b:].float(), -1), torch.log_softmax(logits.float(), -1)
            rows = (p.exp() * (p - q)).sum(-1)
            found.append([float(rows[c - b : d - b].mean()) for c, d in spans[j + 1 :]])
        return found

    def check(suppressed: pcm.traces.Suppression) -> str:
        ours, theirs = suppressed.values, masked(sample)
        flat = np.concatenate([ours[j + 1 :, j] for j in sample]), np.concatenate(theirs)
        return close(*flat, 0.02, "divergences and those of masked forwards")

    rival = Way(
        "one masked SDPA forward for each sentence",
        lambda: masked(sample),
        (n - 1) / len(sample),
        once=lambda: hf(tokens[None], use_cache=False),
        least=lambda: masked(sample[:1]),
    )
    return Asked(Way("pycotmech", call), [rival], check, cfg, note=f"T = {T}, {n} sentences")
