"""A model in part on a GPU and in part in the CPU's memory or on disk, on real devices."""

import copy

import numpy as np
import pytest
import torch

import pycotmech as pcm
from tests.reference.questions import QUESTIONS, answers
from tests.reference.tiny import tiny_llama

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=["cpu", "disk"])
def pair(request, tmp_path_factory):
    """The model on the GPU, and the same with one layer and the unembedding kept elsewhere."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate, which splits models")
    hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    whole = pcm.Model(copy.deepcopy(hf).cuda())
    places = {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": 0, "lm_head": request.param}
    places |= {f"model.layers.{l}": request.param if l == 1 else 0 for l in range(3)}
    folder = str(tmp_path_factory.mktemp("offload"))
    return whole, pcm.Model(accelerate.dispatch_model(hf, places, main_device=0, offload_dir=folder))


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question(pair, question):
    whole, split = pair
    expected, found = answers(whole, question), answers(split, question)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_layers_on_the_cpu_and_on_a_gpu():
    """Both compute: hooks as for two GPUs."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate, which splits models")
    hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    whole = pcm.Model(copy.deepcopy(hf))
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for name, module in hf.named_modules():
        if name:
            late = name.startswith(("model.layers.1", "model.layers.2", "model.norm", "lm_head"))
            hook = accelerate.hooks.AlignDevicesHook(cpu if late else gpu, place_submodules=True)
            if name not in ("model", "model.layers"):
                accelerate.hooks.add_hook_to_module(module, hook)
    accelerate.hooks.add_hook_to_module(hf, accelerate.hooks.AlignDevicesHook(io_same_device=True))
    split = pcm.Model(hf)
    assert set(split.family.devices) == {gpu, cpu}
    for question in QUESTIONS:
        expected = answers(whole, question)
        for name, value in answers(split, question).items():
            if name != "top_keys":  # ties
                np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=f"{question}: {name}")
