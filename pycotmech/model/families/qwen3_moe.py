"""Qwen3-MoE: Qwen3 with a mixture of experts in place of the MLP, in all layers or in some."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.qwen3_moe import modeling_qwen3_moe

from pycotmech.model.families.one_module import is_exactly
from pycotmech.model.families.qwen3 import Qwen3Family


class Qwen3MoeFamily(Qwen3Family):
    """`Family` of Qwen3MoeForCausalLM. The mixture is called as it is: each row is routed by itself."""

    model_types = ("qwen3_moe",)
    reads = Qwen3Family.reads | {
        "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
        "num_experts_per_tok", "num_local_experts",
    }  # fmt: skip
    routed = True

    norm_types = (modeling_qwen3_moe.Qwen3MoeRMSNorm,)
    mlp_types = (modeling_qwen3_moe.Qwen3MoeMLP,)
    rotary_types = (modeling_qwen3_moe.Qwen3MoeRotaryEmbedding,)

    def window(self, l: int) -> int:
        return self.hf.config.sliding_window or 0  # in all layers, whatever their kinds

    def _d_expert(self, config: Any) -> int:
        return config.moe_intermediate_size

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        return {name: types for name, types in super()._parts().items() if not name.startswith("mlp")}

    def is_plain(self) -> bool:
        mixture: dict[str, tuple[type[Any], ...]] = {
            "mlp": (modeling_qwen3_moe.Qwen3MoeSparseMoeBlock,),
            "mlp.gate": (modeling_qwen3_moe.Qwen3MoeTopKRouter,),
            "mlp.experts": (modeling_qwen3_moe.Qwen3MoeExperts,),
        }
        dense = {name: types for name, types in Qwen3Family._parts(self).items() if name.startswith("mlp")}

        def plain(layer: nn.Module) -> bool:
            parts = mixture if hasattr(layer.mlp, "experts") else dense
            return all(is_exactly(layer.get_submodule(name), *types) for name, types in parts.items())

        return super().is_plain() and all(map(plain, self.layers))
