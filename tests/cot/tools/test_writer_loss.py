"""Knock-outs of writers at the position that is read, against hooked forwards in float64."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.tools.activations import Prompt
from pycotmech.cot.tools.writer_loss import losses, others_of_the_same_layers
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double


@pytest.fixture(scope="module")
def model():
    return pcm.Model(double(tiny_llama(n_layers=3, n_key_value_heads=2)), check=False)


def heads(*pairs):
    out = torch.zeros(3, 4, dtype=torch.bool)
    for pair in pairs:
        out[pair] = True
    return out


def margin_by_hooks(hf, tokens, answer, knocked, fill):
    def replaced(layer):
        def hook(module, args):
            z = args[0].clone().unflatten(-1, (4, 16))
            for head in knocked[layer].nonzero().flatten():
                z[:, -1, head] = fill[layer, head]
            return (z.flatten(-2),)

        return hook

    handles = [hf.model.layers[l].self_attn.o_proj.register_forward_pre_hook(replaced(l)) for l in range(3)]
    try:
        logits = hf(tokens[None]).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    rest = torch.cat((logits[:answer], logits[answer + 1 :]))
    return float(logits[answer] - rest.max())


def test_losses_are_those_of_hooked_forwards(model):
    tokens = torch.arange(3, 23)
    fill = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(0)).double()
    answer = int(model.hf(tokens[None]).logits[0, -1].argmax())
    sets = [heads((0, 1), (1, 0), (1, 3), (2, 2)), heads((1, 0), (1, 3)), heads()]
    found = losses(model, Prompt(tokens, answer, 5), sets, fill, seed=3)
    assert found.intact == pytest.approx(margin_by_hooks(model.hf, tokens, answer, heads(), fill), abs=1e-9)
    generator = torch.Generator().manual_seed(3)
    for t, mask in enumerate(sets[:2]):
        alone = [margin_by_hooks(model.hf, tokens, answer, heads(tuple(h)), fill) for h in mask.nonzero().tolist()]
        assert found.one[t] == pytest.approx(min(alone), abs=1e-9)
        assert found.together[t] == pytest.approx(margin_by_hooks(model.hf, tokens, answer, mask, fill), abs=1e-9)
        others = others_of_the_same_layers(mask, generator)
        assert found.matched[t] == pytest.approx(margin_by_hooks(model.hf, tokens, answer, others, fill), abs=1e-9)
    assert np.isnan([found.one[2], found.together[2], found.matched[2]]).all()


def test_without_writers_nothing_is_run(model):
    found = losses(model, Prompt(torch.arange(3, 9), 7, 5), [heads(), heads()], torch.zeros(3, 4, 16))
    assert np.isnan(found.intact) and all(np.isnan(x).all() for x in found[1:])


def test_other_heads_are_as_many_in_each_layer_or_all_there_are():
    mask = heads((0, 1), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (2, 3))
    drawn = {tuple(others_of_the_same_layers(mask, torch.Generator().manual_seed(s))[0].tolist()) for s in range(20)}
    others = others_of_the_same_layers(mask, torch.Generator().manual_seed(0))
    assert not (others & mask).any() and others.sum(1).tolist() == [1, 1, 0] and len(drawn) == 3
