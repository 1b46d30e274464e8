"""Any legal variants and pairs, however they are cut, packed and dealt: the numbers of one hooked float64 forward at a time."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, edited_logits, logits_of, sweep_truth

L, H, D, WIDTH, V = 3, 4, 16, 48, 61
ANSWER, WRONG = 7, 11
OF_HEADS, OF_QUERIES = ("z", "q", "k", "v"), ("pattern", "edge")
RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
SITES = (*OF_HEADS, *OF_QUERIES, *RESIDUAL)
CLOSE = 1e-9
"""Of the largest number of a case. float64 has 16 digits, and a few layers lose some of them."""

QUICK = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SLOW = dict(deadline=None, max_examples=500, suppress_health_check=list(HealthCheck))


@functools.cache
def models(kv_heads: int) -> tuple[pcm.Model, torch.nn.Module]:
    hf = double(tiny_llama(n_layers=L, n_heads=H, n_key_value_heads=kv_heads, dtype=torch.float64, seed=kv_heads))
    return pcm.Model(tiny_llama(n_layers=L, n_heads=H, n_key_value_heads=kv_heads, dtype=torch.float64, seed=kv_heads)), hf


def measure(logits) -> float:
    return float(logits[..., ANSWER] - logits[..., WRONG])


@st.composite
def edits(draw, site: str, length: int, read: int, kv_heads: int):
    """An edit that reaches what is read, and the same for the reference."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layer = draw(st.integers(0, L - 1))
    positions = sorted(draw(st.sets(st.integers(0, length - 1), max_size=4)) | {read})
    head = None
    if site not in RESIDUAL:
        head = draw(st.integers(0, (kv_heads if site in "kv" else H) - 1))
    if site == "edge":
        positions = [p for p in positions if p > 0]
        head = draw(st.sampled_from([None, head]))
        keys = sorted(draw(st.sets(st.integers(0, read - 1), min_size=1, max_size=4)))
        return pcm.Edit(site, layer, head, positions, keys=keys), (site, layer, head, positions, keys)
    if site == "pattern":
        value = torch.rand(len(positions), length, generator=g, dtype=torch.float64)
        value = value.masked_fill(torch.arange(length) > torch.tensor(positions)[:, None], 0)
    else:
        value = torch.randn(len(positions), WIDTH if head is None else D, generator=g, dtype=torch.float64)
    return pcm.Edit(site, layer, head, positions, value), (site, layer, head, positions, value)


@st.composite
def questions(draw):
    """A model, a prompt, a position that is read, variants of one to four edits of different sites, and a way to do them."""
    kv_heads, length = draw(st.sampled_from([1, 2, 4])), draw(st.integers(3, 20))
    read = draw(st.one_of(st.just(length - 1), st.integers(2, length - 1)))
    variants = []
    for _ in range(draw(st.integers(1, 6))):
        sites = draw(st.lists(st.sampled_from(SITES), min_size=1, max_size=4, unique=True))
        variants.append([draw(edits(site, length, read, kv_heads)) for site in sites])
    tokens = torch.tensor(draw(st.lists(st.integers(0, V - 1), min_size=length, max_size=length)))
    order = draw(st.permutations(range(len(variants))))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(variants) - 1)), max_size=3)))
    return kv_heads, tokens, read, variants, order, cuts, draw(st.sampled_from([0.0003, 0.001, 0.004]))


def parts(order, cuts):
    """The order in shards."""
    bounds = [0, *(c for c in cuts if c < len(order)), len(order)]
    return [order[a:b] for a, b in itertools.pairwise(bounds)]


def check_variants(question) -> None:
    kv_heads, tokens, read, drawn, order, cuts, memory_gb = question
    model, hf = models(kv_heads)
    truth = np.array([measure(edited_logits(hf, tokens, [r for _, r in edits], read)) for edits in drawn])
    base = measure(logits_of(hf, tokens)[read])
    variants = [pcm.Variant(tuple(e for e, _ in edits)) for edits in drawn]
    swept = functools.partial(pcm.sweep, model, tokens, metric="logit_diff", answer=ANSWER, wrong=WRONG, read=read)
    close = CLOSE * max(1.0, np.abs(truth).max(), abs(base))
    for found in (swept(variants), swept(variants, memory_gb=within(swept, variants, memory_gb))):
        assert np.abs(found.raw - truth).max() < close and abs(found.base_metric - base) < close
    for part in parts(order, cuts):
        assert np.abs(swept([variants[i] for i in part]).raw - truth[list(part)]).max() < close


