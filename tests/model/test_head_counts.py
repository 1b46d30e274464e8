"""One key-value head for all queries, and as many of them as queries: every family that shares keys and values among heads."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.small_families import CONFIGS, small
from tests.reference.truth import activations, double, edited_logits

QUICK = ("gpt_oss", "llama")
T, FIRST, H = 20, 13, 4
CLEAN = torch.arange(T) * 11 % 61
CORRUPTED = CLEAN.clone()
CORRUPTED[FIRST] += 3


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((family, n), id=f"{family}-{n}", marks=() if family in QUICK else pytest.mark.slow)
        for family in CONFIGS
        for n in (1, H)
    ],
)
def case(request):
    family, n = request.param
    hf = small(family, num_key_value_heads=n)
    return pcm.Model(hf), double(hf), n


def difference(wide, tokens, edits) -> float:
    logits = edited_logits(wide, tokens, list(edits))
    return float(logits[7] - logits[11])


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_patching(case, site):
    model, wide, n = case
    heads = n if site in "kv" else H
    found = pcm.patch_heads(model, CLEAN, CORRUPTED, site=site, metric="logit_diff", answer=7, wrong=11, normalize=False)
    assert found.raw.shape == (3, heads)
    clean, base = activations(wide, CLEAN), difference(wide, CORRUPTED, [])
    truth = np.empty((3, heads))
    for l in range(3):
        for h in range(heads):
            value = clean[site, l][h] if site == "pattern" else clean[site, l][:, h]
            truth[l, h] = difference(wide, CORRUPTED, [(site, l, h, list(range(T)), value)])
    assert np.abs(found.raw - truth).max() <= 2e-4 * max(np.abs(truth - base).max(), 0.05)


def test_attention(case):
    model, wide, _ = case
    found = pcm.attention_summary(model, CLEAN, segments={"a": slice(2, 9)}, top_k=4)
    seen = activations(wide, CLEAN)
    pattern = torch.stack([seen["pattern", l] for l in range(3)]).numpy()
    assert np.abs(found.segment("a") - pattern[..., 2:9].sum(-1)).max() < 1e-4
    assert np.abs(found.received - pattern.sum(2)).max() < 1e-4


def test_knock_out(case):
    model, wide, _ = case
    options = dict(metric="logit_diff", answer=7, wrong=11)
    found = pcm.knock_out_edges(model, CLEAN, from_=[8, 14, 15], to=[-1, -2], each="head", **options)
    truth = [[difference(wide, CLEAN, [("edge", l, h, [18, 19], [8, 14, 15])]) for h in range(H)] for l in range(3)]
    assert np.abs(np.reshape(found.raw, (3, H)) - truth).max() <= 1e-4
