"""A checkpoint with MXFP4 experts, as gpt-oss is published, loads with ordinary weights that are those of its blocks."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import pycotmech as pcm
from pycotmech.model.loading import load
from pycotmech.model.mxfp4 import NOTE, restored
from tests.reference.small_families import small

NUMBERS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
TOKENS = torch.arange(20)


def packed(generator, E, rows, inputs):
    """Random blocks and scales of a weight, and the weight [E, inputs, rows]."""
    codes = torch.randint(16, (E, rows, inputs // 32, 32), generator=generator)
    scales = torch.randint(124, 127, codes.shape[:3], generator=generator)
    sign = torch.where(codes < 8, 1.0, -1.0)
    values = sign * NUMBERS[codes % 8] * 2.0 ** (scales - 127)[..., None]
    blocks = codes[..., 0::2] | codes[..., 1::2] << 4
    return blocks.to(torch.uint8), scales.to(torch.uint8), values.flatten(2).transpose(1, 2)


@pytest.fixture
def folder(tmp_path):
    """(a folder as gpt-oss is published, the weights of its experts by name)"""
    hf = small("gpt_oss", dtype=torch.bfloat16, hidden_size=64, intermediate_size=32)
    hf.save_pretrained(tmp_path)
    tensors, weights = load_file(tmp_path / "model.safetensors"), {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        E, inputs, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"], weights[name] = packed(generator, E, rows, inputs)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    return tmp_path, weights


@pytest.mark.parametrize("dtype", ["auto", "float32", "float64"])
def test_experts_are_those_of_the_blocks_bit_for_bit(folder, dtype):
    path, weights = folder
    loaded = load(path, dtype=dtype)
    assert loaded.notes == (NOTE,) and len(weights) == 6
    found = loaded.model.state_dict()
    assert {w.dtype for w in found.values()} == {torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)}
    for name, expected in weights.items():
        assert torch.equal(found[name].to(expected.dtype), expected), name


def test_it_runs_and_its_copy_for_workers_is_the_same_model(folder, tmp_path):
    model = pcm.Model.from_pretrained(folder[0], dtype="float32")
    copy = tmp_path / "copy"
    model.hf.save_pretrained(copy, save_original_format=False)
    assert torch.equal(pcm.Model.from_pretrained(copy).run(TOKENS).logits, model.run(TOKENS).logits)


def test_blocks_that_do_not_fit_are_named(folder):
    path, _ = folder
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    tensors[name] = tensors[name][:, 1:].contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: model.layers.1.mlp.experts.down_proj; 2 unexpected"):
        load(path)


def test_only_blocks_with_their_scales_become_weights():
    headers = {
        "a_blocks": ("U8", (2, 6, 1, 16)),
        "a_scales": ("U8", (2, 6, 1)),
        "b_blocks": ("U8", (2, 6, 1, 16)),
        "c": ("F32", (3,)),
    }
    assert restored(headers) == {"a": ("BF16", (2, 32, 6)), "b_blocks": headers["b_blocks"], "c": headers["c"]}
