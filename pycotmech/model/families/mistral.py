"""Mistral and Ministral: Llama with a sliding window, in every layer (Mistral) or in some (Ministral)."""

from __future__ import annotations

from transformers.models.ministral import modeling_ministral
from transformers.models.mistral import modeling_mistral

from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.families.qwen2 import Qwen2Family


class MistralFamily(LlamaFamily):
    """`Family` of MistralForCausalLM."""

    model_types = ("mistral",)
    reads = LlamaFamily.reads | {"sliding_window"}

    norm_types = (modeling_mistral.MistralRMSNorm,)
    mlp_types = (modeling_mistral.MistralMLP,)
    rotary_types = (modeling_mistral.MistralRotaryEmbedding,)

    def window(self, l: int) -> int:
        return self.hf.config.sliding_window or 0


class MinistralFamily(Qwen2Family):
    """`Family` of MinistralForCausalLM: the windows are those of the layers."""

    model_types = ("ministral",)

    norm_types = (modeling_ministral.MinistralRMSNorm,)
    mlp_types = (modeling_ministral.MinistralMLP,)
    rotary_types = (modeling_ministral.MinistralRotaryEmbedding,)
