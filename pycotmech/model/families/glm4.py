"""GLM-4-0414 and GLM-Z1: norms before and after each sublayer, a rotation of neighbouring features in a part of each head, one
projection to gate and up."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.models.glm4 import modeling_glm4

from pycotmech.model.families.gate_up import FusedGateUp
from pycotmech.model.families.post_norm import PostNormFamily


class Glm4Family(PostNormFamily, FusedGateUp):
    """`Family` of Glm4ForCausalLM."""

    model_types = ("glm4",)
    reads = PostNormFamily.reads | {"partial_rotary_factor"}

    norm_types = (modeling_glm4.Glm4RMSNorm,)
    mlp_types = (modeling_glm4.Glm4MLP,)
    rotary_types = (modeling_glm4.Glm4RotaryEmbedding,)
    norms = ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")
    attn_out_norm, mlp_out_norm = "post_self_attn_layernorm", "post_mlp_layernorm"
    mlp_norm = "post_attention_layernorm"

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        n = angles.shape[-1]  # features that are turned: each even one with the odd one after it
        for x in (*queries, *keys):
            halves = torch.cat((x[..., 0:n:2], x[..., 1:n:2]), -1)  # as `ops.rope` has them
            super().rotate(l, angles, rows, halves)
            x[..., 0:n:2], x[..., 1:n:2] = halves.chunk(2, -1)
