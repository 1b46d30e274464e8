"""Phi-1, Phi-1.5, Phi-2: attention and MLP side by side on one LayerNorm, biases, rotation of a part of each head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers.models.phi import modeling_phi

from pycotmech.model.families.layer_norm import RotatedLayerNorm
from pycotmech.model.families.one_module import projected_heads


class PhiFamily(RotatedLayerNorm):
    """`Family` of PhiForCausalLM. The unembedding has a bias. Norms of queries and keys (`qk_layernorm`) are refused."""

    model_types = ("phi",)
    reads = frozenset({
        "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta",
        "tie_word_embeddings",
    })  # fmt: skip

    trunk, embedding, stack, last_norm = "model", "embed_tokens", "layers", "final_layernorm"
    attention_name = "self_attn"
    norms = ("input_layernorm", "input_layernorm")
    inputs = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output = "self_attn.dense"
    mlp_parts = ("mlp.fc1", "mlp.fc2")
    activation = "mlp.activation_fn"
    embedding_dropout = "embed_dropout"
    dropouts = ("resid_dropout",)
    projection_type = nn.Linear
    classes: ClassVar = {"mlp": modeling_phi.PhiMLP}
    rotary_type = modeling_phi.PhiRotaryEmbedding

    def _d_mlp(self, config: Any) -> int:
        return config.intermediate_size

    def _is_parallel(self, config: Any) -> bool:
        return True

    def tap(self, site: str, l: int) -> tuple[str, Literal["input", "output"]]:
        name = f"model.layers.{l}.self_attn.{site}_proj"
        return (name, "output") if site in ("q", "k", "v") else super().tap(site, l)

    def qkv(self, l: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        projections = [self.part(l, name) for name in self.inputs]
        return projected_heads(self._norm(self.part(l, self.norms[0]), x), projections, self.cfg.d_head)
