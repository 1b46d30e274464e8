"""The engine on three layers at the widths of Llama-2 7B, at every site, against hooked Hugging Face forwards on the device.

In float32: within 2e-4 of the largest effect. In bfloat16, with the same weights: a root-mean-square error against float32
of at most that of hooked forwards in bfloat16.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

import pycotmech as pcm
from benchmarks import llama7b
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.found import Found
from tests.reference.truth import activations, edited_logits

HEAD_SITES = ("z", "q", "k", "v", "pattern")
RESIDUAL_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
ROUNDING = 1.1
"""How many times the error of hooks in bfloat16 a sweep may have: two estimates over a few dozen entries."""
SMALL = dict(hidden_size=128, intermediate_size=160, num_attention_heads=8)


def run(bench: Bench, found: Found) -> None:
    T, step = (64, 4) if bench.small else (256, 8)
    config = llama7b.shape(3, vocab_size=2000, **(SMALL if bench.small else {}))
    hf = llama7b.random_llama(config, torch.float32, bench.device, o_proj=3.0)
    for weight in hf.parameters():  # what bfloat16 holds, so that both dtypes have the same weights
        weight.copy_(weight.bfloat16())
    clean, corrupted, _ = llama7b.prompts("suffix", T, config.vocab_size)
    heads = [(l, (h + l) % config.num_attention_heads) for l in range(3) for h in range(0, config.num_attention_heads, step)]
    truth: dict[str, Tensor] = {}  # site -> logits [n, V] of hooked float32 forwards
    with found.part("float32"):
        source = activations(hf, clean)
        unpatched = edited_logits(hf, corrupted, []).double().cpu()
        model = pcm.Model(hf, check=False)
        for site in (*HEAD_SITES, *RESIDUAL_SITES):
            if bench.left() < 10:
                found.not_run(f"float32, {site}")
                continue
            with found.part(f"float32, {site}"):
                places = heads if site in HEAD_SITES else [(l, None) for l in range(3)]
                truth[site] = _hooked(hf, corrupted, source, site, places)
                theirs = llama7b.read(truth[site]) - llama7b.read(unpatched)
                swept = _sweep(model, clean, corrupted, site)
                ours = torch.tensor([float(swept.raw[place]) for place in _indices(places)]).double() - llama7b.read(unpatched)
                largest = float(theirs.abs().max())
                what = f"float32, {site}: error of {len(places)} entries, as a share of the largest effect {largest:.3g}"
                found.check(what, float((ours - theirs).abs().max()) / largest, llama7b.EXACT)
        del model, source
    with found.part("bfloat16"):
        half = copy.deepcopy(hf).bfloat16()
        del hf
        source = activations(half, clean)
        unpatched_half = edited_logits(half, corrupted, []).double().cpu()
        model = pcm.Model(half, check=False)
        for site in [s for s in HEAD_SITES if s in truth]:
            with found.part(f"bfloat16, {site}"):
                effect = truth[site] - unpatched
                theirs = llama7b.rms(_hooked(half, corrupted, source, site, heads) - unpatched_half - effect)
                runs, ours = _logits(model, clean, corrupted, site, heads)
                what = (
                    f"bfloat16, {site}: root-mean-square error of effects on all logits, over {theirs:.3g} of hooked bfloat16"
                )
                found.check(what, llama7b.rms(ours - runs[1] - effect) / theirs, ROUNDING)


def _indices(places: list) -> list:
    return [l if h is None else (l, h) for l, h in places]


def _hooked(hf, base: Tensor, source: dict, site: str, places: list) -> Tensor:
    """Logits [n, V] in float64 of one hooked forward for each place, on the CPU."""
    found = []
    for l, h in places:
        value = source[site, l]
        value = value if h is None else value[h] if site == "pattern" else value[:, h]
        found.append(edited_logits(hf, base, [(site, l, h, None, value)]).double().cpu())
    return torch.stack(found)


def _sweep(model: pcm.Model, clean: Tensor, corrupted: Tensor, site: str, **more) -> pcm.Sweep:
    given = {**{k: v for k, v in llama7b.arguments(None).items() if k != "positions"}, **more}
    if site in HEAD_SITES:
        return pcm.patch_heads(model, clean, corrupted, site=site, **given)
    return pcm.patch_residual(model, clean, corrupted, site=site, by_position=False, **given)


def _logits(model: pcm.Model, clean: Tensor, corrupted: Tensor, site: str, heads: list) -> tuple[Tensor, Tensor]:
    """Logits of a sweep, float64 on the CPU: of the clean and the corrupted run [2, V], and of these heads' variants [n, V]."""
    seen: list[Tensor] = []

    def metric(logits: Tensor) -> Tensor:
        seen.append(logits.double().cpu())
        return llama7b.read(logits)

    given = dict(site=site, heads=heads, metric=metric, normalize=False, return_logits=True)
    swept = pcm.patch_heads(model, clean, corrupted, **given)
    assert swept.logits is not None and len(seen[0]) == 2, "the metric is read of the two runs first"
    return seen[0], torch.stack([swept.logits[place].double().cpu() for place in heads])
