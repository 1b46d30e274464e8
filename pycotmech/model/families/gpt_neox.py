"""GPT-NeoX and Pythia: LayerNorm, rotation of a part of each head, attention and MLP side by side."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.models.gpt_neox import modeling_gpt_neox

from pycotmech.model.families.layer_norm import JointLayerNorm, RotatedLayerNorm


class GPTNeoXFamily(JointLayerNorm, RotatedLayerNorm):
    """`Family` of GPTNeoXForCausalLM, which Pythia is. The configuration says whether blocks are parallel."""

    model_types = ("gpt_neox",)
    reads = frozenset({
        "attention_bias", "hidden_act", "hidden_size", "intermediate_size", "layer_norm_eps", "max_position_embeddings",
        "num_attention_heads", "num_hidden_layers", "partial_rotary_factor", "rope_parameters", "rope_scaling", "rope_theta",
        "rotary_emb_base", "rotary_pct", "tie_word_embeddings", "use_parallel_residual",
    })  # fmt: skip

    trunk, embedding, stack, last_norm = "gpt_neox", "embed_in", "layers", "final_layer_norm"
    attention_name = "attention"
    norms = ("input_layernorm", "post_attention_layernorm")
    inputs, output = ("attention.query_key_value",), "attention.dense"
    mlp_parts = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
    embedding_dropout = "emb_dropout"
    dropouts = ("post_attention_dropout", "post_mlp_dropout")
    projection_type = nn.Linear
    classes: ClassVar = {"mlp": modeling_gpt_neox.GPTNeoXMLP}
    rotary_type = modeling_gpt_neox.GPTNeoXRotaryEmbedding

    def _d_mlp(self, config: Any) -> int:
        return config.intermediate_size

    def _is_parallel(self, config: Any) -> bool:
        return config.use_parallel_residual

    def _split(self, joint: Tensor) -> tuple[Tensor, ...]:
        return joint.view(len(joint), self.cfg.n_heads, 3, self.cfg.d_head).unbind(2)  # by head: q, k, v
