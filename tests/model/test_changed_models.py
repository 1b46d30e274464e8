"""A Hugging Face model that is changed after `pcm.Model` was made of it: the change is honoured, or refused."""

import copy

import pytest
import torch
from torch import nn

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import patched_logits, z_of

TOKENS = torch.arange(1, 25)
CORRUPTED = TOKENS.clone()
CORRUPTED[15] = 40


def other():
    return tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2, seed=7)


def replace_projection(hf):
    hf.model.layers[1].self_attn.v_proj = copy.deepcopy(other().model.layers[1].self_attn.v_proj)


def replace_mlp(hf):
    hf.model.layers[1].mlp = other().model.layers[1].mlp


def replace_norm(hf):
    hf.model.layers[1].input_layernorm = other().model.layers[1].input_layernorm


def replace_unembedding(hf):
    hf.lm_head = other().lm_head


def replace_embedding(hf):
    hf.model.embed_tokens = other().model.embed_tokens


def replace_final_norm(hf):
    hf.model.norm = other().model.norm


def scaling(hf):
    hf.model.layers[1].self_attn.scaling = 0.5


def scaling_of_all(hf):
    for layer in hf.model.layers:
        layer.self_attn.scaling = 0.1


def epsilon(hf):
    hf.model.layers[1].post_attention_layernorm.variance_epsilon = 0.5


def weight_in_place(hf):
    with torch.no_grad():
        hf.model.layers[1].self_attn.q_proj.weight.mul_(0.5)


def weight_by_data(hf):
    hf.model.layers[0].mlp.up_proj.weight.data = 0.5 * hf.model.layers[0].mlp.up_proj.weight.data


def weight_replaced(hf):
    hf.model.layers[0].self_attn.k_proj.weight = nn.Parameter(other().model.layers[0].self_attn.k_proj.weight.clone())


def rotary(hf):
    hf.model.rotary_emb = tiny_llama(n_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 100.0}).model.rotary_emb


def all_weights(hf):
    hf.load_state_dict(other().state_dict())


def layers_swapped_by_weights(hf):
    state = hf.model.layers[0].state_dict()
    hf.model.layers[0].load_state_dict(copy.deepcopy(hf.model.layers[2].state_dict()))
    hf.model.layers[2].load_state_dict(copy.deepcopy(state))


def replace_layer(hf):
    hf.model.layers[1] = other().model.layers[1]


def replace_attention(hf):
    hf.model.layers[1].self_attn = other().model.layers[1].self_attn


def replace_layers(hf):
    hf.model.layers = other().model.layers


def replace_base(hf):
    hf.model = other().model


def remove_layer(hf):
    del hf.model.layers[1]


def remove_last_layer(hf):
    hf.model.layers = hf.model.layers[:2]


def add_layer(hf):
    hf.model.layers.append(other().model.layers[0])
    hf.model.layers[3].self_attn.layer_idx = 3
    hf.config.num_hidden_layers = 4


def fewer_by_config(hf):
    hf.config.num_hidden_layers = 2


def double(hf):
    hf.double()


def half(hf):
    hf.bfloat16()


HONOURED = [
    replace_projection, replace_mlp, replace_norm, replace_unembedding, replace_embedding, replace_final_norm, scaling,
    scaling_of_all, epsilon, weight_in_place, weight_by_data, weight_replaced, rotary, all_weights, layers_swapped_by_weights,
]  # fmt: skip
HONOURED_OR_REFUSED = [
    replace_layer, replace_attention, replace_layers, replace_base, remove_layer, remove_last_layer, add_layer, fewer_by_config,
    double, half,
]  # fmt: skip


@pytest.fixture
def pair():
    """A model that was used once, so that beginnings of prompts are kept, and its Hugging Face model."""
    hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    model = pcm.Model(hf)
    model.run(TOKENS)
    pcm.patch_heads(model, TOKENS, CORRUPTED)
    return model, hf


def compare(model, hf):
    """A run and a sweep against hooked forwards of the model as it is now."""
    with torch.no_grad():
        atol = 5e-5
        assert torch.allclose(model.run(TOKENS).logits, hf(TOKENS[None]).logits[0], atol=atol)
        source = z_of(hf, TOKENS)
        sweep = pcm.patch_heads(model, TOKENS, CORRUPTED, return_logits=True, normalize=False)
        assert len(sweep.values) == len(hf.model.layers[: hf.config.num_hidden_layers])
        for l in range(len(sweep.values)):
            for h in range(4):
                truth = patched_logits(hf, CORRUPTED, source, l, h)
                assert torch.allclose(sweep.logits[l, h].double(), truth.double(), atol=5 * atol), (l, h)


@pytest.mark.parametrize("change", HONOURED, ids=lambda f: f.__name__)
def test_a_change_that_is_honoured(change, pair):
    model, hf = pair
    before = hf(TOKENS[None]).logits
    change(hf)
    assert (hf(TOKENS[None]).logits - before).abs().max() > 1e-3
    compare(model, hf)
    compare(pcm.Model(hf), hf)


@pytest.mark.parametrize("change", HONOURED_OR_REFUSED, ids=lambda f: f.__name__)
def test_a_change_that_is_honoured_or_refused(change, pair):
    model, hf = pair
    change(hf)
    calls = [
        lambda: model.run(TOKENS),
        lambda: pcm.patch_heads(model, TOKENS, CORRUPTED),
        lambda: pcm.sweep(model, TOKENS, [pcm.Variant((pcm.Edit("z", 1, 2, None, 0.0),))]),
        lambda: pcm.attention_summary(model, TOKENS),
        lambda: pcm.head_scores(model, TOKENS),
        lambda: pcm.logit_lens(model, TOKENS),
        lambda: pcm.head_logits(model, TOKENS),
        lambda: pcm.path_patch(model, TOKENS, CORRUPTED),
        lambda: pcm.attribute_heads(model, TOKENS, CORRUPTED),
    ]
    refused = 0
    for call in calls:
        try:
            call()
        except ValueError as error:
            assert str(error).startswith("model: ") and "make a new pcm.Model" in str(error)
            refused += 1
    assert refused in (0, len(calls))
    if not refused:
        compare(model, hf)
    if change not in (remove_layer, half):  # layers are numbered wrongly then; 16 bits have tests of their own
        compare(pcm.Model(hf), hf)
