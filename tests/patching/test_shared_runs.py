"""Pairs that begin one another are read off one run: the same numbers for the work of the longest."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.patching.pairs import aligned, targets_of
from pycotmech.patching.shared_runs import SharedRun, shared_runs
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, kl, logits_of, sweep_truth

T, FIRST = 26, 9
READS = (13, 25, 17, 25, 21)
"""Where the pairs are read; those at 17 and 21 have a corruption of their own, the others one in common."""


def pairs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    long = torch.randint(61, (T,), generator=generator)
    other, third = long.clone(), long.clone()
    other[FIRST], other[12] = (long[FIRST] + 1) % 61, (long[12] + 5) % 61
    third[11] = (long[11] + 1) % 61
    clean, corrupted = [], []
    for read in READS:
        clean.append(long[: read + 1])
        corrupted.append((third if read in (17, 21) else other)[: read + 1])
    return clean, corrupted


@pytest.fixture(scope="module")
def case():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3)
    return pcm.Model(hf), double(hf)


def test_which_pairs_are_read_off_which_run():
    clean, corrupted = pairs()
    made = [aligned(a, b) for a, b in zip(clean, corrupted, strict=True)]
    whole = [targets_of(p, None) for p in made]
    assert shared_runs(made, whole) == [SharedRun(1, (0, 3, 1)), SharedRun(4, (2, 4))]
    some = [*whole[:3], whole[3][1:], whole[4]]  # one that is not patched everywhere has variants of its own
    assert shared_runs(made, some) == [SharedRun(1, (0, 1)), SharedRun(3, (3,)), SharedRun(4, (2, 4))]
    early = aligned(clean[0], torch.cat((corrupted[0][:-1], corrupted[0][-1:] + 1)))  # differs once more at its end
    assert shared_runs([made[1], early], [whole[1], targets_of(early, None)]) == [SharedRun(0, (0,)), SharedRun(1, (1,))]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("positions", [None, [-1]])
def test_values_are_those_of_one_hooked_forward_each(case, direction, positions):
    """Every head of every layer, the last one among them, at every place read; float64."""
    model, hf64 = case
    clean, corrupted = pairs()
    found = pcm.patch_heads_each(
        model, clean, corrupted, direction=direction, positions=positions, return_logits=True, normalize=False
    )
    together = pcm.patch_heads(model, clean, corrupted, direction=direction, positions=positions, normalize=False)
    for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
        base, source = (b, a) if direction == "denoise" else (a, b)
        target = logits_of(hf64, a, keep=1)[0]
        truth = sweep_truth(hf64, base, source, lambda out, target=target: kl(target, out), positions=positions)
        scale = float((truth - kl(target, logits_of(hf64, base, keep=1)[0])).abs().max())
        assert scale > 1e-4
        assert np.abs(found[i].raw - truth.numpy()).max() < 1e-3 * scale, i
        np.testing.assert_array_equal(together.raw[i], found[i].raw)
        assert found[i].corrupted_metric[0] == pytest.approx(kl(target, logits_of(hf64, b, keep=1)[0]), rel=1e-4)
        assert found[i].clean_metric[0] == 0
        again = torch.stack([torch.tensor([kl(target, row) for row in layer.double()]) for layer in found[i].logits])
        assert np.abs(again.numpy() - truth.numpy()).max() < 1e-3 * scale
    if positions is None:
        assert found[0].plan.variants == together.plan.variants == 2 * (3 * 4 + 12)
        assert found[0].plan.hooked_token_forwards == 24 * sum(r + 1 for r in READS)


def test_each_has_the_scale_and_the_floor_of_its_own_pair(case):
    model, _ = case
    clean, corrupted = pairs(1)
    words = dict(metric="logit_diff", answer=5, wrong=7)
    for arguments in (dict(), dict(site="k"), dict(by_position=True, site="z"), dict(groups={"g": [12, 13]})):
        if "by_position" in arguments or "groups" in arguments:
            clean, corrupted = [c[:14] for c in clean], [c[:14] for c in corrupted]
        found = pcm.patch_heads_each(model, clean, corrupted, **words, **arguments)
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
            alone = pcm.patch_heads(model, a, b, **words, **arguments)
            scale = np.nanmax(np.abs(alone.effect))
            assert found[i].axes == alone.axes and found[i].clean_metric.shape == (1,)
            assert_allclose(found[i].values, alone.values, atol=2e-4 * scale + 1e-6)
            assert_allclose(found[i].effect, alone.effect, atol=2e-4 * scale + 1e-6)
            assert 0 < found[i].noise_floor < 1e-3 * scale + 1e-5


def test_one_sweep_does_the_work_of_the_longest(case):
    model, _ = case
    clean, corrupted = pairs()
    plan = pcm.plan_heads(model, clean, corrupted)
    longest = [pcm.plan_heads(model, clean[i], corrupted[i]) for i in (1, 4)]
    # In the last layer a variant's rows begin where the first of them is read.
    more = (4 + 1) * (READS[1] - READS[0]) + (4 + 1) * (READS[4] - READS[2])
    assert plan.rows <= sum(p.rows for p in longest) + more
    alone = [pcm.plan_heads(model, a, b) for a, b in zip(clean, corrupted, strict=True)]
    assert plan.token_forwards < 0.6 * sum(p.token_forwards for p in alone)
    assert plan.examples == 5 and plan.variants == sum(p.variants for p in longest)
    assert plan.hooked_token_forwards == sum(p.hooked_token_forwards for p in alone)


def test_pieces_and_chunks_change_nothing(case):
    """Cut into pieces of few variants by a small budget: the same numbers for each pair."""
    model, _ = case
    clean, corrupted = pairs(2)
    whole = pcm.patch_heads_each(model, clean, corrupted)
    small = None
    for megabytes in (4, 3, 2, 1.5, 1.2):
        try:
            small = pcm.patch_heads_each(model, clean, corrupted, memory_gb=megabytes / 1024)
        except ValueError:
            break
    assert small is not None and small[0].plan.chunks > whole[0].plan.chunks
    for a, b in zip(whole, small, strict=True):
        assert_allclose(a.values, b.values, atol=1e-4)


def test_wrong_arguments(case):
    model, _ = case
    clean, corrupted = pairs()
    with pytest.raises(ValueError, match="screen: got 3"):
        pcm.patch_heads_each(model, clean, corrupted, screen=3)
    with pytest.raises(ValueError, match="got one pair; expected two lists"):
        pcm.patch_heads_each(model, clean[0], corrupted[0])
    with pytest.raises(TypeError, match="unexpected keyword"):
        pcm.patch_heads_each(model, clean, corrupted, sites="z")
