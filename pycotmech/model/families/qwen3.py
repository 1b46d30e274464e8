"""Qwen3 (dense): Qwen2 with an RMSNorm of each head's query and key, and heads whose size is not d_model / n_heads."""

from __future__ import annotations

from transformers.models.qwen3 import modeling_qwen3

from pycotmech.model.families.normed_qk import NormedQK
from pycotmech.model.families.qwen2 import Qwen2Family


class Qwen3Family(NormedQK, Qwen2Family):
    """`Family` of Qwen3ForCausalLM."""

    model_types = ("qwen3",)

    norm_types = (modeling_qwen3.Qwen3RMSNorm,)
    mlp_types = (modeling_qwen3.Qwen3MLP,)
    rotary_types = (modeling_qwen3.Qwen3RotaryEmbedding,)
