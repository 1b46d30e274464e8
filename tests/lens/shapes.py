"""Models and prompts of the lens tests, and the obvious way to take a run apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, logits_of

SHAPES: dict[str, dict] = {
    "mha": dict(n_layers=3),
    "gqa, tied": dict(n_layers=3, n_heads=6, n_key_value_heads=2, tied=True),
    "biases": dict(n_layers=2, n_heads=4, n_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "bias of the unembedding": dict(n_layers=2, attention_bias=True),
}


def wide(shape: str) -> nn.Module:
    """A float64 model; its final norm carries a forward of its own, so it is called and not fused."""
    hf = tiny_llama(**SHAPES[shape])
    if shape == "bias of the unembedding":
        old, hf.lm_head = hf.lm_head.weight, nn.Linear(48, 61)
        hf.lm_head.weight.data, hf.lm_head.bias.data = old.data, torch.linspace(-2, 2, 61)
        hf.requires_grad_(False)
    return double(hf)


def prompts(n: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(61, (n, length), generator=torch.Generator().manual_seed(seed))


@dataclass
class Apart:
    """One run in float64: what each part adds to the residual stream, at every position."""

    heads: Tensor  # [L, H, T, d]
    mlps: Tensor  # [L, T, d]
    embedding: Tensor  # [T, d]
    bias: Tensor  # [d]
    final: Tensor  # [T, d]
    logits: Tensor  # [T, V]


def apart(hf: nn.Module, tokens: Tensor) -> Apart:
    """From hooks on the Hugging Face model and its weights."""
    found = activations(hf, tokens)
    L, heads, mlps, bias = len(hf.model.layers), [], [], torch.zeros(hf.config.hidden_size, dtype=torch.float64)
    for l, layer in enumerate(hf.model.layers):
        W = layer.self_attn.o_proj.weight
        z = found["z", l]
        D = z.shape[-1]
        heads.append(torch.stack([z[:, h] @ W[:, h * D : (h + 1) * D].T for h in range(z.shape[1])]))
        mlps.append(found["mlp_out", l])
        if layer.self_attn.o_proj.bias is not None:
            bias = bias + layer.self_attn.o_proj.bias
    out = Apart(
        torch.stack(heads), torch.stack(mlps), hf.model.embed_tokens(tokens), bias, found["resid_post", L - 1], torch.empty(0)
    )
    out.logits = logits_of(hf, tokens)
    return out
