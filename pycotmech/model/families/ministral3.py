"""Ministral 3: Mistral whose queries are scaled by their position, beyond the length that it was first trained for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.ministral3 import modeling_ministral3

from pycotmech.model.families.mistral import MistralFamily


class Ministral3Family(MistralFamily):
    """`Family` of Ministral3ForCausalLM, the language model of Ministral 3 3B, 8B and 14B.

    Queries are multiplied by 1 + beta ln(1 + floor(position / original length)) after the rotary embedding: by 1 below the
    original length, 16,384 tokens in the published models. Sites q are before both. The angles of queries have the factor in
    them, and so are a kind of their own after those of keys.
    """

    model_types = ("ministral3",)
    reads = MistralFamily.reads | {"llama_4_scaling_beta"}

    norm_types = (modeling_ministral3.Ministral3RMSNorm,)
    mlp_types = (modeling_ministral3.Ministral3MLP,)
    rotary_types = (modeling_ministral3.Ministral3RotaryEmbedding,)

    def constants(self) -> tuple[float, ...]:
        return (*super().constants(), *self._scaling())

    def _scaling(self) -> tuple[float, ...]:
        """Beta and the original length; nothing if queries are not scaled."""
        rope: Any = self.hf.config.rope_parameters
        beta = rope.get("llama_4_scaling_beta")
        return (float(beta), float(rope["original_max_position_embeddings"])) if beta else ()

    def rotary(self, positions: Tensor) -> Tensor:
        keys, scaling = super().rotary(positions), self._scaling()
        if not scaling:
            return keys
        beta, length = scaling
        factor = 1 + beta * torch.log(1 + torch.floor(positions.float() / length))  # [R], in float32 whatever the dtype
        return torch.cat((keys, keys * factor[:, None].to(keys)))  # [2, 2, R, D]

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        if keys:
            super().rotate(l, angles[:1], rows, keys=keys)
        if queries:
            super().rotate(l, angles[-1:], rows, *queries)

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)[None]
        read = layer.input_layernorm(x)
        return layer.self_attn(read, position_embeddings=rotary, attention_mask=mask, position_ids=positions)[0]
