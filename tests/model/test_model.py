"""The Hugging Face model behind pcm.Model: shared, left as found, honoured or refused."""

import pytest
import torch
from torch import nn
from transformers.models.llama import modeling_llama

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import logits_of, patched_logits, z_of

TOKENS = torch.arange(1, 25)


def test_weights_are_shared_and_the_model_is_left_as_found():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    seen = []
    hf.model.layers[0].mlp.register_forward_hook(lambda m, a, o: seen.append(1))
    hf.train(True)
    flags = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in hf.modules()]
    grads = [p.requires_grad for p in hf.parameters()]
    pointers = [p.data_ptr() for p in hf.parameters()]
    before = hf(TOKENS[None]).logits
    model = pcm.Model(hf)
    model.run(TOKENS, capture=("z",))
    pcm.patch_heads(model, TOKENS, TOKENS.flip(0))
    assert [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in hf.modules()] == flags
    assert [p.requires_grad for p in hf.parameters()] == grads
    assert [p.data_ptr() for p in hf.parameters()] == pointers
    assert hf.config._attn_implementation == "eager"
    assert torch.equal(hf(TOKENS[None]).logits, before)
    assert len(seen) > 2  # the user's hook on the MLP fired in our runs too
    with torch.no_grad():
        hf.lm_head.weight.mul_(2)  # and a change of the weights is seen at once
    assert torch.allclose(model.run(TOKENS).logits, 2 * before[0], atol=1e-4)


@pytest.mark.parametrize("where", ["q_proj", "o_proj", "down_proj", "input_layernorm", "mlp", "lm_head", "embed_tokens"])
def test_hooks_on_called_modules_are_honoured(where):
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    layer = hf.model.layers[1]
    module = {
        "q_proj": layer.self_attn.q_proj,
        "o_proj": layer.self_attn.o_proj,
        "down_proj": layer.mlp.down_proj,
        "input_layernorm": layer.input_layernorm,
        "mlp": layer.mlp,
        "lm_head": hf.lm_head,
        "embed_tokens": hf.model.embed_tokens,
    }[where]
    plain = hf(TOKENS[None]).logits[0]
    module.register_forward_hook(lambda m, a, o: torch.tanh(o) * 1.5)
    changed = hf(TOKENS[None]).logits[0]
    assert (changed - plain).abs().max() > 0.01
    assert torch.allclose(pcm.Model(hf).run(TOKENS).logits, changed, atol=2e-5)


def test_a_hooked_output_projection_in_a_sweep():
    """The join goes through the projection by difference; what a hook makes of it need not be linear."""
    from tests.reference.truth import patched_logits, z_of

    hf = tiny_llama(n_heads=4, n_layers=2)
    hf.model.layers[0].self_attn.o_proj.register_forward_hook(lambda m, a, o: torch.tanh(o))
    corrupted = TOKENS.clone()
    corrupted[15] = 40
    sweep = pcm.patch_heads(pcm.Model(hf), TOKENS, corrupted, return_logits=True)
    source = z_of(hf, TOKENS)
    for h in range(4):
        assert torch.allclose(sweep.logits[0, h], patched_logits(hf, corrupted, source, 0, h), atol=2e-5)


