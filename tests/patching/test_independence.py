"""A variant's value depends on that variant and its base alone: not on its neighbours, their order, chunks or threads."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

L, T, FIRST, D, WIDTH = 3, 14, 9, 16, 48
HEAD_SITES = ("z", "q", "k", "v", "pattern")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
DIFFERENCE = dict(metric="logit_diff", answer=7, wrong=11)
ROUNDING = 2e-5  # of the largest effect


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=L))


def prompts(seed=0):
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(seed))
    corrupted = clean.clone()
    for p in (FIRST, 11):
        corrupted[p] = (corrupted[p] + 5 + p) % 61
    return clean, corrupted


def variants(site, seed=0):
    """Eight variants at a site, in all layers, at positions that overlap."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for n in range(8):
        l, head = n % L, None if site in RESIDUAL else n % 2
        positions = [5 + n % 3, 9, T - 1] if n % 2 else [T - 1]
        if site == "edge":
            out.append(pcm.Variant((pcm.Edit("edge", l, head, positions, keys=[0, 2 + n]),)))
            continue
        width = WIDTH if head is None else T if site == "pattern" else D
        value = torch.rand(len(positions), width, generator=g)
        if site == "pattern":
            value = value.masked_fill(torch.arange(T) > torch.tensor(positions)[:, None], 0)
        out.append(pcm.Variant((pcm.Edit(site, l, head, positions, value),)))
    return out


def changed(variant, number):
    edit = variant.edits[0]
    if edit.site == "edge":
        return pcm.Variant((pcm.Edit("edge", edit.layer, edit.head, edit.positions, keys=[1, 3, 4, 5]),))
    value = edit.value * number if edit.site == "pattern" else torch.full_like(edit.value, number)
    return pcm.Variant((pcm.Edit(edit.site, edit.layer, edit.head, edit.positions, value),))


@pytest.mark.parametrize("site", [*HEAD_SITES, "edge", *RESIDUAL])
def test_a_variant_changes_no_other(model, site):
    """Also one that is huge: to the last bit, and so for the self-patches that effects are taken against."""
    tokens, all_of_them = prompts()[0], variants(site)
    before = pcm.sweep(model, tokens, all_of_them, return_logits=True, **DIFFERENCE)
    for j in range(8):
        others = [n for n in range(8) if n != j]
        for number in (-3.0, 1e4) if j % 4 == 0 and site != "edge" else (-3.0,):
            mixed = [*all_of_them[:j], changed(all_of_them[j], number), *all_of_them[j + 1 :]]
            after = pcm.sweep(model, tokens, mixed, return_logits=True, **DIFFERENCE)
            assert np.array_equal(after.raw[others], before.raw[others]), j
            assert torch.equal(after.logits[others], before.logits[others])
            assert np.array_equal(after.effect[others], before.effect[others])
            assert after.raw[j] != before.raw[j], j


@pytest.mark.parametrize("site", [*HEAD_SITES, *RESIDUAL])
def test_a_pair_changes_no_other(model, site):
    """Pairs of one call share a prefix and go through the layers together; each has its own values."""
    run = pcm.patch_residual if site in RESIDUAL else pcm.patch_heads
    shared = torch.arange(6) + 3
    pairs = [tuple(torch.cat((shared, t)) for t in prompts(seed)) for seed in range(3)]
    other = tuple(torch.cat((shared, t)) for t in prompts(9))
    arguments = dict(site=site, by_position=False, **DIFFERENCE)
    before = run(model, [c for c, _ in pairs], [d for _, d in pairs], **arguments)
    scale = np.abs(before.raw - before.corrupted_metric.reshape(3, *[1] * (before.raw.ndim - 1))).max()
    for j in range(3):
        mixed = [*pairs[:j], other, *pairs[j + 1 :]]
        after = run(model, [c for c, _ in mixed], [d for _, d in mixed], **arguments)
        others = [n for n in range(3) if n != j]
        assert np.abs(after.raw[others] - before.raw[others]).max() <= ROUNDING * scale
        assert np.abs(after.raw[j] - before.raw[j]).max() > 1e-2 * scale


@pytest.mark.parametrize("site", [*HEAD_SITES, *RESIDUAL])
def test_chunks_order_subsets_and_threads_change_nothing(model, site):
    clean, corrupted = prompts()
    residual = site in RESIDUAL
    run = pcm.patch_residual if residual else pcm.patch_heads
    arguments = dict(site=site, by_position=True, **DIFFERENCE)
    whole = run(model, clean, corrupted, **arguments)
    scale = np.abs(whole.raw - whole.corrupted_metric).max()
    assert whole.plan.chunks == 1 and scale > 1e-2

    def same(result, where=...):
        assert np.nanmax(np.abs(result.raw - whole.raw)[where]) <= ROUNDING * scale

    small = run(model, clean, corrupted, memory_gb=0.9 * whole.plan.bytes_in_flight / 2**30, **arguments)
    assert small.plan.chunks > 1
    same(small)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            same(run(model, clean, corrupted, **arguments))
    finally:
        torch.set_num_threads(threads)
    if not residual:
        columns = whole.raw.shape[-1]
        heads = [(l, h) for l in range(L) for h in range(columns)]
        shuffled = [heads[i] for i in torch.randperm(len(heads), generator=torch.Generator().manual_seed(2)).tolist()]
        same(run(model, clean, corrupted, heads=shuffled, **arguments))
        few = run(model, clean, corrupted, heads=[(2, 1), (0, 0)], **arguments)
        assert (~np.isnan(few.raw)).sum() == 2 * T
        same(few)


@pytest.mark.parametrize("site", [*HEAD_SITES, "edge", *RESIDUAL])
def test_the_order_of_variants_changes_nothing(model, site):
    tokens, forward = prompts()[0], variants(site)
    a = pcm.sweep(model, tokens, forward, **DIFFERENCE)
    b = pcm.sweep(model, tokens, forward[::-1], memory_gb=0.0085, **DIFFERENCE)
    alone = [pcm.sweep(model, tokens, [v], **DIFFERENCE).raw[0] for v in forward]
    scale = np.abs(a.raw - a.base_metric).max()
    assert scale > 1e-2
    assert np.abs(a.raw - b.raw[::-1]).max() <= ROUNDING * scale
    assert np.abs(a.raw - alone).max() <= ROUNDING * scale
