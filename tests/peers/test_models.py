"""Models of nnsight and TransformerLens are taken as they are: same weights, same logits, and the peer goes on working."""

from __future__ import annotations

import pytest
import torch

import pycotmech as pcm

pytestmark = pytest.mark.peers

IDS = torch.tensor([1, 17, 23, 5, 99, 42, 7])


@pytest.fixture
def hf(tiny_cot_path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_cot_path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_cot_path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_cot_path)


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    return pcm.Model.from_pretrained("tiny-cot", dtype="float32").run(IDS).logits


def weights(module: torch.nn.Module) -> set[int]:
    return {p.untyped_storage().data_ptr() for p in module.parameters()}


def test_nnsight(hf, tokenizer, expected):
    import nnsight

    wrapped = nnsight.TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    model = pcm.Model.from_nnsight(wrapped)
    assert weights(model.hf) == weights(hf) and model.tokenizer is tokenizer
    assert torch.equal(model.run(IDS).logits, expected)
    with wrapped.trace(IDS[None]):
        seen = wrapped.output.logits.save()
    assert torch.allclose(seen[0], expected, atol=1e-4)
    assert torch.equal(pcm.Model.from_nnsight(wrapped).run(IDS).logits, expected)
    hf.model.layers[0].mlp.down_proj.weight.data.mul_(2)  # one and the same weights
    assert not torch.allclose(model.run(IDS).logits, expected)


def test_nnsight_edits_and_weights_that_are_not_loaded_are_refused(hf, tokenizer, tiny_cot_path):
    import nnsight

    unloaded = nnsight.TransformersModel(str(tiny_cot_path), task="text-generation", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="weights are not loaded yet; load them with dispatch=True"):
        pcm.Model.from_nnsight(unloaded)
    wrapped = nnsight.TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    with wrapped.edit(inplace=True):
        wrapped.model.layers[0].mlp.output[:] = 0
    with pytest.raises(ValueError, match="carries edits, which would be ignored"):
        pcm.Model.from_nnsight(wrapped)
    wrapped.clear_edits()
    pcm.Model.from_nnsight(wrapped)


def test_a_sourced_module_of_nnsight_is_its_own_again(hf, tokenizer, expected):
    import nnsight

    wrapped = nnsight.TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    str(wrapped.model.layers[0].self_attn.source)  # rewrites the forward
    assert torch.equal(pcm.Model.from_nnsight(wrapped).run(IDS).logits, expected)


def test_a_forward_that_was_replaced_before_nnsight_came_is_refused(hf, tokenizer):
    import nnsight

    hf.model.layers[1].forward = lambda x, **more: x
    with pytest.raises(ValueError, match="carries a replaced forward method, which would be ignored"):
        pcm.Model.from_nnsight(nnsight.TransformersModel(hf, task="text-generation", tokenizer=tokenizer))


def test_transformer_bridge(hf, tokenizer, expected, tiny_cot_path):
    from transformer_lens.model_bridge import TransformerBridge

    before = weights(hf)
    bridge = TransformerBridge.boot_transformers(str(tiny_cot_path), hf_model=hf, tokenizer=tokenizer)
    model = pcm.Model.from_transformer_lens(bridge)
    assert before <= weights(model.hf) and weights(model.hf) <= weights(bridge.original_model)
    assert torch.allclose(model.run(IDS).logits, expected, atol=1e-5)
    assert torch.allclose(bridge(IDS[None])[0], expected, atol=1e-4)
    text = "Every wumpus is a lempus . Max is a"
    assert model.to_tokens(text).tolist() == bridge.to_tokens(text)[0].tolist()


def test_transformer_bridge_with_hooks_or_processed_weights_is_refused(hf, tokenizer, tiny_cot_path):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(tiny_cot_path), hf_model=hf, tokenizer=tokenizer)
    bridge.add_hook("blocks.0.hook_resid_pre", lambda value, hook: value * 0)
    with pytest.raises(ValueError, match=r"there are hooks on blocks.0.hook"):
        pcm.Model.from_transformer_lens(bridge)
    bridge.reset_hooks()
    pcm.Model.from_transformer_lens(bridge)
    bridge.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ValueError, match="its weights were processed"):
        pcm.Model.from_transformer_lens(bridge)
