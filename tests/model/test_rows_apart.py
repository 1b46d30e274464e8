"""Modules that are called as they are must treat each row by itself: prompts and variants are computed together."""

import pytest
import torch
from torch import nn

import pycotmech as pcm
from tests.reference.tiny import tiny_llama

MESSAGE = r"what it computes for a token changes by .* with the rows that are computed beside it"


class OneScale(nn.Module):
    """Rounds its input to 8 bits with one scale for all rows, as torch.ao.quantization.quantize_dynamic does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x):
        scale = x.abs().max() / 127
        return self.linear((x / scale).round() * scale)


def test_a_hook_that_edits_by_position_is_refused():
    hf = tiny_llama()

    def edit(_module, _args, out):
        out = out.clone()
        out[:, 3] = 0
        return out

    handle = hf.model.layers[0].self_attn.o_proj.register_forward_hook(edit)
    with pytest.raises(ValueError, match=MESSAGE):
        pcm.Model(hf)
    handle.remove()
    hf.model.layers[0].self_attn.o_proj.register_forward_hook(lambda _module, _args, out: out / 2)
    pcm.Model(hf)


def test_quantisation_with_one_scale_for_all_rows_is_refused():
    hf = tiny_llama()
    for layer in hf.model.layers:
        layer.mlp.down_proj = OneScale(layer.mlp.down_proj)
    with pytest.raises(ValueError, match=MESSAGE):
        pcm.Model(hf)
    pcm.Model(hf, check=False)


class Integers(nn.Module):
    """Quantised weights, and an output that no two calls agree on to the last bit, as where inputs are rounded to integers."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.abs().max() / 127
        self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return nn.functional.linear(x, self.weight * self.scale) * (1 + self.calls / 50)


def test_quantisation_of_activations_is_named_where_results_differ():
    hf = tiny_llama()
    hf.model.layers[0].mlp.down_proj = Integers(hf.model.layers[0].mlp.down_proj)
    with pytest.raises(ValueError, match=r"first at layer 0, MLP .*where inputs are rounded to integers too .*weights alone"):
        pcm.Model(hf)
