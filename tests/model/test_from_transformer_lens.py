"""Bridges of TransformerLens by stand-ins; `tests/peers/test_models.py` takes the peer's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

TOKENS = torch.arange(1, 12)


class Component(nn.Module):
    """A component of a bridge: around a module of the Hugging Face model, and in its place."""

    __module__ = "transformer_lens.model_bridge"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.original_component = inner

    def forward(self, *args, **more):
        raise AssertionError("a component of the bridge was called")


def bridge_of(hf: nn.Module, name: str = "TransformerBridge", **more):
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn", "model.layers.0.input_layernorm", "lm_head"):
        parent, _, child = path.rpartition(".")
        setattr(hf.get_submodule(parent), child, Component(hf.get_submodule(path)))
    bridge = type(name, (), {"__module__": "transformer_lens.inside"})()
    cfg = SimpleNamespace(default_prepend_bos=True)
    vars(bridge).update(original_model=hf, tokenizer=None, cfg=cfg, hook_dict={}, _weights_processed=False, **more)
    return bridge


def test_components_are_taken_out_and_weights_are_shared():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    expected, before = hf(TOKENS[None]).logits[0].detach(), {p.data_ptr() for p in hf.parameters()}
    bridge = bridge_of(hf)
    model = pcm.Model.from_transformer_lens(bridge)
    assert {p.data_ptr() for p in model.hf.parameters()} == before
    assert torch.allclose(model.run(TOKENS).logits, expected, atol=1e-5)
    assert isinstance(hf.lm_head, Component) and not any(isinstance(m, Component) for m in model.hf.modules())


def test_what_has_no_hugging_face_model_is_refused_with_the_reason():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    with pytest.raises(TypeError, match=r"a HookedTransformer holds converted copies of the weights .* nothing to share"):
        pcm.Model.from_transformer_lens(bridge_of(hf, "HookedTransformer"))
    with pytest.raises(TypeError, match="bridge: got LlamaForCausalLM; expected a TransformerBridge"):
        pcm.Model.from_transformer_lens(hf)


def test_hooks_and_processed_weights_are_refused():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    bridge = bridge_of(hf)
    own, users = SimpleNamespace(is_permanent=True), SimpleNamespace(is_permanent=False)
    bridge.hook_dict["blocks.0.hook_out"] = SimpleNamespace(fwd_hooks=[own], bwd_hooks=[])
    pcm.Model.from_transformer_lens(bridge)
    bridge.hook_dict["blocks.0.hook_out"].bwd_hooks.append(users)
    with pytest.raises(ValueError, match=r"there are hooks on blocks.0.hook_out, which would be ignored"):
        pcm.Model.from_transformer_lens(bridge)
    vars(bridge)["_weights_processed"] = True
    with pytest.raises(ValueError, match="its weights were processed"):
        pcm.Model.from_transformer_lens(bridge)
