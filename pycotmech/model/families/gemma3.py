"""Gemma 3 (text): Gemma 2 with norms of queries and keys in place of the soft-caps, five layers with a window for each without,
and a rotary base for each of the two kinds."""

from __future__ import annotations

from torch import Tensor
from transformers.models.gemma3 import modeling_gemma3

from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.gemma2 import Gemma2Family
from pycotmech.model.families.normed_qk import NormedQK
from pycotmech.model.families.rotary_kinds import RotaryByKind


class Gemma3Family(NormedQK, RotaryByKind, Gemma2Family):
    """`Family` of Gemma3ForCausalLM."""

    model_types = ("gemma3_text",)
    reads = Gemma2Family.reads | {"rope_local_base_freq"}

    norm_types = (modeling_gemma3.Gemma3RMSNorm,)
    mlp_types = (modeling_gemma3.Gemma3MLP,)
    rotary_types = (modeling_gemma3.Gemma3RotaryEmbedding,)
    embedding_types = (modeling_gemma3.Gemma3TextScaledWordEmbedding,)

    def tapped(self, site: str, x: Tensor) -> Tensor:
        return x.transpose(1, 2) if site in ("q", "k") else super().tapped(site, x)  # its norms read [B, heads, T, D]

    def attention(self, l: int) -> LayerAttention:
        # Its configuration has a soft-cap of scores that its attention does not read.
        return LayerAttention(self.layers[l].self_attn.scaling, window=self.window(l))
