"""Fields of a configuration that change what a model computes: each is one that its family reads, or the model is refused.

A field that a family does not know is not always harmless: a soft-cap, a scale of the residual stream or a kind of layer that
is ignored gives numbers that look right. Fields of tokens, training and generation are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

_COMPUTES = re.compile(
    r"attn|attention|rope|rotary|alibi|position|norm|eps\b|window|softcap|cap\b|expert|moe|router|routing|sink|residual|scal"
    r"|multiplier|qk|clip|layer_types|block|hidden|head|layers|intermediate|bias|act\b|activation|tie|parallel|mamba|conv|linear"
    r"|nope|causal|lora|logit|embed|embd|mlp|ffn|gate|swiglu|recurr|skip|dense|sparse|shared|mup|ratio|sandwich|chunk|state_size"
)
"""Words in the names of fields that say how a model computes."""

_NEUTRAL = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "attn_implementation",
    "attention_dropout", "attn_pdrop", "bias_init", "chunk_size_feed_forward", "hidden_dropout", "hidden_dropout_prob",
    "initializer_range", "is_llama_config", "output_attentions", "output_hidden_states", "output_router_logits",
    "rope_interleaved", "router_aux_loss_coef", "router_jitter_noise", "_flash_attn_2_enabled", "use_flash_attention",
    "tie_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention", "experts_implementation",
    "_experts_implementation", "_experts_implementation_internal", "original_max_position_embeddings",
    "embd_pdrop", "embedding_dropout", "transformers.js_config", "prefix", "_sliding_window_pattern",
    "sliding_window_pattern", "architectures",
})  # fmt: skip
"""Fields with such a word that change nothing of what is computed here, or that transformers writes for itself."""

_NEUTRAL_AT_1 = frozenset({"partial_rotary_factor", "full_attn_mod"})
"""Rotation of all of each head; full attention in every layer (of Phi-4-mini; transformers does not read it)."""

_REPEATS = {"experts_per_token": "num_experts_per_tok", "sliding_window_size": "sliding_window"}
"""Fields in published configurations that say once more what another one says; transformers reads the other."""

LLAMA = frozenset({
    "attention_bias", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_parameters", "rope_scaling",
    "rope_theta", "tie_word_embeddings",
})  # fmt: skip
"""What a Llama reads of its configuration."""


def unclassified(config: Mapping[str, Any], reads: Collection[str]) -> list[str]:
    """Names of the fields that may change what is computed and are in neither list; values None, False and {} are none."""
    return sorted(name for name, value in config.items() if _may_change(name, value, config) and name not in reads)


def _may_change(name: str, value: Any, config: Mapping[str, Any]) -> bool:
    if value in (None, False, {}, []) or name in _NEUTRAL or not _COMPUTES.search(name):
        return False
    if name in _NEUTRAL_AT_1 and value == 1:
        return False
    return name not in _REPEATS or value != config.get(_REPEATS[name])
