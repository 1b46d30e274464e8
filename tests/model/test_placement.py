"""Models that accelerate has dispatched: weights on disk or in memory until a module is called. They answer as the model that
lies in one place does, to the last bit, and their weights stay where they were."""

import copy
import dataclasses

import accelerate
import numpy as np
import pytest
import torch
import transformers
from torch import nn

import pycotmech as pcm
from pycotmech.model import placement, sizes
from pycotmech.model.families.placed import PlacedFamily
from pycotmech.model.placement import bias_of, has_plain_weights, weight_of
from pycotmech.model.random_twin import random_twin
from tests.reference.questions import CLEAN, CORRUPTED, QUESTIONS, answers
from tests.reference.small_families import CONFIGS, MHA, ONE_QUICK_TEST, small
from tests.reference.tiny import tiny_llama


def device_map(hf, kept: str, layers=(1, 2), around=True) -> dict[str, str]:
    """Layers, and what comes before and after them, on `kept`; all else on the CPU."""
    names = [name for name, module in hf.named_modules() if name and next(module.children(), None) is None]
    top = {}
    for name in names:
        parts = name.split(".")
        number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        if number is None:
            top[name] = kept if around else "cpu"
        else:
            top[".".join(parts[: number + 1])] = kept if int(parts[number]) in layers else "cpu"
    return top


def dispatched(hf, folder, kept="disk", **which):
    with torch.no_grad():
        return accelerate.dispatch_model(hf, device_map(hf, kept, **which), offload_dir=str(folder), main_device="cpu")


