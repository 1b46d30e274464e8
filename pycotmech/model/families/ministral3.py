"""Ministral 3: Mistral whose queries are scaled by their position, beyond the length that it was first trained for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.ministral3 import modeling_ministral3

from pycotmech.model.families.mistral import MistralFamily


class Ministral3Family(MistralFamily):
    """`Family` of Ministral3ForCausalLM, the language model of Ministral 3 3B, 8B and 14B.

    Queries are multiplied by 1 + beta ln(1 + floor(position / original length)): by 1 in prompts of the original length, 16,384
    tokens in the published models. Longer prompts are refused.
    """

    model_types = ("ministral3",)
    reads = MistralFamily.reads | {"llama_4_scaling_beta"}

    norm_types = (modeling_ministral3.Ministral3RMSNorm,)
    mlp_types = (modeling_ministral3.Ministral3MLP,)
    rotary_types = (modeling_ministral3.Ministral3RotaryEmbedding,)

    def positions_end(self) -> tuple[int, str] | None:
        rope: Any = self.hf.config.rope_parameters
        if not rope.get("llama_4_scaling_beta"):
            return super().positions_end()
        length = int(rope["original_max_position_embeddings"])
        return length, f"scales queries by their position (llama_4_scaling_beta) beyond {length}"

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        read = layer.input_layernorm(x)
        return layer.self_attn(read, position_embeddings=rotary, attention_mask=mask, position_ids=positions)[0]