def within(swept, variants, memory_gb: float) -> float:
    """The budget, or one that suffices: what is too little is refused."""
    while True:
        try:
            swept(variants, memory_gb=memory_gb)
            return memory_gb
        except ValueError as error:
            assert "memory_gb" in str(error)
            memory_gb *= 2


@settings(max_examples=25, **QUICK)
@given(questions())
def test_any_variants(question):
    check_variants(question)


def test_queries_that_see_no_key():
    """Position 1 of 0, 1, 2, whose z is then 0, and which later layers read."""
    site, layer, positions, keys = "edge", 0, [1, 2], [0, 1]
    for head in (None, 2):
        edge = pcm.Edit(site, layer, head, positions, keys=keys), (site, layer, head, positions, keys)
        check_variants((1, torch.tensor([3, 0, 5]), 2, [[edge]], [0], [], 0.004))


@pytest.mark.slow
@settings(**SLOW)
@given(questions())
def test_any_variants_500(question):
    check_variants(question)


@st.composite
def pairs(draw):
    """One to four pairs, some of which begin alike, and how they are patched."""
    length = draw(st.integers(3, 14))
    trunk = draw(st.lists(st.integers(0, V - 1), min_size=length, max_size=length))
    out = []
    for _ in range(draw(st.integers(1, 4))):
        clean = list(trunk[: draw(st.integers(2, length))])
        if draw(st.booleans()):
            clean[-1] = draw(st.integers(0, V - 1))
        corrupted = list(clean)
        for p in draw(st.sets(st.integers(0, len(clean) - 1), min_size=1, max_size=2)):
            corrupted[p] = (corrupted[p] + draw(st.integers(1, V - 1))) % V
        out.append((torch.tensor(clean), torch.tensor(corrupted)))
    how = dict(direction=draw(st.sampled_from(["denoise", "noise"])), positions=draw(st.sampled_from([None, [-1]])))
    return draw(st.sampled_from([1, 2, 4])), out, how, draw(st.booleans()), draw(st.sampled_from([0.0003, 0.001, 0.004]))


def check_pairs(question) -> None:
    kv_heads, drawn, how, each, memory_gb = question
    model, hf = models(kv_heads)
    truth = []
    for clean, corrupted in drawn:
        base, source = (corrupted, clean) if how["direction"] == "denoise" else (clean, corrupted)
        truth.append(sweep_truth(hf, base, source, measure, positions=how["positions"]).numpy())
    words = dict(metric="logit_diff", answer=[ANSWER] * len(drawn), wrong=[WRONG] * len(drawn))
    cleans, corrupteds = ([pair[i] for pair in drawn] for i in (0, 1))
    swept = functools.partial(pcm.patch_heads_each, model, cleans, corrupteds, **words, **how)
    close = CLOSE * max(1.0, np.abs(truth).max())
    budget = within(lambda _, **more: swept(**more), None, memory_gb)
    for found in (swept(), swept(memory_gb=budget)):  # packed, whole and in chunks
        for sweep, expected in zip(found, truth, strict=True):
            assert np.abs(sweep.raw - expected).max() < close
    if each:  # and one by one
        for (clean, corrupted), expected in zip(drawn, truth, strict=True):
            alone = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=ANSWER, wrong=WRONG, **how)
            assert np.abs(alone.raw - expected).max() < close


@settings(max_examples=10, **QUICK)
@given(pairs())
def test_any_pairs(question):
    check_pairs(question)


@pytest.mark.slow
@settings(**SLOW)
@given(pairs())
def test_any_pairs_500(question):
    check_pairs(question)
