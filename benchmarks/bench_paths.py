"""Every sender-receiver pair of SmolLM2-135M at the last position, against what a user can do with hooks.

270 heads, the q, k and v of every head above a sender: 105,705 paths. Ours is everything: the shared prefix, both runs, what
every sender changes on its way up, every path, the metric. The baselines run a few paths, spread evenly over the layers of
sender and receiver, times the number of paths:

* two hooked forwards per path, as path patching is written down: one that captures what arrives, one that replaces it;
* the same with the first forward kept for all receivers of its sender: one forward per path;
* hooks on the last token over a key-value cache of all tokens before it, first forward kept: the strongest thing to write by
  hand, for only the last position changes.

Both sides use the same weights, tokens, float32, threads and SDPA; the baselines keep the last position's logits only. A ratio
is printed only if the sampled paths agree.

    pytest benchmarks/bench_paths.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pycotmech as pcm
from benchmarks.bench_patching import load
from benchmarks.by_hand import cache_of, logit_difference, prompt_pair
from benchmarks.conftest import best_of
from tests.reference.truth import hooked, kl, z_of

pytestmark = [pytest.mark.benchmark(group="paths"), getattr(pytest.mark, "135m")]

PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}

SAMPLE = 9  # paths, three of each input


class HookedPaths:
    """Path patching at the last position by hooks; `cached`: on the last token alone, over kept keys and values."""

    def __init__(self, hf, base: torch.Tensor, source: torch.Tensor, *, cached: bool) -> None:
        self.hf, self.base = hf, base
        self.base_z, self.source_z = z_of(hf, base), z_of(hf, source)
        self.cache = cache_of(hf, base[:-1]) if cached else None

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        if self.cache is None:
            return self.final(self.base)
        logits = self.hf(self.base[None, -1:], use_cache=True, past_key_values=self.cache, logits_to_keep=1).logits[0, -1]
        self.cache.crop(-1)  # what this forward added
        return logits

    @torch.no_grad()
    def final(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [V] of the last position, nothing replaced."""
        return self.hf(tokens[None], use_cache=False, logits_to_keep=1).logits[0, -1]

    def first(self, sender: tuple[int, int]) -> dict:
        """What arrives everywhere at the last position, every head frozen but the sender: (input, layer) -> [heads * D]."""
        arrived: dict[tuple[str, int], torch.Tensor] = {}
        handles = []

        def frozen(l: int):
            z = self.base_z[l].clone()
            if l == sender[0]:
                z[-1, sender[1]] = self.source_z[l][-1, sender[1]]
            z = (z if self.cache is None else z[-1:]).flatten(1)[None]
            return lambda _module, _args: (z,)

        def seen(input: str, l: int):
            return lambda _module, _args, out: arrived.__setitem__((input, l), out[0, -1].clone())

        for l, layer in enumerate(self.hf.model.layers):
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(frozen(l)))
            handles += [getattr(layer.self_attn, p).register_forward_hook(seen(i, l)) for i, p in PROJECTIONS.items()]
        with hooked(*handles):
            self._run()
        return arrived

    def second(self, arrived: dict, receiver: tuple[int, int], input: str) -> torch.Tensor:
        """Logits [V] with the last position's q of the receiver, or k or v of its group, as it arrived."""
        attn = self.hf.model.layers[receiver[0]].self_attn
        head = receiver[1] if input == "q" else receiver[1] // attn.num_key_value_groups
        columns = slice(head * attn.head_dim, (head + 1) * attn.head_dim)

        def replaced(_module, _args, out):
            out = out.clone()
            out[0, -1, columns] = arrived[input, receiver[0]][columns]
            return out

        with hooked(getattr(attn, PROJECTIONS[input]).register_forward_hook(replaced)):
            return self._run()


def sampled_paths(sweep: pcm.PathSweep) -> list[tuple[tuple[int, int], tuple[int, int], str]]:
    """Senders and receivers in layers spread evenly; of each such pair of layers the heads with the largest effect."""
    out, L, H = [], sweep.n_layers, sweep.n_heads
    effect = np.abs(sweep.effect).reshape(3, L, H, L, H)
    for n, at in enumerate(np.linspace(0, 1, SAMPLE)):
        sender = round(at * (L - 2))
        receiver = sender + 1 + round((0.2 + 0.3 * (n % 3)) * (L - 2 - sender))
        s, r = divmod(int(effect[n % 3, sender, :, receiver].argmax()), H)
        out.append(((sender, s), (receiver, r), sweep.inputs[n % 3]))
    return out


@pytest.mark.parametrize("metric", ["logit_diff", "kl"])
def test_all_pairs(metric, benchmark, report):
    model = load("float32")
    clean, corrupted, answer, wrong = prompt_pair(model.tokenizer)
    hf, cfg, T = model.hf, model.cfg, len(clean)
    n_layer_pairs = cfg.n_layers * (cfg.n_layers - 1) // 2
    n_paths, n_senders = 3 * n_layer_pairs * cfg.n_heads**2, (cfg.n_layers - 1) * cfg.n_heads

    options = dict(answer=answer, wrong=wrong, normalize=False)
    model.prefixes.clear()
    call = lambda: pcm.path_patch_all(model, clean, corrupted, metric=metric, **options)  # noqa: E731
    sweep = benchmark.pedantic(call, rounds=1, iterations=1)
    assert sweep.plan.variants == n_paths + 8

    # Correctness before any figure: sampled paths, a query's as the sweep has them; of k and v, which hooks replace for the
    # whole group, one by one.
    plain, cached = (HookedPaths(hf, corrupted, clean, cached=cached) for cached in (False, True))
    reference = plain.final(clean)
    measure = {"kl": lambda x: kl(reference, x), "logit_diff": lambda x: logit_difference(x, answer, wrong)}[metric]
    zero, sample = measure(plain.final(corrupted)), sampled_paths(sweep)
    options |= dict(metric=metric, per_query_head=False, positions="read")
    ours = [
        sweep.path(s, r, i)
        if i == "q"
        else pcm.path_patch(model, clean, corrupted, senders=[s], receivers=[r], receiver_input=i, **options).path(s, r)
        for s, r, i in sample
    ]
    for way in (plain, cached):
        theirs = [measure(way.second(way.first(s), r, i)) - zero for s, r, i in sample]
        assert np.abs(np.subtract(ours, theirs)).max() <= 0.01 * np.abs(theirs).max(), (ours, theirs)

    seconds = benchmark.stats.stats.min
    once = best_of(1, lambda: HookedPaths(hf, corrupted, clean, cached=False))
    name = f"{metric}, T = {T}, last position: {n_paths} paths"
    note = f"{sweep.plan.token_forwards:,.0f} token-forwards, {sweep.plan.flop / 1e12:.1f} TFLOP"
    for way, what in ((plain, "hooked forwards"), (cached, "hooks on the last token over a cache")):
        first = sum(best_of(2, lambda s=s, way=way: way.first(s)) for s, _, _ in sample) / len(sample)
        arrived = [way.first(s) for s, _, _ in sample]
        second = sum(
            best_of(2, lambda a=a, r=r, i=i, way=way: way.second(a, r, i)) for a, (_, r, i) in zip(arrived, sample, strict=True)
        )
        second /= len(sample)
        if way is plain:
            report(
                name, seconds, baseline=f"two {what} per path", baseline_seconds=(first + second) * n_paths + once, note=note
            )
        total = first * n_senders + second * n_paths + once
        report(name, seconds, baseline=f"{what}, the first kept", baseline_seconds=total, note=note)
