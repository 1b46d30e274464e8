"""What training mode leaves to chance is refused by name: no two passes of such a model are alike."""

import peft
import pytest
import torch

import pycotmech as pcm
from tests.reference.small_families import small
from tests.reference.tiny import tiny_llama

DRAWN = {
    "llama": (dict(attention_dropout=0.1), "model.layers.0.self_attn is in training mode, where it drops 0.1 of its weights"),
    "gpt_neox": (
        dict(attention_dropout=0.2, hidden_dropout=0.0),
        "gpt_neox.layers.0.attention is in training mode, where it drops",
    ),
    "gpt2": (
        dict(resid_pdrop=0.1, attn_pdrop=0.0, embd_pdrop=0.0),
        "resid_dropout is in training mode, where it drops 0.1",
    ),
    "phi3": (dict(resid_pdrop=0.3), "model.layers.0.resid_attn_dropout is in training mode, where it drops 0.3 of its input"),
    "mixtral": (
        dict(router_jitter_noise=0.3),
        "model.layers.0.mlp is in training mode, where it multiplies its input",
    ),
}


@pytest.mark.parametrize("family", DRAWN)
def test_every_kind_is_refused_in_training_mode_alone(family):
    fields, message = DRAWN[family]
    hf = small(family, **fields)
    model = pcm.Model(hf)
    hf.train()
    with pytest.raises(ValueError, match=message):
        model.run(torch.arange(9))
    hf.eval()
    model.run(torch.arange(9))


def test_an_adapter_in_training_mode_in_a_model_that_is_not():
    """get_peft_model leaves its dropouts in training mode, whatever mode the model is in."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3, init_lora_weights=False)
    adapted = peft.get_peft_model(tiny_llama(), config)
    adapted.base_model.model.model.training = False
    with pytest.raises(ValueError, match=r"q_proj.lora_dropout.default is in training mode, where it drops 0.3 of its input"):
        pcm.Model(adapted)
    pcm.Model(adapted.eval())


def test_a_model_in_training_mode_without_chance_runs():
    hf = tiny_llama()
    expected = pcm.Model(hf).run(torch.arange(9)).logits
    assert torch.equal(pcm.Model(hf.train()).run(torch.arange(9)).logits, expected)
