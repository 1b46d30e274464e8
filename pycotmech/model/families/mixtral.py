"""Mixtral: Mistral with a mixture of experts in place of the MLP.

The mixture is called as it is, on packed rows: each row is routed by itself, so that variants are as independent in it as in a
dense MLP.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.mixtral import modeling_mixtral

from pycotmech.model.families.mistral import MistralFamily


class MixtralFamily(MistralFamily):
    """`Family` of MixtralForCausalLM."""

    model_types = ("mixtral",)
    reads = MistralFamily.reads | {"num_experts_per_tok", "num_local_experts"}
    routed = True

    norm_types = (modeling_mixtral.MixtralRMSNorm,)
    mlp_types = ()  # never computed from its weights here
    rotary_types = (modeling_mixtral.MixtralRotaryEmbedding,)

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        projections = (f"self_attn.{name}_proj" for name in "qkvo")
        return {
            **dict.fromkeys(self.norms, self.norm_types),
            **dict.fromkeys(projections, (nn.Linear,)),
            "mlp": (modeling_mixtral.MixtralSparseMoeBlock,),
            "mlp.gate": (modeling_mixtral.MixtralTopKRouter,),
            "mlp.experts": (modeling_mixtral.MixtralExperts,),
        }
