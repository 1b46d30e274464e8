"""SmolLM3: Llama in which every fourth layer has no rotary embedding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from transformers.models.smollm3 import modeling_smollm3

from pycotmech.model.families.qwen2 import Qwen2Family


class SmolLM3Family(Qwen2Family):
    """`Family` of SmolLM3ForCausalLM."""

    model_types = ("smollm3",)
    reads = Qwen2Family.reads | {"no_rope_layers", "no_rope_layer_interval"}

    norm_types = (modeling_smollm3.SmolLM3RMSNorm,)
    mlp_types = (modeling_smollm3.SmolLM3MLP,)
    rotary_types = (modeling_smollm3.SmolLM3RotaryEmbedding,)

    def constants(self) -> tuple[float, ...]:
        return (*super().constants(), *(float(layer.self_attn.use_rope) for layer in self.layers))

    def rotate(
        self, l: int, angles: Tensor, rows: slice | Tensor | None, *queries: Tensor, keys: Sequence[Tensor] = ()
    ) -> None:
        if self.layers[l].self_attn.use_rope:
            super().rotate(l, angles, rows, *queries, keys=keys)
