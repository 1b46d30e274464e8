"""Interactions of heads (`head_interactions`) against one hooked Hugging Face forward per set of heads, in float64."""

import itertools

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference import planted, truth
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama

HEADS = [(0, 1), (1, 3), (1, 0), (2, 2)]


def prompts(n=2, length=14, first=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    clean = torch.randint(3, 60, (n, length), generator=g)
    corrupted = clean.clone()
    corrupted[:, first] = (clean[:, first] + 1) % 60
    corrupted[:, first + 3] = (clean[:, first + 3] + 2) % 60
    return list(clean), list(corrupted)


def by_hand(hf, base, source, heads, metric, positions=None):
    """The metric of one forward pass of the base with z of these heads from the source."""
    z = truth.z_of(hf, source)
    where = range(len(base)) if positions is None else positions
    edits = [("z", l, h, list(where), z[l][list(where), h]) for l, h in heads]
    return metric(truth.edited_logits(hf, base, edits)) if edits else metric(truth.logits_of(hf, base)[-1])


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_pairs_are_one_forward_each(direction, dtype):
    hf = tiny_llama(n_layers=3, n_key_value_heads=2)
    wide = truth.double(hf)
    model = pcm.Model(wide if dtype == torch.float64 else hf, check=False)
    clean, corrupted = prompts()
    answer, wrong = 5, 9
    found = pcm.head_interactions(model, clean, corrupted, HEADS, direction=direction, answer=answer, wrong=wrong)

    def metric(logits):
        return float(logits[answer] - logits[wrong])

    bases, sources = (clean, corrupted) if direction == "noise" else (corrupted, clean)
    single, joint = np.zeros((2, 4)), np.full((2, 4, 4), np.nan)
    for i, (base, source) in enumerate(zip(bases, sources, strict=True)):
        start = by_hand(wide, base, source, [], metric)
        for a, head in enumerate(HEADS):
            single[i, a] = by_hand(wide, base, source, [head], metric) - start
        for a, b in itertools.combinations(range(4), 2):
            joint[i, a, b] = joint[i, b, a] = by_hand(wide, base, source, [HEADS[a], HEADS[b]], metric) - start
    off = 1e-6 if dtype == torch.float64 else 1e-4
    largest = np.nanmax(np.abs(joint))
    assert_allclose(found.single, single, atol=off * largest)
    assert_allclose(found.joint, joint, atol=off * largest)
    assert_allclose(found.interactions, joint - single[:, :, None] - single[:, None], atol=off * largest)
    ends = [np.mean([by_hand(wide, p, p, [], metric) for p in side]) for side in (clean, corrupted)]
    assert found.clean_metric.mean() == pytest.approx(ends[0], rel=1e-4)
    span = (ends[0] - ends[1]) * (-1 if direction == "noise" else 1)
    assert_allclose(found.effect, single.mean(0) / span, atol=1e-3)
    assert_allclose(found.given[0, 1], (joint[:, 0, 1] - single[:, 1]).mean() / span, atol=1e-3)
    assert np.nanmax(np.abs(found.interaction)) > 10 * found.noise_floor
    error = found.interactions - (joint - single[:, :, None] - single[:, None])
    assert np.nanmax(np.abs(error)).max() <= (1e-12 if dtype == torch.float64 else 1e-4) * largest


def test_sets_positions_and_the_pairs_that_are_asked_for():
    hf = tiny_llama(n_layers=3)
    wide = truth.double(hf)
    model = pcm.Model(wide, check=False)
    (clean, *_), (corrupted, *_) = prompts()
    layer = [(1, h) for h in range(4)]
    units, positions = [(2, 2), layer, (0, 3)], [6, 9, 10, -1]
    found = pcm.head_interactions(
        model, clean, corrupted, units, pairs=[(0, 1)], positions=positions, metric="kl", normalize=False
    )
    where = [6, 9, 10, 13]
    reference = truth.logits_of(wide, clean)[-1]

    def kl(logits):
        return truth.kl(reference, logits)

    for got, heads in ((found.single[0, 1], layer), (found.joint[0, 0, 1], [(2, 2), *layer])):
        expected = by_hand(wide, clean, corrupted, heads, kl, where)
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert np.isnan(found.joint[0, 0, 2]) and np.isnan(found.interaction[1, 2])
    assert found.names == ["L2H2", "layer 1 (4 heads)", "L0H3"] and len(found.to_dataframe()) == 1
    assert found.top()[0][:2] == ("L2H2", "layer 1 (4 heads)") and "L2H2 and layer 1" in str(found)
    assert found.plot() is not None


def test_a_head_that_acts_through_another_interacts_with_it():
    """Planted induction: without the previous-token head the writer writes nothing, so both together do what either does."""
    made = planted.induction()
    shown = made.prompts(3)
    clean, corrupted = [p.tokens for p in shown], [p.corrupted for p in shown]
    other = made.noise_heads[0]
    found = pcm.head_interactions(
        made.model, clean, corrupted, [made.heads["previous"], made.heads["writer"], other],
        answer=[p.answer for p in shown], wrong=[p.wrong for p in shown],
    )  # fmt: skip
    assert_allclose(found.effect, [1, 1, 0], atol=0.03)
    assert found.interaction[0, 1] == pytest.approx(-1, abs=0.05) and abs(found.interaction[0, 2]) < 0.03
    assert found.given[0, 1] == pytest.approx(0, abs=0.03) and found.given[0, 2] == pytest.approx(1, abs=0.05)
    twice = planted.parallel()
    shown = twice.prompts(3)
    writers = [twice.heads["question"], twice.heads["generated"]]
    apart = pcm.head_interactions(
        twice.model, [p.tokens for p in shown], [p.corrupted for p in shown], writers,
        answer=[p.answer for p in shown], wrong=[p.wrong for p in shown],
    )  # fmt: skip
    assert_allclose(apart.effect, [0.5, 0.5], atol=0.03)
    assert abs(apart.interaction[0, 1]) < 0.03  # two writers of one word add up


def test_wrong_arguments_are_named():
    model = pcm.Model(tiny_llama(), check=False)
    (clean, *_), (corrupted, *_) = prompts()
    ids = dict(answer=5, wrong=9)
    for heads, more, match in (
        ([(0, 1)], {}, "heads: got 1"),
        ([(0, 1), (9, 0)], {}, r"heads\[1\]: \(9, 0\) is out of range"),
        ([(0, 1), [(0, 1), (1, 0)]], {}, "share L0H1"),
        (None, {}, "heads: got None; expected"),
        ([1, 2], {}, r"heads\[0\]: got 1; expected"),
        (HEADS[:2], dict(pairs=[(0, 2)]), "pairs: got"),
        (HEADS[:2], dict(pairs=[3]), r"pairs: got \[3\]; expected pairs of numbers in 0..1"),
        (HEADS[:2], dict(pairs=[(0, 0.5)]), "pairs: got"),
        (HEADS[:2], dict(direction="up"), "direction: got"),
        (HEADS[:2], dict(positions=[0]), "positions: "),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            pcm.head_interactions(model, clean, corrupted, heads, **(ids | more))
