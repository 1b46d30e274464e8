"""Models of nnsight, nnterp and TransformerLens by stand-ins; `tests/peers/test_models.py` takes the peers' own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pycotmech as pcm
from pycotmech.model.twin import unwrapped_tree
from tests.reference.tiny import tiny_llama

TOKENS = torch.arange(1, 12)


def of_package(package: str, name: str, *bases: type) -> type:
    """A class that says it comes from a package."""
    return type(name, bases, {"__module__": f"{package}.inside"})


Controller = of_package("nnsight", "Controller", object)
Envoy = of_package("nnsight", "Envoy", object)
Standardized = of_package("nnterp", "StandardizedTransformer", Envoy)


class State:
    def __init__(self, original) -> None:
        self.original = original


def wrapped_by_nnsight(hf: nn.Module, kind: type = Envoy, tokenizer=None):
    """What nnsight makes of a model: every module's forward is a controller, the one before is kept in its state."""
    for module in hf.modules():
        controller = Controller()
        controller.state = State(vars(module).get("forward", type(module).forward))
        vars(module)["forward"] = controller
    envoy = kind()
    vars(envoy).update(_module=hf, _edits=[], tokenizer=tokenizer)
    return envoy


@pytest.mark.parametrize(("kind", "take"), [(Envoy, pcm.Model.from_nnsight), (Standardized, pcm.Model.from_nnterp)])
def test_weights_are_shared_and_forwards_are_those_from_before(kind, take):
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    expected = hf(TOKENS[None]).logits[0].detach()
    envoy = wrapped_by_nnsight(hf, kind)
    model = take(envoy)
    assert [p.data_ptr() for p in model.hf.parameters()] == [p.data_ptr() for p in hf.parameters()]
    assert torch.allclose(model.run(TOKENS).logits, expected, atol=1e-5)
    assert all("forward" in vars(module) for module in hf.modules())  # nnsight's model is as it was
    assert model.hf is not hf and model.tokenizer is None


def test_a_forward_that_was_replaced_before_is_refused():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    vars(hf.model.layers[1])["forward"] = lambda x, **more: x
    with pytest.raises(ValueError, match="carries a replaced forward method, which would be ignored"):
        pcm.Model.from_nnsight(wrapped_by_nnsight(hf))


def test_other_objects_edits_and_unloaded_weights_are_refused():
    hf = tiny_llama(n_heads=4, n_key_value_heads=2)
    with pytest.raises(TypeError, match="wrapped: got LlamaForCausalLM; expected a model of nnsight"):
        pcm.Model.from_nnsight(hf)
    envoy = wrapped_by_nnsight(hf)
    with pytest.raises(TypeError, match=r"wrapped: got Envoy; expected an nnterp.StandardizedTransformer"):
        pcm.Model.from_nnterp(envoy)
    vars(envoy)["_edits"] = ["an edit"]
    with pytest.raises(ValueError, match="the model carries edits, which would be ignored"):
        pcm.Model.from_nnsight(envoy)
    vars(envoy).update(_edits=[], _module=hf.to("meta"))
    with pytest.raises(ValueError, match="its weights are not loaded yet"):
        pcm.Model.from_nnsight(envoy)
    vars(envoy)["_module"] = None
    with pytest.raises(TypeError, match="wraps no PyTorch module"):
        pcm.Model.from_nnsight(envoy)


def test_a_module_with_two_names_stays_one():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Sequential(shared), nn.Linear(2, 2))
    out = unwrapped_tree(model, lambda module: module)
    assert out is not model and out[0] is out[1][0] and out[0] is not shared and out[0].weight is shared.weight
    assert [p.data_ptr() for p in out.parameters()] == [p.data_ptr() for p in model.parameters()]
