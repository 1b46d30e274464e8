"""OLMo 2 and OLMo 3: norms of what a sublayer adds and none of its input, norms over all queries and all keys of a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.olmo2 import modeling_olmo2
from transformers.models.olmo3 import modeling_olmo3

from pycotmech.model.families.normed_qk import NormedRowQK
from pycotmech.model.families.post_norm import PostNormFamily
from pycotmech.model.families.rotary_kinds import RotaryByKind
from pycotmech.model.families.windows import WindowsByKind


class Olmo2Family(NormedRowQK, PostNormFamily):
    """`Family` of Olmo2ForCausalLM."""

    model_types = ("olmo2",)

    norm_types = (modeling_olmo2.Olmo2RMSNorm,)
    mlp_types = (modeling_olmo2.Olmo2MLP,)
    rotary_types = (modeling_olmo2.Olmo2RotaryEmbedding,)
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")

    def _attention_input(self, l: int, x: Tensor, added: Tensor | None = None) -> Tensor:
        return self._as_it_is(x, added)

    def _mlp_input(self, l: int, x: Tensor, added: Tensor | None = None) -> Tensor:
        return self._as_it_is(x, added)

    def _as_it_is(self, x: Tensor, added: Tensor | None) -> Tensor:
        """Sublayers read the residual stream without a norm: nothing is there to add in."""
        if added is not None:
            x += added
        return x.to(self.dtype)

    def _wide_attention(self, layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        return layer.post_attention_layernorm(layer.self_attn(x, position_embeddings=rotary, attention_mask=mask)[0])

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return layer.post_feedforward_layernorm(layer.mlp(x))


class Olmo3Family(RotaryByKind, WindowsByKind, Olmo2Family):
    """`Family` of Olmo3ForCausalLM: OLMo 2 with windows in three of four layers, and a rotary base for each kind."""

    model_types = ("olmo3",)
    reads = WindowsByKind.reads

    norm_types = (modeling_olmo3.Olmo3RMSNorm,)
    mlp_types = (modeling_olmo3.Olmo3MLP,)
    rotary_types = (modeling_olmo3.Olmo3RotaryEmbedding,)
