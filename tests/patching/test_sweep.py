"""Variants with any edits against one hooked float64 forward each."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.patching import staircase
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, kl, logits_of, ungrouped

SHAPES = {"mha": dict(n_heads=4), "gqa": dict(n_heads=4, n_key_value_heads=2)}
L, H, D, T, WIDTH = 3, 4, 16, 12, 48


def measure(logits):
    return float(logits[..., 7] - logits[..., 11])


@pytest.fixture(scope="module", params=SHAPES)
def case(request):
    hf = tiny_llama(**SHAPES[request.param], n_layers=L)
    tokens = torch.randint(61, (T,), generator=torch.Generator().manual_seed(5))
    model = pcm.Model(hf)
    return model, double(hf), tokens


def random_edit(generator, cfg, read, site):
    """An edit at random that reaches what is read, and the same for the reference."""

    def draw(n):
        return int(torch.randint(n, (1,), generator=generator))

    l, positions = draw(L), sorted({draw(T) for _ in range(3)} | {read})
    head = None if site.startswith("resid") or site.endswith("out") else draw(cfg.n_key_value_heads if site in "kv" else H)
    if site == "edge":
        head, keys = head if draw(2) else None, sorted({0, 2, 3, 2 + draw(4)})
        positions = [p for p in positions if p != 0]  # position 1 still sees itself
        return pcm.Edit("edge", l, head, positions, keys=keys), (site, l, head, positions, keys)
    if site == "pattern":
        value = torch.rand(len(positions), T, generator=generator)
        value = value.masked_fill(torch.arange(T) > torch.tensor(positions)[:, None], 0)
    else:
        value = torch.randn(len(positions), WIDTH if head is None else D, generator=generator)
    return pcm.Edit(site, l, head, positions, value), (site, l, head, positions, value)


SITES = ("z", "q", "k", "v", "pattern", "edge", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@pytest.mark.parametrize("read", [11, 9])
def test_variants_with_one_edit_and_with_many(case, read):
    """Each site alone, and four edits of different sites, layers and heads in one variant."""
    model, hf64, tokens = case
    generator = torch.Generator().manual_seed(read)
    chosen = [[site] for site in SITES for _ in range(3)]
    chosen += [[SITES[i] for i in torch.randperm(len(SITES), generator=generator)[:4]] for _ in range(12)]
    drawn = [[random_edit(generator, model.cfg, read, site) for site in sites] for sites in chosen]
    expected = torch.stack([edited_logits(hf64, tokens, [truth for _, truth in edits], read) for edits in drawn])
    base = measure(edited_logits(hf64, tokens, [], read))
    variants = [pcm.Variant(tuple(e for e, _ in edits), name=" ".join(sites)) for edits, sites in zip(drawn, chosen, strict=True)]
    result = pcm.sweep(model, tokens, variants, metric="logit_diff", answer=7, wrong=11, read=read, return_logits=True)
    effects = np.array([measure(x) - base for x in expected])
    error, largest = np.abs(result.effect - effects), np.abs(effects).max()
    assert largest > 1 and error.max() < 1e-4 * largest, [(variants[i].name, error[i]) for i in np.argsort(-error)[:3]]
    assert (result.logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert abs(result.base_metric - base) < 1e-4 and 0 < result.noise_floor < 1e-3
    assert result.names == tuple(v.name for v in variants) and len(result) == len(variants)
