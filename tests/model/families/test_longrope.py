"""Rotary embeddings with factors for short prompts and for long ones: exact for short prompts, refused beyond them."""

import json

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.engine.decode import Runs
from tests.reference.small_families import small
from tests.reference.truth import logits_of, patched_logits, z_of

LIMIT = 40
ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": LIMIT,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [3.0, 5.0, 7.0, 9.0], "partial_rotary_factor": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def hf():
    return small("phi3", hidden_size=64, rope_parameters=dict(ROPE), original_max_position_embeddings=LIMIT)


def test_short_prompts_are_exact_whatever_the_model_ran_before(hf):
    model = pcm.Model(hf)
    clean = torch.arange(LIMIT) * 5 % 61
    corrupted = clean.clone()
    corrupted[20] = 3
    hf(torch.arange(70)[None] % 61)  # leaves the long prompts' frequencies in its buffer
    found = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False)
    hf(torch.arange(70)[None] % 61)
    assert np.array_equal(
        pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False).raw, found.raw
    )
    logits = patched_logits(hf, corrupted, z_of(hf, clean), 1, 2)
    assert abs(found.raw[1, 2] - float(logits[7] - logits[11])) < 1e-4


def test_what_prompts_share_is_kept_although_a_buffer_is_written_in_each_pass(hf):
    model = pcm.Model(hf)
    tokens = torch.arange(LIMIT) % 61
    other = tokens.clone()
    other[-1] = 40
    pcm.patch_heads(model, tokens, other)
    kept = len(model.prefixes)
    pcm.patch_heads(model, tokens, other)
    assert kept == len(model.prefixes) > 0


def test_longer_prompts_are_refused_by_name(hf):
    model = pcm.Model(hf)
    message = rf"the prompt has {LIMIT + 1} tokens, but the model has another rotary embedding \(longrope\) beyond {LIMIT}"
    with pytest.raises(ValueError, match=rf"tokens: {message}"):
        model.run(torch.arange(LIMIT + 1))
    with pytest.raises(ValueError, match=rf"corrupted\[0\]: {message}|clean\[0\]: {message}"):
        pcm.patch_heads(model, torch.arange(LIMIT + 1), torch.arange(LIMIT + 1).flip(0))
    runs = Runs(model.family, None, [3], LIMIT + 1)
    runs.advance([torch.arange(LIMIT)])
    with pytest.raises(ValueError, match=message):
        runs.advance([torch.arange(1)])


def test_fields_as_published_models_have_them(hf, tmp_path):
    hf.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text("utf-8"))
    rope = config.pop("rope_parameters")
    factors = {name: rope[name] for name in ("short_factor", "long_factor")}
    config |= dict(rope_scaling={"type": "longrope", **factors}, rope_theta=1e4, partial_rotary_factor=0.5)
    config |= dict(original_max_position_embeddings=LIMIT, max_position_embeddings=4 * LIMIT)
    path.write_text(json.dumps(config), "utf-8")
    model = pcm.Model.from_pretrained(tmp_path)
    tokens = torch.arange(LIMIT) % 61
    assert (model.run(tokens).logits - logits_of(hf, tokens)).abs().max() < 1e-4
    with pytest.raises(ValueError, match=f"beyond {LIMIT}"):
        model.run(torch.arange(LIMIT + 1))


def test_factors_that_are_alike_have_no_limit():
    alike = small("phi3", hidden_size=64, rope_parameters={**ROPE, "long_factor": ROPE["short_factor"]})
    tokens = torch.arange(70) % 61
    assert (pcm.Model(alike).run(tokens).logits - logits_of(alike, tokens)).abs().max() < 1e-4