def places(hf) -> dict[str, torch.device]:
    return {name: p.device for name, p in hf.named_parameters()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    whole = pcm.Model(copy.deepcopy(hf))
    return whole, pcm.Model(dispatched(hf, tmp_path_factory.mktemp("disk")))


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_answered_to_the_last_bit(pair, question):
    whole, split = pair
    before = places(split.hf)
    assert torch.device("meta") in before.values() and torch.device("cpu") in before.values()
    expected, found = answers(whole, question), answers(split, question)
    for name, value in expected.items():
        if question == "attribution":  # the Hugging Face model's own forward, whose products are PyTorch's
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert places(split.hf) == before


def _cases():
    """Two questions of most families, and all of those of four that differ most; the rest is slow."""
    for question in ("run", "z", "k", "residual", "lens"):
        for family in (*CONFIGS, *MHA):
            quick = question in ("run", "z") or family in ("gemma2", "gpt2", "gpt_neox", "mixtral")
            quick = quick and family not in ONE_QUICK_TEST
            yield pytest.param(family, question, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("family", "question"), _cases())
def test_every_family(family, question, tmp_path):
    hf = small(family)
    expected = answers(pcm.Model(copy.deepcopy(hf)), question)
    split = pcm.Model(dispatched(hf, tmp_path, layers=(0, 2)))
    assert isinstance(split.family, PlacedFamily) and split.family.offloaded
    for name, value in answers(split, question).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_loaded_with_a_device_map(tmp_path, tied):
    tiny_llama(n_layers=3, tied=tied).save_pretrained(tmp_path / "model")
    load = transformers.LlamaForCausalLM.from_pretrained
    whole = pcm.Model(load(tmp_path / "model", attn_implementation="eager").eval())
    places = {"model.embed_tokens": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu", "model.norm": "disk"}
    places |= {f"model.layers.{l}": "disk" if l else "cpu" for l in range(3)}
    options = dict(device_map=places, offload_folder=tmp_path / "offload", attn_implementation="eager")
    split = pcm.Model(load(tmp_path / "model", **options).eval())
    assert split.hf.model.layers[2].mlp.up_proj.weight.is_meta
    for question in ("z", "written", "attribution"):
        for name, value in answers(split, question).items():
            np.testing.assert_allclose(value, answers(whole, question)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    hf = tiny_llama(n_layers=3, dtype=dtype)
    expected = answers(pcm.Model(copy.deepcopy(hf)), "z")["raw"]
    np.testing.assert_array_equal(answers(pcm.Model(dispatched(hf, tmp_path)), "z")["raw"], expected)


def test_weights_are_loaded_once_for_each_pass_of_a_layer(pair, monkeypatch):
    _, split = pair
    hook = next(h for h in placement.aligning_hooks(split.hf.model.layers[1].mlp.up_proj) if h.offload)
    loads = []

    class Counted(dict):
        def __getitem__(self, name):
            loads.append(name)
            return super().__getitem__(name)

    monkeypatch.setattr(sizes, "CPU", dataclasses.replace(sizes.CPU, row_block=4))
    monkeypatch.setattr(hook, "weights_map", Counted(weight=hook.weights_map["weight"]))
    split.run(CLEAN)
    assert loads == ["weight"]


def test_nothing_is_kept_of_weights_that_are_loaded_as_needed(pair):
    _, split = pair
    pcm.patch_heads(split, CLEAN, CORRUPTED)
    assert len(split.prefixes) == 0


def test_a_hook_of_the_users_is_still_refused_or_honoured(tmp_path):
    hf = tiny_llama(n_layers=3)
    hf.model.layers[1].mlp.register_forward_hook(lambda m, a, out: out * 1.5)
    expected = answers(pcm.Model(copy.deepcopy(hf)), "run")["logits"]
    split = dispatched(hf, tmp_path)
    np.testing.assert_allclose(answers(pcm.Model(split), "run")["logits"], expected, atol=1e-5)
    split.model.layers[1].register_forward_hook(lambda m, a, out: out)
    with pytest.raises(ValueError, match=r"model.layers.1 carries forward hooks, which would be ignored"):
        pcm.Model(split)


def test_a_forward_that_was_replaced_before_dispatch_is_refused(tmp_path):
    hf = tiny_llama(n_layers=3)
    plain = hf.model.layers[1].forward
    hf.model.layers[1].forward = lambda *args, **options: plain(*args, **options)
    with pytest.raises(ValueError, match=r"model.layers.1 carries a replaced forward method"):
        pcm.Model(dispatched(hf, tmp_path))


def test_layers_that_load_their_parts_are_refused(tmp_path):
    hf = tiny_llama(n_layers=3)
    places = device_map(hf, "disk")
    accelerate.dispatch_model(
        hf, places, offload_dir=str(tmp_path), main_device="cpu", preload_module_classes=["LlamaDecoderLayer"]
    )
    with pytest.raises(NotImplementedError, match=r"model.layers.1 loads the weights of all its parts when it is called"):
        pcm.Model(hf)


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        hf = transformers.LlamaForCausalLM(tiny_llama().config)
    with pytest.raises(ValueError, match="has tensors on the meta device, which have no values"):
        pcm.Model(hf)


def test_random_weights_in_place_of_placed_ones_are_refused(pair):
    with pytest.raises(NotImplementedError, match="it was placed by device_map"):
        random_twin(pair[1])


class _Odd(nn.Module):
    """Weights where a library of quantisation puts them: behind a property, in a buffer, in an attribute, or looked up."""

    def __init__(self, where: str) -> None:
        super().__init__()
        codes = torch.zeros(2, 2, dtype=torch.uint8)
        if where == "buffer":
            self.register_buffer("weight", codes)
        elif where == "attribute":
            self.__dict__["weight"] = codes
        elif where == "parameter":
            self.weight = nn.Parameter(torch.zeros(2, 2))


class _Property(_Odd):
    weight = property(lambda self: torch.zeros(2, 2, dtype=torch.int8))


class _LookedUp(_Odd):
    def __getattr__(self, name: str):
        return torch.zeros(2, dtype=torch.int8) if name == "bias" else super().__getattr__(name)


def test_weights_are_found_wherever_a_module_has_them():
    assert not has_plain_weights(_Odd("buffer")) and not has_plain_weights(_Odd("attribute"))
    assert not has_plain_weights(_Property("")) and not has_plain_weights(_LookedUp("parameter"))
    assert (
        has_plain_weights(_Odd("parameter")) and has_plain_weights(nn.SiLU()) and has_plain_weights(nn.Linear(2, 2, bias=False))
    )
    assert bias_of(nn.Linear(2, 2, bias=False)) is None and bias_of(nn.SiLU()) is None
    assert torch.equal(bias_of(_LookedUp("")), torch.zeros(2, dtype=torch.int8))
    linear = nn.Linear(2, 2)
    assert bias_of(linear) is linear.bias and weight_of(linear) is linear.weight
