"""A family made for tests: Llama with windows, a soft-cap on scores, a scale of its own, and two rotary bases by layer.

The Hugging Face side makes its own attention, step by step in plain PyTorch; the adapter is registered by `registered` only.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.configuration_llama import LlamaConfig

from pycotmech.attention.hf import NAME, attention_forward
from pycotmech.model.families import registry
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.llama import LlamaFamily
from tests.reference.tiny import tiny_llama

PLAIN = modeling_llama.eager_attention_forward
SECOND_BASE = 300.0


class WindowedConfig(LlamaConfig):
    """windows: of each layer, 0 for none. The second rotary base is that of the odd layers."""

    model_type = "windowed"
    windows: list | None = None
    softcap: float = 0.0
    scale: float | None = None


def seen(module, T: int, S: int) -> Tensor:
    """Which of S keys the last T of them see, [T, S]."""
    query, key = torch.arange(S - T, S)[:, None], torch.arange(S)
    window = getattr(module, "window", 0)
    return (key <= query) & (query - key < window) if window else key <= query


def masked_scores(module, query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Masked scores [B, H, T, S] of a Llama's attention module or of one of those below; key already repeated to H heads."""
    found = query @ key.transpose(2, 3) * scaling
    softcap = getattr(module, "softcap", 0.0)
    if softcap:
        found = softcap * torch.tanh(found / softcap)
    return found.masked_fill(~seen(module, query.shape[2], key.shape[2]), -torch.inf)


class WindowedAttention(modeling_llama.LlamaAttention):
    def __init__(self, config: WindowedConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.window, self.softcap = (config.windows or [0] * 99)[layer_idx], config.softcap
        self.scaling = config.scale or self.scaling
        self.is_sliding = bool(self.window)
        self.second_base = layer_idx % 2 == 1

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = position_embeddings
        if self.second_base:
            cos, sin = angles(kwargs["position_ids"], self.head_dim, cos.dtype)
        q, k = modeling_llama.apply_rotary_pos_emb(q, k, cos, sin)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        if self.config._attn_implementation == NAME:
            options = {"scaling": self.scaling, "softcap": self.softcap, "sliding_window": self.window or None}
            z, pattern = attention_forward(self, q, k, v, attention_mask, **options)
        elif modeling_llama.eager_attention_forward is not PLAIN:  # the tests' own, which edits
            z, pattern = modeling_llama.eager_attention_forward(self, q, k, v, None, self.scaling)
        else:
            k, v = (t.repeat_interleave(self.num_key_value_groups, 1) for t in (k, v))
            pattern = masked_scores(self, q, k, self.scaling).softmax(-1)
            z = (pattern @ v).transpose(1, 2)
        return self.o_proj(z.reshape(*hidden_states.shape[:-1], -1)), pattern


def angles(positions: Tensor, d_head: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos, sin [.., T, D] of the second base."""
    turns = SECOND_BASE ** (-torch.arange(0, d_head, 2) / d_head)
    found = positions[..., None].float() * turns
    found = torch.cat((found, found), -1)
    return found.cos().to(dtype), found.sin().to(dtype)


class WindowedForCausalLM(LlamaForCausalLM):
    config_class = WindowedConfig

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__(config)
        for l, layer in enumerate(self.model.layers):
            layer.self_attn = WindowedAttention(config, l)


class WindowedFamily(LlamaFamily):
    model_types = ("windowed",)
    reads = LlamaFamily.reads | {"windows", "softcap", "scale"}

    def attention(self, l: int) -> LayerAttention:
        module = self.layers[l].self_attn
        return LayerAttention(module.scaling, module.window, module.softcap)

    def rotary(self, positions: Tensor) -> Tensor:
        second = torch.stack(angles(positions, self.cfg.d_head, self.resid_dtype))
        return torch.cat((super().rotary(positions), second[None]))

    def _rotary_kind(self, l: int) -> int:
        return l % 2


def windowed(
    *, windows: list[int], softcap: float = 2.0, scale: float | None = 0.4, like: LlamaForCausalLM | None = None, **shape
) -> WindowedForCausalLM:
    """A `tiny_llama` of this shape (or `like`, its weights shared) with these windows, soft-cap and scale."""
    llama = like if like is not None else tiny_llama(n_layers=len(windows), **shape)
    values = {k: v for k, v in llama.config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
    config = WindowedConfig(**values, attn_implementation="eager")
    config.windows, config.softcap, config.scale = windows, softcap, scale
    hf = WindowedForCausalLM(config).to(llama.dtype).eval().requires_grad_(False)
    hf.load_state_dict(llama.state_dict())
    return hf


def registered():
    """A context in which the family is known."""
    return mock.patch.object(registry, "FAMILIES", (*registry.FAMILIES, WindowedFamily))
