"""Qwen2, Qwen2.5, R1-Distill-Qwen: Llama with biases on queries, keys and values, and windows in some layers of some models."""

from __future__ import annotations

from transformers.models.qwen2 import modeling_qwen2

from pycotmech.model.families.windows import WindowsByKind


class Qwen2Family(WindowsByKind):
    """`Family` of Qwen2ForCausalLM."""

    model_types = ("qwen2",)
    reads = WindowsByKind.reads | {"max_window_layers", "use_sliding_window"}

    norm_types = (modeling_qwen2.Qwen2RMSNorm,)
    mlp_types = (modeling_qwen2.Qwen2MLP,)
    rotary_types = (modeling_qwen2.Qwen2RotaryEmbedding,)
