"""A PEFT model given whole: its base model is taken, whose layers carry the adapters."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pycotmech as pcm
from tests.reference.tiny import tiny_llama
from tests.reference.truth import patched_logits, z_of

TOKENS = torch.arange(1, 25)


class Adapted(nn.Module):
    """A low-rank adapter around a projection."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Tuner(nn.Module):
    """As `peft.tuners.lora.LoraModel`: the model, and its attributes by way of it."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        for layer in model.model.layers:
            for name in ("q_proj", "v_proj", "o_proj"):
                setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


class StandIn(nn.Module):
    """As `peft.PeftModelForCausalLM`."""

    def __init__(self, hf, *, learns_prompts=False):
        super().__init__()
        self.peft_config = {"default": SimpleNamespace(is_prompt_learning=learns_prompts)}
        self.base_model = hf if learns_prompts else Tuner(hf)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def get_base_model(self):
        return self.base_model if self.peft_config["default"].is_prompt_learning else self.base_model.model

    def forward(self, *args, **kwargs):
        return self.base_model(*args, **kwargs)


def by_peft(hf):
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(hf, config).eval()


WRAPPED = {"stand-in": StandIn}
if importlib.util.find_spec("peft") is not None:
    WRAPPED["peft"] = by_peft


@pytest.mark.parametrize("wrap", WRAPPED)
def test_the_base_model_is_taken_with_its_adapters(wrap):
    torch.manual_seed(0)
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    plain = hf(TOKENS[None]).logits[0]
    wrapped = WRAPPED[wrap](hf)
    adapted = wrapped(TOKENS[None]).logits[0].detach()
    assert (adapted - plain).abs().max() > 0.05
    model = pcm.Model(wrapped)
    assert model.hf is hf
    assert torch.allclose(model.run(TOKENS).logits, adapted, atol=2e-5)
    corrupted = TOKENS.clone()
    corrupted[15] = 40
    sweep = pcm.patch_heads(model, TOKENS, corrupted, return_logits=True)
    with torch.no_grad():
        source = z_of(hf, TOKENS)
        for h in range(4):
            assert torch.allclose(sweep.logits[0, h], patched_logits(hf, corrupted, source, 0, h), atol=5e-5)


def test_adapters_that_lie_outside_the_model_are_refused():
    with pytest.raises(ValueError, match=r"hf_model: the PEFT adapters 'default' learn prompts.*would be ignored"):
        pcm.Model(StandIn(tiny_llama(), learns_prompts=True))
