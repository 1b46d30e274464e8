"""A tiny random model of every family, all of one shape: 3 layers, 4 query and 2 key-value heads of 16, width 48, 61 tokens.

Windows are shorter than the prompts of the tests, soft-caps bend, norms are not 1, and no bias is 0.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from tests.reference.windowed import windowed

WINDOWS = [6, 0, 9]
_SHAPE = dict(
    vocab_size=61, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=16, max_position_embeddings=256,
)  # fmt: skip
_SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager")
_PART_ROTATED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

# model_type -> name in transformers, what its configuration has besides the shape
CONFIGS: dict[str, tuple[str, dict]] = {
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", dict(sliding_window=6, layer_types=_MIXED, query_pre_attn_scalar=9, attn_logit_softcapping=3.0,
                              final_logit_softcapping=5.0)),
    "gemma3_text": ("Gemma3Text", dict(sliding_window=6, layer_types=_MIXED, query_pre_attn_scalar=9)),
    "llama": ("Llama", dict(rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                              "high_freq_factor": 4.0, "original_max_position_embeddings": 64})),
    "glm4": ("Glm4", dict(intermediate_size=96, attention_bias=True,
                          rope_parameters={**_PART_ROTATED, "partial_rotary_factor": 0.5})),
    "gpt_oss": ("GptOss", dict(sliding_window=6, layer_types=_MIXED, num_local_experts=4, num_experts_per_tok=2,
                               swiglu_limit=0.8,
                               rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0,
                                                "beta_slow": 1.0, "truncate": False,
                                                "original_max_position_embeddings": 64})),
    "granite": ("Granite", dict(embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=0.7,
                                attention_bias=True, mlp_bias=True)),
    "ministral": ("Ministral", dict(sliding_window=6, layer_types=_MIXED)),
    "ministral3": ("Ministral3", dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "beta_fast": 32.0,
                                                       "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                                                       "llama_4_scaling_beta": 0.4,
                                                       "original_max_position_embeddings": 8})),
    "mistral": ("Mistral", dict(sliding_window=6)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2, sliding_window=7)),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", dict(sliding_window=6, layer_types=_MIXED)),
    "olmoe": ("Olmoe", dict(hidden_size=64, num_experts=4, num_experts_per_tok=2)),  # heads of d_model / H
    "phi3": ("Phi3", dict(sliding_window=7,
                          rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5})),
    "qwen2": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": ("Qwen3", {}),
    "qwen3_moe": ("Qwen3Moe", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=40, mlp_only_layers=[1])),
    "smollm3": ("SmolLM3", dict(no_rope_layer_interval=2)),
}  # fmt: skip

_NEOX = dict(
    vocab_size=61, hidden_size=64, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=256, rope_parameters=_PART_ROTATED,
)  # fmt: skip

# Those whose heads share the width of the residual stream, 64 here; all have their own keys and values.
MHA: dict[str, tuple[str, dict]] = {
    "gpt_neox": ("GPTNeoX", _NEOX),
    "gpt_neox_sequential": ("GPTNeoX", {**_NEOX, "use_parallel_residual": False}),
    "phi": ("Phi", {**_NEOX, "rope_parameters": {**_PART_ROTATED, "partial_rotary_factor": 0.5}}),
    "gpt2": ("GPT2", dict(vocab_size=61, n_embd=64, n_inner=80, n_layer=3, n_head=4, n_positions=256)),
}

FAMILIES = ("windowed", *CONFIGS, *MHA)
ONE_QUICK_TEST = ("gemma", "glm4", "granite", "ministral3", "phi")
"""Families with one quick test of exactness each (`tests/model/test_families.py`); the suites of all functions are slow for
them, in float32 too."""


def by_family() -> list:
    """The families but "windowed" as parameters of a test, `ONE_QUICK_TEST` marked slow."""
    return [pytest.param(f, marks=pytest.mark.slow if f in ONE_QUICK_TEST else ()) for f in FAMILIES if f != "windowed"]


def small(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes) -> nn.Module:
    """A seeded Hugging Face model of the family in eval mode, weights without gradients. sizes: fields of its configuration."""
    if family == "windowed":
        return windowed(windows=WINDOWS, n_heads=4, n_key_value_heads=2)
    if family in MHA:
        name, options = MHA[family]
        config = getattr(transformers, f"{name}Config")(**{**_SPECIAL, **options, **sizes})
    else:
        name, options = CONFIGS[family]
        config = getattr(transformers, f"{name}Config")(**{**_SPECIAL, **_SHAPE, **options, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config)
    if "experts" in str(options):
        model.set_experts_implementation("eager")  # the grouped products of the others take no float64
    fill(model, norm=0.0 if "gemma" in family else 1.0, dtype=dtype, seed=seed)
    return model


def fill(model: nn.Module, *, norm: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
    """Draws all weights of a model, in place, norms about `norm`, and freezes it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if key.endswith("bias"):
                weight.copy_(0.3 * noise)
            elif key.endswith("sinks"):
                weight.copy_(1.0 + noise)
            elif "norm" in key or ".ln_" in key:
                weight.copy_(norm + 0.2 * noise)
            elif any(name in key for name in ("embed", "lm_head", "wte", "wpe")):
                weight.copy_(noise / 48**0.25)
            else:
                gain = 2.0 if any(name in key for name in ("q_proj", "k_proj", "qkv", "c_attn", "query_key")) else 1.0
                inputs = weight.shape[0] if "c_" in key else weight.shape[-1]  # Conv1D has them first
                weight.copy_(gain * noise / inputs**0.5)
            weight.data = weight.to(dtype)
    model.config.dtype = dtype
    model.eval().requires_grad_(False)
