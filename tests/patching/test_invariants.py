"""What must come out when everything is patched, and when nothing is (docs/protocol.md, Checks), by public functions only."""

import pytest
import torch

import pycotmech as pcm
from tests.reference.close import assert_allclose, assert_close
from tests.reference.tiny import tiny_llama

L, H, T = 3, 4, 24


@pytest.fixture(scope="module", params=[None, 2], ids=["mha", "gqa"])
def case(request):
    """A model, two prompts that differ in two places and end in one token, and z of both."""
    model = pcm.Model(tiny_llama(n_heads=H, n_key_value_heads=request.param, n_layers=L))
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(3))
    corrupted = clean.clone()
    corrupted[[9, 17]] = (corrupted[[9, 17]] + 5) % 61
    z = {name: model.run(tokens, capture=("z",))["z"] for name, tokens in (("clean", clean), ("corrupted", corrupted))}
    return model, clean, corrupted, z


def all_heads(z, without=()):
    """One variant: z of every head of every layer at every position, but for those left out."""
    heads = [(l, h) for l in range(L) for h in range(H) if (l, h) not in without]
    return pcm.Variant(tuple(pcm.Edit("z", l, h, value=z[l][:, h]) for l, h in heads))


def test_all_heads_of_all_layers_restore_the_clean_run(case):
    """Every attention output is the clean one and so is the last token: R = 1. Without one head it is not."""
    model, clean, corrupted, z = case
    kl_corrupted = pcm.sweep(model, corrupted, [all_heads(z["corrupted"])], metric="kl", clean=clean).base_metric
    assert kl_corrupted > 0.1
    whole = pcm.Variant(tuple(pcm.Edit("z", l, value=z["clean"][l]) for l in range(L)))  # all heads of a layer in one edit
    variants = [all_heads(z["clean"]), whole, all_heads(z["clean"], without=[(0, 1)])]
    found = pcm.sweep(model, corrupted, variants, metric="kl", clean=clean, return_logits=True)
    restored = (kl_corrupted - found.raw) / kl_corrupted
    assert_allclose(restored[:2], 1, atol=1e-6)
    assert_close(found.logits[:2], model.run(clean, positions=-1).logits.expand(2, -1), rtol=1e-4, atol=1e-4)
    assert abs(restored[2] - 1) > 1e-4


def test_ablation_by_the_clean_run_restores_it(case):
    model, clean, corrupted, _ = case
    heads = [(l, h) for l in range(L) for h in range(H)]
    found = pcm.ablate_heads(model, corrupted, heads, kind="resample", resample=clean, metric="kl", clean=clean)
    assert found.base_metric > 0.1 and found.raw[0] < 1e-6 * found.base_metric


def test_a_self_patch_changes_nothing(case):
    """Of every head at once, of every head by itself: the same as no edit up to rounding, which is far below any effect."""
    model, clean, _, z = case
    each = [pcm.Variant((pcm.Edit("z", l, h, value=z["clean"][l][:, h]),)) for l in range(L) for h in range(H)]
    other = pcm.Variant((pcm.Edit("z", 1, 2, value=z["corrupted"][1][:, 2]),))
    variants = [*each, all_heads(z["clean"]), other]
    found = pcm.sweep(model, clean, variants, metric="kl", return_logits=True)
    assert found.raw[:-1].max() < 1e-10 < 1e-4 < found.raw[-1]
    logits = model.run(clean, positions=-1).logits
    assert_close(found.logits[:-1], logits.expand(len(variants) - 1, -1), rtol=1e-4, atol=1e-4)


def test_a_pair_that_does_not_differ_is_refused(case):
    """A self-patch asked of `patch_heads` would have no scale, and no row to be computed."""
    model, clean, _, _ = case
    with pytest.raises(ValueError, match="corrupted"):
        pcm.patch_heads(model, clean, clean)
