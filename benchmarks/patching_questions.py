"""The suite's questions on patching: heads, the residual stream, pairs of prompts, paths."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

import pycotmech as pcm
from benchmarks import bench_paths, by_hand, llama7b
from benchmarks.asked import Asked, Way, close, load
from tests.reference.truth import kl, z_of

LAYERS_7B = 2
"""Of Llama-2 7B's shape, in the suite: 1.4 GiB in bfloat16. All of it is in bench_llama7b.py."""

LAST = 10
"""Positions of the residual stream, the last ones: all 42 of the suffix take four times as long and tell nothing more."""


def _spread(n: int, n_layers: int) -> list[int]:
    return np.linspace(0, n_layers - 1, min(n, n_layers)).round().astype(int).tolist()


def heads(name: str, positions: str, sample: int, dtype: str) -> Asked:
    """All heads, one at a time; the logit difference at the last position."""
    model = load(name, dtype)
    shots = {} if name != "tiny-cot" else {"shots": 4}
    clean, corrupted, answer, wrong = by_hand.prompt_pair(model.tokenizer, **shots)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    first = int((clean != corrupted).nonzero()[0])
    where = None if positions == "all" else [T - 1]
    read = dict(answer=answer, wrong=wrong, positions=where)
    chosen = [(l, 0) for l in _spread(sample, cfg.n_layers)]  # until the check knows the strongest of these layers

    def run_source() -> list[Tensor]:
        return z_of(hf, clean)

    def run_prefix():
        return by_hand.cache_of(hf, corrupted[:first])

    source, prefix = cache(run_source), cache(run_prefix)

    def ours() -> pcm.Sweep:
        model.prefixes.clear()
        return pcm.patch_heads(model, clean, corrupted, metric="logit_diff", normalize=False, **read)

    def hooked(l: int, h: int) -> Tensor:
        return by_hand.hooked_forward(hf, corrupted, source(), l, h, where)

    def cached(l: int, h: int, at: list[int] | None = where) -> Tensor:
        return by_hand.cached_forward(hf, prefix(), corrupted, source(), l, h, first, at)

    def check(found: pcm.Sweep) -> str:
        chosen[:] = by_hand.strongest_heads(found.effect, len(chosen))
        theirs = np.full(found.shape, np.nan)
        zero = by_hand.logit_difference(cached(0, 0, []), answer, wrong)
        for l, h in chosen:
            theirs[l, h] = by_hand.logit_difference(cached(l, h), answer, wrong) - zero
        by_hand.check_heads(hf, clean, corrupted, chosen, np.stack([found.effect, theirs]), **read)
        return f"{len(chosen)} heads against hooked forwards"

    n = cfg.n_layers * cfg.n_heads
    times = n / len(chosen)
    rivals = [
        Way(
            "one hooked forward for each head",
            lambda: [hooked(l, h) for l, h in chosen],
            times,
            once=run_source,
            least=lambda: hooked(*chosen[0]),
        ),
        Way(
            "hooks over a cache of the prefix",
            lambda: [cached(l, h) for l, h in chosen],
            times,
            once=lambda: (run_source(), run_prefix()),
            least=lambda: cached(*chosen[0]),
        ),
    ]
    return Asked(Way("pycotmech", ours), rivals, check, cfg, note=f"T = {T}, suffix {T - first}, {n} heads")


