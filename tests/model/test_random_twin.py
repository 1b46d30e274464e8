"""A model with random weights beside a model: what it shares, what is drawn, and that the model stays as it is."""

import copy

import pytest
import torch

import pycotmech as pcm
from pycotmech.model.random_twin import random_twin
from tests.reference.close import assert_allclose
from tests.reference.tiny import same_model, tiny_llama

TOKENS = torch.arange(10, 30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layers_are_drawn_and_nothing_else(dtype):
    hf = tiny_llama(dtype=dtype)
    before = copy.deepcopy(hf)
    model = pcm.Model(hf, check=False)
    twin = random_twin(model, seed=3)
    assert same_model(hf, before)
    ours, theirs = dict(hf.named_parameters()), dict(twin.hf.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        if weight.dim() > 1 and "layers" in name:
            assert theirs[name].dtype == dtype and not torch.equal(theirs[name], weight), name
            assert float(theirs[name].float().std()) == pytest.approx(float(weight.float().std()), rel=0.1)
        else:
            assert theirs[name] is weight, name
    if dtype == torch.float32:
        assert_allclose(twin.run(TOKENS).logits, hf_logits(twin.hf), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(twin.run(TOKENS).logits, model.run(TOKENS).logits, atol=0.1)


def hf_logits(hf):
    with torch.no_grad():
        return hf(TOKENS[None]).logits[0].float()


def test_the_seed_decides():
    model = pcm.Model(tiny_llama(), check=False)
    a, b, c = (random_twin(model, seed=seed).run(TOKENS).logits for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert "random weights" in random_twin(model).name


def test_gradients_of_the_model_stay_on_and_the_twin_has_none():
    hf = tiny_llama().requires_grad_(True)
    twin = random_twin(pcm.Model(hf, check=False))
    assert all(p.requires_grad for p in hf.parameters())
    assert not any(p.requires_grad for n, p in twin.hf.named_parameters() if "proj" in n)
