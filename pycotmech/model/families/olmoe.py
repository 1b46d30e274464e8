"""OLMoE: Llama with norms over all queries and all keys of a row, and a mixture of experts in place of the MLP.

The mixture is called as it is, on packed rows: each row is routed by itself.
"""

from __future__ import annotations

from typing import Any

from transformers.models.olmoe import modeling_olmoe

from pycotmech.model.families.normed_qk import NormedRowQK


class OlmoeFamily(NormedRowQK):
    """`Family` of OlmoeForCausalLM. A model that clips queries, keys and values (`clip_qkv`) is refused."""

    model_types = ("olmoe",)
    reads = NormedRowQK.reads | {"norm_topk_prob", "num_experts", "num_experts_per_tok", "num_local_experts"}
    routed = True

    norm_types = (modeling_olmoe.OlmoeRMSNorm,)
    mlp_types = ()  # never computed from its weights here
    rotary_types = (modeling_olmoe.OlmoeRotaryEmbedding,)

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        attention = {name: types for name, types in super()._parts().items() if not name.startswith("mlp")}
        mixture: dict[str, tuple[type[Any], ...]] = {
            "mlp": (modeling_olmoe.OlmoeSparseMoeBlock,),
            "mlp.gate": (modeling_olmoe.OlmoeTopKRouter,),
            "mlp.experts": (modeling_olmoe.OlmoeExperts,),
        }
        return attention | mixture