def test_low_rank_adapters_are_honoured():
    class Adapted(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.a = base, nn.Parameter(0.3 * torch.randn(4, base.in_features))
            self.b = nn.Parameter(0.3 * torch.randn(base.out_features, 4))

        def forward(self, x):
            return self.base(x) + x @ self.a.T @ self.b.T

    torch.manual_seed(0)
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    for layer in hf.model.layers:
        layer.self_attn.v_proj = Adapted(layer.self_attn.v_proj)
        layer.self_attn.o_proj = Adapted(layer.self_attn.o_proj)
    assert torch.allclose(pcm.Model(hf).run(TOKENS).logits, hf(TOKENS[None]).logits[0], atol=2e-5)


@pytest.mark.parametrize("where", ["layer", "self_attn", "model", "top"])
def test_hooks_that_would_be_ignored_are_refused(where):
    hf = tiny_llama()
    module = {"layer": hf.model.layers[1], "self_attn": hf.model.layers[1].self_attn, "model": hf.model, "top": hf}[where]
    model = pcm.Model(hf)
    module.register_forward_hook(lambda m, a, o: None)
    with pytest.raises(ValueError, match="carries forward hooks, which would be ignored"):
        pcm.Model(hf)
    with pytest.raises(ValueError, match="would be ignored"):
        model.run(TOKENS)
    with pytest.raises(ValueError, match="would be ignored"):
        pcm.patch_heads(model, TOKENS, TOKENS.flip(0))


def test_recorders_that_transformers_leaves_behind_are_no_hooks_of_the_user():
    hf = tiny_llama()
    hf(TOKENS[None], output_hidden_states=True)
    assert pcm.Model(hf).run(TOKENS).logits.shape == (24, 61)


class Halved(modeling_llama.LlamaAttention):
    """An attention that this library does not compute."""

    def forward(self, *args, **kwargs):
        out, weights = super().forward(*args, **kwargs)
        return out / 2, weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_check_at_load_names_the_first_layer_that_differs(dtype):
    hf = tiny_llama(n_layers=3, dtype=dtype)
    hf.model.layers[1].self_attn.__class__ = Halved
    with pytest.raises(ValueError, match=r"differs from the Hugging Face model's own forward pass, first at layer 1, att"):
        pcm.Model(hf)
    pcm.Model(hf, check=False)


@pytest.mark.parametrize("when", ["before", "after"])
def test_another_scale_of_scores_is_honoured(when):
    hf = tiny_llama(n_layers=3)
    model = pcm.Model(hf)
    hf.model.layers[1].self_attn.scaling = 0.5
    model = pcm.Model(hf) if when == "before" else model
    assert (model.run(TOKENS).logits - logits_of(hf, TOKENS)).abs().max() < 1e-4
    source, base = z_of(hf, TOKENS), TOKENS.flip(0)
    found = pcm.patch_heads(model, TOKENS, base, metric="logit_diff", answer=7, wrong=11, normalize=False)
    for l, h in ((0, 1), (1, 2)):
        truth = patched_logits(hf, base, source, l, h)
        assert abs(found.values[l, h] - float(truth[7] - truth[11])) < 1e-4


def test_layers_that_are_replaced_or_removed_after_the_model_was_looked_at_are_refused():
    def refused(change, message):
        hf = tiny_llama(n_layers=3)
        model = pcm.Model(hf)
        model.run(TOKENS)
        change(hf)
        with pytest.raises(ValueError, match=message):
            model.run(TOKENS)
        with pytest.raises(ValueError, match=message):
            pcm.patch_heads(model, TOKENS, TOKENS.flip(0))
        again = pcm.Model(hf)  # as it is now
        assert (again.run(TOKENS).logits - logits_of(hf, TOKENS)).abs().max() < 1e-4

    other = tiny_llama(n_layers=3, seed=5).model.layers

    def replace(hf):
        hf.model.layers[1] = other[1]

    def replace_attention(hf):
        hf.model.layers[2].self_attn = other[2].self_attn

    def fewer(hf):
        hf.config.num_hidden_layers = 2

    refused(replace, r"model\.layers\.1 was replaced")
    refused(replace_attention, r"model\.layers\.2\.self_attn was replaced")
    refused(lambda hf: hf.model.layers.__delitem__(2), "it has 2 layers now and had 3")
    refused(fewer, "it has 2 layers now and had 3")


def test_weights_that_are_not_finite():
    hf = tiny_llama(n_layers=3)
    with torch.no_grad():
        hf.model.layers[2].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite at layer 2, MLP"):
        pcm.Model(hf)


def test_unsupported():
    from transformers import OPTConfig, OPTForCausalLM

    with pytest.raises(ValueError, match=r"model_type 'opt'; supported: .*llama"):
        sizes = dict(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, ffn_dim=8, word_embed_proj_dim=8)
        pcm.Model(OPTForCausalLM(OPTConfig(vocab_size=11, **sizes)))
    hf = tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(NotImplementedError, match="rope_type 'dynamic'"):
        pcm.Model(hf)
    with pytest.raises(ValueError, match="is not supported"):
        pcm.Model(nn.Linear(2, 2))


def test_strings_get_the_bos_token_the_model_was_trained_with(tiny_cot_path):
    model = pcm.Model.from_pretrained("tiny-cot")
    ids = model.to_tokens("Max is a wumpus .")
    assert ids[0] == 1 and ids[1] != 1 and len(ids) == 6
    assert model.to_tokens("<s> Max is").tolist()[:2] != [1, 1]