def residual(dtype: str) -> Asked:
    """The residual stream of every layer at the last positions, one at a time."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, *_ = by_hand.prompt_pair(model.tokenizer)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    at = list(range(T - LAST, T))
    places = list(zip(_spread(4, cfg.n_layers), np.linspace(T - 1, T - LAST, 4).round().astype(int).tolist(), strict=True))
    source = cache(lambda: model.run(clean, capture=("resid_pre",), positions=[-1])["resid_pre"])  # [L, T, d]

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        return hf(tokens[None], use_cache=False, logits_to_keep=1).logits[0, -1]

    def hooked(l: int, p: int) -> Tensor:
        value = source()[l, p]

        def replace(_module, args, kwargs):
            x = (args[0] if args else kwargs["hidden_states"]).clone()
            x[0, p] = value.to(x.dtype)
            return ((x, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": x})

        handle = hf.model.layers[l].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            return logits(corrupted)
        finally:
            handle.remove()

    def ours() -> pcm.Sweep:
        model.prefixes.clear()
        return pcm.patch_residual(model, clean, corrupted, site="resid_pre", positions=at, metric="kl", normalize=False)

    def check(found: pcm.Sweep) -> str:
        clean_logits = logits(clean)
        theirs = [kl(clean_logits, hooked(l, p)) for l, p in places]
        return close([found.raw[l, p] for l, p in places], theirs, 1e-3, f"{len(places)} entries and hooked forwards")

    hooks = Way(
        "one hooked forward for each entry",
        lambda: [hooked(l, p) for l, p in places],
        cfg.n_layers * len(at) / len(places),
        least=lambda: hooked(*places[0]),
    )
    return Asked(
        Way("pycotmech", ours), [hooks], check, cfg, note=f"T = {T}, {cfg.n_layers} layers x the last {len(at)} positions"
    )


def pairs(dtype: str, n: int = 20) -> Asked:
    """Many pairs that share their few-shot block, last position, in one call."""
    model = load("smollm2-135m", dtype)
    examples = pcm.cot.make_examples(n // 10, shots=8, seed=0, tokenizer=model.tokenizer)
    steps = [step for example in examples for step in example.steps][:n]
    sample = np.linspace(0, len(steps) - 1, 4).round().astype(int).tolist()

    def call(chosen: list) -> pcm.Sweep:
        model.prefixes.clear()
        lists = {name: [getattr(s, name) for s in chosen] for name in ("clean", "corrupted", "answer", "wrong")}
        return pcm.patch_heads(model, **lists, positions=[-1], metric="logit_diff", normalize=False)

    def check(together: pcm.Sweep) -> str:
        worst = 0.0
        for i in sample:
            alone = call([steps[i]])
            change = alone.raw[0] - alone.corrupted_metric
            error = np.abs(together.raw[i] - together.corrupted_metric[i] - change)
            # Two roundings of the same prompt part by some units of a 16-bit model's noise.
            off = error.max() if dtype == "float32" else np.sqrt((error**2).mean())
            worst = max(worst, off / np.abs(change).max())
            assert worst <= (1e-4 if dtype == "float32" else 0.05), (i, worst)
        return f"{len(sample)} pairs within {worst:.1e} of the largest effect of a call for each"

    single = Way(
        "one cold call for each pair",
        lambda: [call([steps[i]]) for i in sample],
        len(steps) / len(sample),
        least=lambda: call([max(steps, key=lambda step: len(step.clean))]),
    )
    return Asked(Way("pycotmech", lambda: call(steps)), [single], check, model.cfg, note=f"{len(steps)} pairs")


def paths(dtype: str) -> Asked:
    """From every twentieth head to q, k and v of every head above, at the last position."""
    model = load("smollm2-135m", dtype)
    clean, corrupted, answer, wrong = by_hand.prompt_pair(model.tokenizer)
    cfg = model.cfg
    senders = [(l, h) for l in range(cfg.n_layers) for h in range(cfg.n_heads)][::20]
    usable = [s for s in senders if s[0] < cfg.n_layers - 2]
    sample = [(s, (s[0] + 1 + (cfg.n_layers - 2 - s[0]) // 2, 3), "q") for s in usable[:: max(1, len(usable) // 3)]][:3]
    hooked = cache(lambda cached: bench_paths.HookedPaths(model.hf, corrupted, clean, cached=cached))
    arrived = cache(lambda sender: hooked(True).first(sender))

    def ours() -> pcm.PathSweep:
        model.prefixes.clear()
        return pcm.path_patch(
            model, clean, corrupted, senders=senders, receivers="all", positions="read", metric="logit_diff", answer=answer,
            wrong=wrong, normalize=False,
        )  # fmt: skip

    def both(chosen: list) -> list[Tensor]:
        """Two forwards for each path."""
        way = hooked(False)
        return [way.second(way.first(sender), receiver, given) for sender, receiver, given in chosen]

    def second(chosen: list) -> list[Tensor]:
        """One forward for each, over a cache; what arrives is kept for each sender."""
        return [hooked(True).second(arrived(sender), receiver, given) for sender, receiver, given in chosen]

    def check(found: pcm.PathSweep) -> str:
        zero = by_hand.logit_difference(hooked(False).final(corrupted), answer, wrong)
        ours = [found.path(s, r, i) for s, r, i in sample]
        largest = max(np.abs(found.effect).max(), 1e-12)
        for way in (both, second):
            theirs = [by_hand.logit_difference(x, answer, wrong) - zero for x in way(sample)]
            error = np.abs(np.subtract(ours, theirs)).max()
            assert error <= 1e-3 * largest, (ours, theirs, largest)
        return f"{len(sample)} paths within {error / largest:.1e} of the largest effect"

    n = 3 * cfg.n_heads * sum(cfg.n_layers - 1 - l for l, _ in senders)
    times = n / len(sample)
    rivals = [
        Way("two hooked forwards for each path", lambda: both(sample), times, least=lambda: both(sample[:1])),
        Way(
            "hooks on the last token over a cache, the first forward kept",
            lambda: second(sample),
            times,
            once=lambda: [hooked(True).first(s) for s in senders],
            least=lambda: second(sample[:1]),
        ),
    ]
    return Asked(Way("pycotmech", ours), rivals, check, cfg, note=f"{len(senders)} senders, {n} paths")


def heads_7b(dtype: str) -> Asked:
    """All heads of two layers at the widths of Llama-2 7B, T = 512, last position."""
    model = llama7b.model(LAYERS_7B)
    clean, corrupted, where = llama7b.prompts("last", 512)
    hf, cfg = model.hf, model.cfg
    chosen = llama7b.sampled_heads(cfg)

    def run_source() -> list[Tensor]:
        return z_of(hf, clean)

    source = cache(run_source)

    def ours() -> pcm.Sweep:
        model.prefixes.clear()
        return pcm.patch_heads(model, clean, corrupted, **llama7b.arguments(where))

    def hooked(l: int, h: int) -> Tensor:
        return by_hand.hooked_forward(hf, corrupted, source(), l, h, where)

    def check(found: pcm.Sweep) -> str:
        hand = llama7b.by_hand(model, clean, corrupted, where, chosen)
        return llama7b.check_rounding(model, clean, corrupted, where, found, hand)

    n = cfg.n_layers * cfg.n_heads
    rival = Way(
        "one hooked forward for each head",
        lambda: [hooked(l, h) for l, h in chosen],
        n / len(chosen),
        once=run_source,
        least=lambda: hooked(*chosen[0]),
    )
    note = f"{cfg.n_layers} layers of 32, {n} heads, T = 512"
    return Asked(Way("pycotmech", ours), [rival], check, cfg, note=note)
