"""gpt-oss: attention sinks, windows in every other layer, biases, a mixture of experts with biases and a clamped gate.

The mixture is called as it is, on packed rows: each row is routed by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gpt_oss import modeling_gpt_oss

from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.windows import WindowsByKind
from pycotmech.model.placement import weight_of


class GptOssFamily(WindowsByKind):
    """`Family` of GptOssForCausalLM.

    Each query head has a sink: a learned logit that joins the softmax and has no value, so that the weights of its keys add up
    to less than 1.
    """

    model_types = ("gpt_oss",)
    reads = WindowsByKind.reads | {"num_experts_per_tok", "num_local_experts", "swiglu_alpha", "swiglu_limit"}
    routed = True

    norm_types = (modeling_gpt_oss.GptOssRMSNorm,)
    mlp_types = ()  # never computed from its weights here
    rotary_types = (modeling_gpt_oss.GptOssRotaryEmbedding,)

    def _parts(self) -> dict[str, tuple[type[Any], ...]]:
        projections = (f"self_attn.{name}_proj" for name in "qkvo")
        experts: Any = modeling_gpt_oss.GptOssExperts  # a decorated class, whose type is lost
        return {
            **dict.fromkeys(self.norms, self.norm_types),
            **dict.fromkeys(projections, (nn.Linear,)),
            "mlp": (modeling_gpt_oss.GptOssMLP,),
            "mlp.router": (modeling_gpt_oss.GptOssTopKRouter,),
            "mlp.experts": (experts,),
        }

    def attention(self, l: int) -> LayerAttention:
        attention = self.layers[l].self_attn
        sinks = weight_of(attention, "sinks").detach()
        return LayerAttention(attention.scaling, window=self.window(l), sinks=sinks)

    def rotary(self, positions: Tensor) -> Tensor:
        angles = super().rotary(positions)  # one for each pair of features that is turned
        return torch.cat((angles, angles), -1)

    def _mlp(self, l: int, n: Tensor) -> Tensor:
        added, _ = self.layers[l].mlp(n[None])
        return added[0]

    def _wide_mlp(self, layer: Any, x: Tensor) -> Tensor:
        return super()._wide_mlp(layer, x)[0]
