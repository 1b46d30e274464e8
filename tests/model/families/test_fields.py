"""Fields of a configuration, of every family: what transformers writes is known, and what nobody knows is refused by name."""

import pytest
import transformers

import pycotmech as pcm
from pycotmech.model.families import registry
from tests.reference.small_families import CONFIGS, FAMILIES, MHA, small

NAMES = {kind: {**CONFIGS, **MHA}[kind][0] for kind in registry.SUPPORTED}

# what changes attention, norms, positions, routing or logits in one model or another, under the names that they go by
INVENTED = {
    "attention_temperature": 0.5, "attn_logit_soft_cap": 20.0, "is_causal_lm_head_scale": 2.0, "nope_layer_interval": 4,
    "residual_multiplier": 0.2, "embedding_multiplier": 12.0, "logits_scaling": 8.0, "logit_softcap": 30.0, "q_lora_rank": 64,
    "use_qk_layernorm": True, "sandwich_norm": True, "post_attention_normalisation": True, "alibi": True,
    "rotary_interleaved": True, "mrope_section": [2, 3, 3], "n_shared_experts": 1, "routed_scaling_factor": 2.5,
    "router_bias": True, "moe_layer_freq": 2, "ffn_gate_limit": 7.0, "skip_layers": [1], "kv_sharing_layers": 2,
    "value_residual": True, "attention_sink_size": 4, "chunk_length": 128, "sliding_window_overlap": 2, "mup_enabled": True,
    "layer_scale_init": 0.1, "depth_scaled_init_heads": 2, "clip_kqv": 6.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", registry.SUPPORTED)
def test_what_transformers_writes_is_known(kind):
    config = getattr(transformers, f"{NAMES[kind]}Config")()
    assert kind in registry.family_class(config).model_types


@pytest.mark.parametrize("kind", registry.SUPPORTED)
def test_an_unclassified_field_is_refused_by_name(kind):
    plain = getattr(transformers, f"{NAMES[kind]}Config")().to_dict()
    reads = registry.family_class(plain).reads
    for name, value in INVENTED.items():
        if name in reads:  # a family may have what others do not
            continue
        with pytest.raises(ValueError, match=rf"has {name} = .* which models of type '{kind}' are not known to have"):
            registry.family_class({**plain, name: value})


def test_a_field_that_repeats_another_must_say_the_same():
    gemma, oss = ({"model_type": kind, "num_experts_per_tok": 4, "sliding_window": 128} for kind in ("gemma2", "gpt_oss"))
    del gemma["num_experts_per_tok"]
    registry.family_class({**gemma, "sliding_window_size": 128})
    registry.family_class({**oss, "experts_per_token": 4})
    others = {**gemma, "sliding_window_size": 64}, {**oss, "experts_per_token": 2}
    for config in (*others, {"model_type": "llama", "sliding_window_size": 9}):
        with pytest.raises(ValueError, match="are not known to have"):
            registry.family_class(config)


@pytest.mark.parametrize("kind", registry.SUPPORTED)
def test_a_rotation_of_a_part_is_refused_where_the_model_rotates_all(kind):
    """transformers puts the factor into the rotary parameters of any model, and most models do not look at it."""
    reads = kind in ("glm4", "gpt_neox", "phi", "phi3")
    for part in ({"partial_rotary_factor": 0.5}, {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}):
        if reads:
            registry.family_class({"model_type": kind, **part})
            continue
        with pytest.raises(ValueError, match=r"partial_rotary_factor = 0\.5"):
            registry.family_class({"model_type": kind, **part})
    registry.family_class({"model_type": kind, "partial_rotary_factor": 1.0})


def test_a_scale_of_queries_by_position_is_refused_where_the_model_has_none():
    rope = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    with pytest.raises(ValueError, match=r"llama_4_scaling_beta = 0\.1 in its rotary parameters"):
        registry.family_class({"model_type": "mistral", "rope_parameters": rope})
    registry.family_class({"model_type": "ministral3", "rope_parameters": rope})


@pytest.mark.parametrize("window", [0, -1, 2.5])
def test_a_window_that_is_no_number_of_keys(window):
    """transformers would mask every key of a window of 0."""
    with pytest.raises(ValueError, match=r"sliding_window is .*; expected how many keys a query sees, 1 or more, or null"):
        registry.family_class({"model_type": "mistral", "sliding_window": window})
    registry.family_class({"model_type": "qwen2", "sliding_window": window, "use_sliding_window": False})


def test_every_family_is_in_the_suite():
    assert set(registry.SUPPORTED) <= set(FAMILIES)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "gpt_oss", "ministral", "olmo3", "qwen2"])
def test_layers_that_were_moved_without_their_kinds_are_refused(kind):
    """The model masks by `layer_types`, some of its attention functions by the layer: what it computes is not defined."""
    hf = small(kind)
    model = pcm.Model(hf)
    kinds = hf.config.layer_types
    layer = next(l for l in range(1, 3) if kinds[l] != kinds[0])
    hf.model.layers[0].self_attn.sliding_window, hf.model.layers[layer].self_attn.sliding_window = (
        hf.model.layers[layer].self_attn.sliding_window, hf.model.layers[0].self_attn.sliding_window,
    )  # fmt: skip
    for again in (lambda: model.run([1, 2, 3]), lambda: pcm.Model(hf)):
        with pytest.raises(ValueError, match=r"layer 0 has .*sliding window.* itself and .* by the configuration"):
            again()
