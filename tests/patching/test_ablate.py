"""Ablations against one hooked float64 forward each."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, kl, logits_of

L, H, D, T = 3, 4, 16, 12
HEADS = [(0, 1), (1, 3), (0, 2), (2, 0)]


@pytest.fixture(scope="module")
def case():
    hf = tiny_llama(n_heads=H, n_key_value_heads=2, n_layers=L)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(61, (T,), generator=generator) for _ in range(4)]
    return pcm.Model(hf), double(hf), prompts


def truth(hf64, tokens, values, positions=None):
    """KL from the untouched run: values maps (layer, head) to what z is replaced by."""
    edits = [("z", l, h, positions, value) for (l, h), value in values.items()]
    return kl(logits_of(hf64, tokens, keep=1)[0], edited_logits(hf64, tokens, edits))


def z_of(hf64, tokens):
    found = activations(hf64, tokens)
    return torch.stack([found["z", l] for l in range(L)])  # [L, T, H, D]


def test_zero(case):
    model, hf64, (tokens, *_) = case
    at_once = pcm.ablate_heads(model, tokens, HEADS)
    expected = truth(hf64, tokens, dict.fromkeys(HEADS, 0.0))
    assert len(at_once) == 1 and at_once.effect[0] == pytest.approx(expected, rel=1e-4)
    assert at_once.replaced_by == "zero" and at_once.n_averaged is None and "4 heads at once replaced by zero" in str(at_once)
    each = pcm.ablate_heads(model, tokens, HEADS, each=True, positions=[3, -1])
    expected = [truth(hf64, tokens, {head: 0.0}, [3, T - 1]) for head in HEADS]
    assert np.abs(each.effect - expected).max() < 1e-4 * max(expected)
    frame = each.to_dataframe()
    assert list(zip(frame["layer"], frame["head"], strict=True)) == HEADS and frame["name"][1] == "L1H3"


def test_mean(case):
    model, hf64, (tokens, *others) = case
    z = torch.stack([z_of(hf64, t) for t in others])  # [M, L, T, H, D]
    over_all, by_position = z.mean((0, 2)), z.mean(0)
    roles = torch.tensor([0] * 4 + [1] * 6 + [5] * 2)
    by_role = torch.cat(
        [z[:, :, roles == r].mean((0, 2))[:, None].expand(-1, int((roles == r).sum()), -1, -1) for r in (0, 1, 5)], 1
    )
    cases = [
        (dict(mean=others), over_all, "the mean of z over 3 prompts and all their positions", 3),
        (dict(mean=torch.stack(others)), over_all, "all their positions", 3),
        (dict(mean=others, roles=roles), by_role, "the positions of the same of 3 roles", 3),
        (dict(mean=others, roles=range(T)), by_position, "the positions of the same of 12 roles", 3),
        (dict(mean=over_all.float()), over_all, "a mean given as a tensor [3, 4, 16]", None),
        (dict(mean=by_position.float()), by_position, "a mean given as a tensor [3, 12, 4, 16]", None),
    ]
    effects = []
    for arguments, means, words, n in cases:
        result = pcm.ablate_heads(model, tokens, HEADS, kind="mean", **arguments)
        expected = truth(hf64, tokens, {(l, h): means[l, ..., h, :] for l, h in HEADS})
        assert result.effect[0] == pytest.approx(expected, rel=1e-4)
        assert words in result.replaced_by and result.n_averaged == n
        effects.append(round(float(result.effect[0]), 4))
    assert len(set(effects)) == 3  # over all, by role, by position: three different means
    lengths = pcm.ablate_heads(model, tokens, HEADS, kind="mean", mean=[others[0], others[1][:5]])
    both = torch.cat((z_of(hf64, others[0]), z_of(hf64, others[1][:5])), 1).mean(1)
    assert lengths.effect[0] == pytest.approx(truth(hf64, tokens, {(l, h): both[l, h] for l, h in HEADS}), rel=1e-4)


def test_resample(case):
    model, hf64, (tokens, *others) = case
    one = pcm.ablate_heads(model, tokens, HEADS, kind="resample", resample=others[1], each=True)
    z = z_of(hf64, others[1])
    expected = [truth(hf64, tokens, {(l, h): z[l, :, h]}) for l, h in HEADS]
    assert np.abs(one.effect - expected).max() < 1e-4 * max(expected)
    assert one.replaced_by == "z of resample[0] of 1 prompt, seed 0"
    drawn = {
        pcm.ablate_heads(model, tokens, HEADS, kind="resample", resample=others, seed=s).replaced_by[:15] for s in range(8)
    }
    assert len(drawn) > 1
    near = tokens.clone()
    near[7] = (near[7] + 1) % 61  # the runs are the same in front of position 7: nothing there is recomputed
    shared = pcm.ablate_heads(model, tokens, HEADS, kind="resample", resample=near)
    z = z_of(hf64, near)
    assert shared.effect[0] == pytest.approx(truth(hf64, tokens, {(l, h): z[l, :, h] for l, h in HEADS}), rel=1e-4)
    assert shared.plan.hooked_token_forwards == (1 + 12) * T and shared.plan.rows == (1 + 12) * 5


def test_a_mean_over_the_prompt_itself_by_position_changes_nothing(case):
    model, _, (tokens, *_) = case
    result = pcm.ablate_heads(model, tokens, HEADS, kind="mean", mean=[tokens], roles=range(T))
    assert abs(result.effect[0]) < 1e-6


def test_wrong_arguments(case, monkeypatch):
    model, _, (tokens, other, *_) = case
    monkeypatch.setattr(model.family, "embed", lambda tokens: pytest.fail("ran before the arguments were checked"))
    bad = [
        (dict(kind="noise"), "kind: got 'noise'"),
        (dict(kind="mean"), "mean: kind 'mean' needs mean="),
        (dict(kind="resample"), "resample: kind 'resample' needs resample="),
        (dict(mean=[other]), "mean: kind 'zero' takes no mean="),
        (dict(heads=[(0, 4)]), r"heads: \(0, 4\) is out of range; expected layers 0..2, heads 0..3"),
        (dict(heads=[]), "heads: the list is empty"),
        (dict(heads=[(0, 1, 2)]), r"heads: got \[\(0, 1, 2\)\]; expected \(layer, head\) pairs of integers"),
        (dict(heads=[(0, 1.7)]), r"heads: got \[\(0, 1.7\)\]; expected \(layer, head\) pairs"),
        (dict(heads=[{(0, 1), (1, 1)}]), "heads: got .*; expected .layer, head. pairs"),
        (dict(positions=[12]), "positions: 12 is outside"),
        (dict(kind="mean", mean=torch.zeros(L, D)), r"expected \[3, 4, 16\] or \[3, 12, 4, 16\]"),
        (dict(kind="mean", mean=other), "mean: got one prompt"),
        (dict(kind="mean", mean=[]), "mean: got an empty list"),
        (dict(kind="mean", mean=[other], roles=[0, 1]), r"roles: got shape \[2\]"),
        (dict(kind="mean", mean=[other[:3]], roles=range(T)), r"mean\[0\] has 3 tokens, but roles are given for 12"),
        (dict(kind="mean", mean=torch.zeros(L, H, D), roles=range(T)), "roles: only a mean that is taken over prompts"),
        (dict(roles=range(T)), "roles: only a mean"),
        (dict(kind="resample", resample=other[:5]), r"resample\[0\] has 5 tokens, tokens has 12"),
        (dict(kind="resample", resample=tokens), "the same prompt as tokens"),
        (dict(kind="resample", resample=[]), "resample: got nothing"),
        (dict(metric="prob"), "answer: metric 'prob' needs it"),
        (dict(heads=[(2, 0)], positions=[3]), "its edit does not reach what is read"),
        (dict(kind="mean", mean=[other], heads=[(2, 0)], positions=[3]), "its edit does not reach what is read"),
        (dict(kind="mean", mean=[other], read=12), "read: 12 is outside"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            pcm.ablate_heads(model, tokens, **{"heads": HEADS, **arguments})


def test_several_sets_in_one_sweep(case):
    model, hf64, (tokens, other, *_) = case
    sets = [HEADS[:2], HEADS, [(2, 0)]]
    z = z_of(hf64, other)
    for arguments, value in ((dict(), lambda l, h: 0.0), (dict(kind="resample", resample=other), lambda l, h: z[l, :, h])):
        result = pcm.ablate_heads(model, tokens, sets, **arguments)
        expected = [truth(hf64, tokens, {head: value(*head) for head in heads}) for heads in sets]
        assert len(result) == 3 and np.abs(result.effect - expected).max() < 1e-4 * max(expected)
    assert result.sets == tuple(map(tuple, sets)) and result.heads == tuple(HEADS) and result.plan.chunks == 1
    assert result.names == ("2 heads", "4 heads", "1 head") and str(result).startswith("3 sets of heads replaced by")
    bad = [
        (dict(heads=[[(0, 1)], []]), r"heads\[1\]: the list is empty"),
        (dict(heads=[[(0, 1)], [(3, 0)]]), r"heads\[1\]: \(3, 0\) is out of range"),
        (dict(heads=[[(0, 1)]], each=True), "each: got True for a list of sets"),
    ]
    for arguments, message in bad:
        with pytest.raises(ValueError, match=message):
            pcm.ablate_heads(model, tokens, **arguments)
