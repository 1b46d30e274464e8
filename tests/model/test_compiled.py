"""Models that torch.compile was given: computed as before where that is possible, otherwise refused by name."""

import pytest
import torch

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

TOKENS = torch.arange(12)


def compiled(model):
    return torch.compile(model, backend="eager")


def test_the_model_in_a_compiled_one_is_taken():
    hf = tiny_llama()
    expected = pcm.Model(hf).run(TOKENS).logits
    model = pcm.Model(compiled(hf))
    assert model.hf is hf and torch.equal(model.run(TOKENS).logits, expected)
    hf.compile(backend="eager")
    assert torch.equal(pcm.Model(hf).run(TOKENS).logits, expected)


def test_a_compiled_mlp_is_called():
    hf = tiny_llama()
    expected = pcm.Model(hf).run(TOKENS).logits
    hf.model.layers[1].mlp = compiled(hf.model.layers[1].mlp)
    assert (pcm.Model(hf).run(TOKENS).logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("part", ["forward", "layer"])
def test_what_is_never_called_as_a_whole_is_refused_with_the_reason(part):
    hf = tiny_llama()
    if part == "forward":
        hf.forward = compiled(hf.forward)
    else:
        hf.model.layers[1] = compiled(hf.model.layers[1])
    with pytest.raises(ValueError, match=r"(the model itself|model.layers.1) carries a forward compiled by torch.compile"):
        pcm.Model(hf)
