"""The runs that variants start from: whatever is shared between prompts is run once, and nothing else changes."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine import bases
from pycotmech.model import sizes
from pycotmech.model.run import forward_packed
from pycotmech.model.sizes import Sizes
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double

T0, FRONT = 14, 9


@pytest.fixture(scope="module")
def case():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2, n_layers=3)
    return pcm.Model(hf), double(hf)


def steps(examples=3, n=4, seed=0):
    """Pairs as those of several steps of several examples: the clean prompts of one example begin one another."""
    generator = torch.Generator().manual_seed(seed)

    def draw(k):
        return torch.randint(61, (k,), generator=generator)

    front, clean, corrupted = draw(FRONT), [], []
    for _ in range(examples):
        longest = torch.cat((front, draw(T0 + 5 * n - FRONT)))
        for s in range(n):
            clean.append(longest[: T0 + 5 * s])
            other = clean[-1].clone()
            first = FRONT + 1 + (3 * s) % (len(other) - FRONT - 1)
            other[first] = (other[first] + 1) % 61
            corrupted.append(other)
    return clean, corrupted


@pytest.mark.parametrize("trunk", [None, "base", "source"])
def test_runs_are_the_models(case, monkeypatch, trunk):
    """Keys, values and sites of every pair against hooked float64 forwards, one prompt at a time."""
    model, hf64 = case
    family = model.family
    clean, corrupted = steps()
    monkeypatch.setattr(bases, "sequences_run", lambda *_: (trunk, []))
    first = [int((a != b).nonzero()[0]) for a, b in zip(clean, corrupted, strict=True)]
    read = [len(t) - 1 - i % 2 for i, t in enumerate(clean)]
    read = [max(r, f) for r, f in zip(read, first, strict=True)]
    kept = [min(f + i % 3, r) for i, (f, r) in enumerate(zip(first, read, strict=True))]
    reads = [sorted({(f + r) // 2, r}) for f, r in zip(first, read, strict=True)]
    past = model.prefixes.key_values(clean[0][:FRONT], 2**30)
    runs = bases.run_pairs(
        family, corrupted, clean, past=past, first=kept, reads=reads, sites=("z", "resid_mid"), source_sites=("z", "k")
    )  # fmt: skip
    b = runs.bases
    for i, (base, source) in enumerate(zip(corrupted, clean, strict=True)):
        expected, other = activations(hf64, base[: read[i] + 1]), activations(hf64, source[: read[i] + 1])
        keys = slice(int(b.key_offset[i]), int(b.key_offset[i]) + read[i] + 1)
        rows = slice(int(b.row_offset[i]), int(b.row_offset[i]) + read[i] + 1 - kept[i])
        for l in range(3):
            assert (b.v[l, keys] - expected["v", l]).abs().max() < 5e-5
            for site in ("z", "resid_mid"):
                assert (b.sites[site][l, rows] - expected[site, l][kept[i] :]).abs().max() < 5e-5, (i, l, site)
            assert (b.source["z"][l, rows] - other["z", l][kept[i] :]).abs().max() < 5e-5
            assert (b.source["k"][l, rows] - other["k", l][kept[i] :]).abs().max() < 5e-5
        at = slice(sum(map(len, reads[:i])), sum(map(len, reads[: i + 1])))
        for final, run in ((runs.base_final, expected), (runs.source_final, other)):
            assert (final[at] - run["resid_post", 2][reads[i]]).abs().max() < 5e-5


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_many_pairs_are_as_one_at_a_time_and_cost_less(case, monkeypatch, direction):
    model, _ = case
    clean, corrupted = steps()
    rows = []
    plain = bases.forward_packed
    monkeypatch.setattr(bases, "forward_packed", lambda f, s, *a, **k: rows.append(sum(map(len, s))) or plain(f, s, *a, **k))
    monkeypatch.setattr(sizes, "CPU", Sizes(segment=128, pass_rows=4, row_block=2048))
    for arguments in (dict(positions=[-1]), dict(), dict(site="pattern", positions=[-1]), dict(site="resid_pre")):
        patch = pcm.patch_residual if arguments.get("site") == "resid_pre" else pcm.patch_heads
        if patch is pcm.patch_residual:
            arguments["by_position"] = False
        rows.clear()
        together = patch(model, clean, corrupted, direction=direction, **arguments)
        first = [int((a != b).nonzero()[0]) for a, b in zip(clean, corrupted, strict=True)]
        longest = 3 * (T0 + 15 - FRONT)  # the clean prompts of an example begin its longest
        branches = sum(len(t) - f for t, f in zip(corrupted, first, strict=True))
        assert rows == [longest, branches], arguments
        for i, (a, b) in enumerate(zip(clean, corrupted, strict=True)):
            alone = patch(model, a, b, direction=direction, **arguments)
            base = alone.corrupted_metric if direction == "denoise" else alone.clean_metric
            assert np.abs(together.raw[i] - alone.raw).max() < 1e-4 * np.abs(alone.raw - base).max() + 1e-6, i


def test_a_single_pair_is_one_pass(case, monkeypatch):
    model, _ = case
    (clean, *_), (corrupted, *_) = steps(1, 1)
    calls = []
    plain = bases.forward_packed
    monkeypatch.setattr(bases, "forward_packed", lambda f, s, *a, **k: calls.append(list(map(len, s))) or plain(f, s, *a, **k))
    pcm.patch_heads(model, clean, corrupted)
    behind = len(clean) - int((clean != corrupted).nonzero()[0])
    assert calls == [[behind, behind]]


def test_distinct_prompts():
    """Every prompt is the beginning of the one chosen for it, from the same position on, and none chosen begins another."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        prompts = [torch.randint(3, (int(n),), generator=generator) for n in torch.randint(1, 6, (9,), generator=generator)]
        starts = torch.randint(0, 2, (9,), generator=generator).tolist()
        chosen, place = bases._distinct(prompts, starts)
        for i, p in enumerate(prompts):
            j = chosen[place[i]]
            assert starts[j] == starts[i] and torch.equal(prompts[j][: len(p)], p)
        for i in chosen:
            others = [prompts[j] for j in chosen if j != i and starts[j] == starts[i]]
            assert not any(len(o) >= len(prompts[i]) and torch.equal(o[: len(prompts[i])], prompts[i]) for o in others)


def test_sequences_that_continue_different_parts_of_a_past(case):
    """forward_packed: each sequence on its own range of keys, and only chosen rows kept."""
    model, hf64 = case
    family = model.family
    a, b = (torch.randint(61, (n,), generator=torch.Generator().manual_seed(n)) for n in (9, 12))
    first = forward_packed(family, [a[:5], b[:7]])
    past = bases.KeyValues(first.k, first.v)
    keep = torch.tensor([1, 2, 3, 6, 8])
    packed = forward_packed(
        family, [a[5:], b[7:]], past, after=[(0, 5), (5, 12)], sites=("z", "resid_post"), keep=keep, read=torch.tensor([3, 8])
    )
    expected = [activations(hf64, t) for t in (a, b)]
    for l in range(3):
        rows = torch.cat((expected[0]["z", l][5:], expected[1]["z", l][7:]))
        assert (packed.sites["z"][l] - rows[keep]).abs().max() < 5e-5
    top = torch.stack([e["resid_post", 2][-1] for e in expected])
    assert (packed.resid_final - top).abs().max() < 5e-5
