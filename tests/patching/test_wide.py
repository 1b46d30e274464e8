"""Exactness at the width of Llama-2 7B (4096, 32 heads of 128, MLP 11008), on a 2-layer cut."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from tests.reference.truth import double, logits_of, sweep_truth

HEADS = [(0, 0), (0, 17), (1, 3), (1, 31)]


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_llama_2_7b_width(direction):
    torch.manual_seed(0)
    hf = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, vocab_size=2000)).eval()
    with torch.no_grad():
        for layer in hf.model.layers:  # peaked attention: with the default 0.02 every pattern is flat
            layer.self_attn.q_proj.weight.mul_(3)
            layer.self_attn.k_proj.weight.mul_(3)
    clean = torch.randint(2000, (96,))
    corrupted = clean.clone()
    corrupted[70], corrupted[80] = (clean[70] + 5) % 2000, (clean[80] + 9) % 2000
    hf64 = double(hf)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    measure = lambda x: float(x[7] - x[11])  # noqa: E731
    truth = sweep_truth(hf64, base, source, measure, heads=HEADS) - measure(logits_of(hf64, base, keep=1)[0])
    sweep = pcm.patch_heads(
        pcm.Model(hf), clean, corrupted, direction=direction, metric="logit_diff", answer=7, wrong=11, normalize=False
    )
    largest = np.abs(sweep.effect).max()
    for l, h in HEADS:
        assert abs(sweep.effect[l, h] - truth[l, h]) <= 1e-4 * largest
    assert largest > 100 * sweep.noise_floor
