"""config.json of published models, of every family: each is read field by field, and gives the sizes that the model has."""

import pytest
import torch
import transformers

import pycotmech as pcm
from pycotmech.model.families import registry
from pycotmech.model.text_part import text_config
from tests.reference.small_families import small

YARN_OSS = dict(
    beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096, rope_type="yarn", truncate=False,
)  # fmt: skip
YARN_OLMO = dict(
    attention_factor=1.2079441541679836, beta_fast=32.0, beta_slow=1.0, factor=8.0, original_max_position_embeddings=8192,
    rope_type="yarn",
)  # fmt: skip
LLAMA3 = dict(
    factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=8192, rope_type="llama3",
)  # fmt: skip
GEMMA3 = dict(
    attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None, bos_token_id=2, eos_token_id=1,
    final_logit_softcapping=None, head_dim=256, hidden_activation="gelu_pytorch_tanh", initializer_range=0.02,
    max_position_embeddings=32768, num_attention_heads=4, num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256,
    rms_norm_eps=1e-6, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512, use_cache=True,
    vocab_size=262144,
)  # fmt: skip
GEMMA2 = dict(
    architectures=["Gemma2ForCausalLM"], attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=50.0,
    bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", initializer_range=0.02,
    max_position_embeddings=8192, pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0,
    sliding_window=4096, torch_dtype="bfloat16", transformers_version="4.42.4", use_cache=True, vocab_size=256000,
)  # fmt: skip
QWEN = dict(
    attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645, hidden_act="silu", initializer_range=0.02,
    rms_norm_eps=1e-6, torch_dtype="bfloat16", use_cache=True, use_sliding_window=False,
)  # fmt: skip

YARN_MINISTRAL = dict(
    beta_fast=32.0, beta_slow=1.0, factor=16.0, llama_4_scaling_beta=0.1, mscale=1.0, mscale_all_dim=1.0,
    original_max_position_embeddings=16384, rope_theta=1000000.0, rope_type="yarn", type="yarn",
)  # fmt: skip
MINISTRAL = dict(
    attention_dropout=0.0, head_dim=128, hidden_act="silu", initializer_range=0.02, max_position_embeddings=262144,
    num_attention_heads=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_parameters=YARN_MINISTRAL, sliding_window=None,
    use_cache=True, vocab_size=131072,
)  # fmt: skip
GRANITE = dict(
    architectures=["GraniteForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", initializer_range=0.02, max_position_embeddings=131072,
    mlp_bias=False, num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8, pad_token_id=0,
    residual_multiplier=0.22, rms_norm_eps=1e-5, rope_scaling=None, rope_theta=10000000.0, tie_word_embeddings=True,
    torch_dtype="bfloat16", use_cache=True, vocab_size=49159,
)  # fmt: skip
GLM = dict(
    architectures=["Glm4ForCausalLM"], attention_dropout=0.0, eos_token_id=[151329, 151336, 151338], head_dim=128,
    hidden_act="silu", initializer_range=0.02, max_position_embeddings=32768, num_key_value_heads=2, pad_token_id=151329,
    partial_rotary_factor=0.5, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, torch_dtype="bfloat16",
    use_cache=True, vocab_size=151552,
)  # fmt: skip
GEMMA1 = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
    head_dim=256, initializer_range=0.02, max_position_embeddings=8192, pad_token_id=0, rms_norm_eps=1e-6, rope_scaling=None,
    rope_theta=10000.0, torch_dtype="bfloat16", use_cache=True, vocab_size=256000,
)  # fmt: skip

# name -> model_type, its fields, (layers, heads, key-value heads, d_head)
PUBLISHED: dict[str, tuple[str, dict, tuple[int, int, int, int]]] = {
    "Llama-3.1-8B": ("llama", dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=128001, hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=14336,
        max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8,
        pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=LLAMA3, rope_theta=500000.0, tie_word_embeddings=False,
        torch_dtype="bfloat16", use_cache=True, vocab_size=128256,
    ), (32, 32, 8, 128)),
    "Qwen2.5-7B": ("qwen2", dict(
        QWEN, hidden_size=3584, intermediate_size=18944, max_position_embeddings=131072, max_window_layers=28,
        num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4, rope_theta=1000000.0, sliding_window=131072,
        tie_word_embeddings=False, use_mrope=False, vocab_size=152064,
    ), (28, 28, 4, 128)),
    "Qwen3-8B": ("qwen3", dict(
        QWEN, attention_bias=False, head_dim=128, hidden_size=4096, intermediate_size=12288, max_position_embeddings=40960,
        max_window_layers=36, num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rope_scaling=None,
        rope_theta=1000000, sliding_window=None, tie_word_embeddings=False, vocab_size=151936,
    ), (36, 32, 8, 128)),
    "Qwen3-30B-A3B": ("qwen3_moe", dict(
        QWEN, attention_bias=False, decoder_sparse_step=1, head_dim=128, hidden_size=2048, intermediate_size=6144,
        max_position_embeddings=40960, max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768,
        norm_topk_prob=True, num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
        num_key_value_heads=4, output_router_logits=False, rope_scaling=None, rope_theta=1000000.0,
        router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False, vocab_size=151936,
    ), (48, 32, 4, 128)),
    "gemma-3-1b": ("gemma3_text", dict(
        GEMMA3, architectures=["Gemma3ForCausalLM"], cache_implementation="hybrid", hidden_size=1152, intermediate_size=6912,
        num_hidden_layers=26, sliding_window_pattern=6, torch_dtype="bfloat16", transformers_version="4.50.0.dev0",
    ), (26, 4, 1, 256)),
    "gemma-3-270m": ("gemma3_text", dict(
        GEMMA3, _sliding_window_pattern=6, hidden_size=640, intermediate_size=2048, num_hidden_layers=18,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3, use_bidirectional_attention=False,
    ), (18, 4, 1, 256)),
    "gemma-2-9b": ("gemma2", dict(
        GEMMA2, hidden_size=3584, intermediate_size=14336, num_attention_heads=16, num_hidden_layers=42, num_key_value_heads=8,
        sliding_window_size=4096,
    ), (42, 16, 8, 256)),
    "gemma-2-2b": ("gemma2", dict(
        GEMMA2, hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4,
    ), (26, 8, 4, 256)),
    "gemma-2b": ("gemma", dict(
        GEMMA1, hidden_act="gelu", hidden_activation=None, hidden_size=2048, intermediate_size=16384, num_attention_heads=8,
        num_hidden_layers=18, num_key_value_heads=1,
    ), (18, 8, 1, 256)),
    "gemma-1.1-7b": ("gemma", dict(
        GEMMA1, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=3072,
        intermediate_size=24576, num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=16,
    ), (28, 16, 16, 256)),
    "GLM-Z1-9B-0414": ("glm4", dict(
        GLM, attention_bias=True, hidden_size=4096, intermediate_size=13696, num_attention_heads=32, num_hidden_layers=40,
    ), (40, 32, 2, 128)),
    "GLM-4-32B-0414": ("glm4", dict(
        GLM, attention_bias=False, hidden_size=6144, intermediate_size=23040, num_attention_heads=48, num_hidden_layers=61,
    ), (61, 48, 2, 128)),
    "granite-3.3-2b": ("granite", dict(
        GRANITE, attention_multiplier=0.015625, hidden_size=2048, intermediate_size=8192, logits_scaling=8.0,
    ), (40, 32, 8, 64)),
    "granite-3.3-8b": ("granite", dict(
        GRANITE, attention_multiplier=0.0078125, hidden_size=4096, intermediate_size=12800, logits_scaling=16.0,
    ), (40, 32, 8, 128)),
    "gpt2": ("gpt2", dict(
        activation_function="gelu_new", architectures=["GPT2LMHeadModel"], attn_pdrop=0.1, bos_token_id=50256, embd_pdrop=0.1,
        eos_token_id=50256, initializer_range=0.02, layer_norm_epsilon=1e-05, n_ctx=1024, n_embd=768, n_head=12, n_layer=12,
        n_positions=1024, resid_pdrop=0.1, summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True,
        summary_type="cls_index", summary_use_proj=True, vocab_size=50257,
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
    ), (12, 12, 12, 64)),
    "gpt-oss-20b": ("gpt_oss", dict(
        architectures=["GptOssForCausalLM"], attention_bias=True, attention_dropout=0.0, eos_token_id=200002,
        experts_per_token=4, head_dim=64, hidden_act="silu", hidden_size=2880, initial_context_length=4096,
        initializer_range=0.02, intermediate_size=2880, layer_types=["sliding_attention", "full_attention"] * 12,
        max_position_embeddings=131072, num_attention_heads=64, num_experts_per_tok=4, num_hidden_layers=24,
        num_key_value_heads=8, num_local_experts=32, output_router_logits=False, pad_token_id=199999, rms_norm_eps=1e-5,
        rope_scaling=YARN_OSS, rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0,
        tie_word_embeddings=False, use_cache=True, vocab_size=201088,
    ), (24, 64, 8, 64)),
    "pythia-70m": ("gpt_neox", dict(
        architectures=["GPTNeoXForCausalLM"], bos_token_id=0, classifier_dropout=0.1, eos_token_id=0, hidden_act="gelu",
        hidden_size=512, initializer_range=0.02, intermediate_size=2048, layer_norm_eps=1e-05, max_position_embeddings=2048,
        num_attention_heads=8, num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False,
        torch_dtype="float16", transformers_version="4.24.0", use_cache=True, use_parallel_residual=True, vocab_size=50304,
    ), (6, 8, 8, 64)),
    "OLMo-2-1124-7B": ("olmo2", dict(
        architectures=["Olmo2ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=100257,
        hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008, max_position_embeddings=4096,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-6,
        rope_scaling=None, rope_theta=500000, tie_word_embeddings=False, torch_dtype="float32", use_cache=False,
        vocab_size=100352,
    ), (32, 32, 32, 128)),
    "Olmo-3-7B": ("olmo3", dict(
        architectures=["Olmo3ForCausalLM"], attention_bias=False, attention_dropout=0.0, eos_token_id=100257,
        hidden_act="silu", hidden_size=4096, initializer_range=0.02, intermediate_size=11008,
        layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8, max_position_embeddings=65536,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-6,
        rope_scaling=YARN_OLMO, rope_theta=500000, sliding_window=4096, tie_word_embeddings=False, use_cache=False,
        vocab_size=100278,
    ), (32, 32, 32, 128)),
    "OLMoE-1B-7B": ("olmoe", dict(
        architectures=["OlmoeForCausalLM"], attention_bias=False, attention_dropout=0.0, clip_qkv=None, eos_token_id=50279,
        hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=1024, max_position_embeddings=4096,
        norm_topk_prob=False, num_attention_heads=16, num_experts=64, num_experts_per_tok=8, num_hidden_layers=16,
        num_key_value_heads=16, output_router_logits=False, pad_token_id=1, rms_norm_eps=1e-5, rope_scaling=None,
        rope_theta=10000.0, router_aux_loss_coef=0.01, tie_word_embeddings=False, use_cache=True, vocab_size=50304,
    ), (16, 16, 16, 128)),
    "Mistral-7B-v0.1": ("mistral", dict(
        architectures=["MistralForCausalLM"], bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
        initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000.0, sliding_window=4096,
        tie_word_embeddings=False, torch_dtype="bfloat16", use_cache=True, vocab_size=32000,
    ), (32, 32, 8, 128)),
    "Ministral-8B": ("ministral", dict(
        attention_dropout=0.0, head_dim=128, hidden_act="silu", hidden_size=4096, intermediate_size=12288,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"] * 9,
        max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rms_norm_eps=1e-5,
        rope_theta=100000000.0, sliding_window=32768, tie_word_embeddings=False, use_cache=True, vocab_size=131072,
    ), (36, 32, 8, 128)),
    "Ministral-3-3B-Reasoning": ("ministral3", dict(
        MINISTRAL, hidden_size=3072, intermediate_size=9216, num_hidden_layers=26, tie_word_embeddings=True,
    ), (26, 32, 8, 128)),
    "Ministral-3-14B-Reasoning": ("ministral3", dict(
        MINISTRAL, hidden_size=5120, intermediate_size=16384, num_hidden_layers=40, tie_word_embeddings=False,
    ), (40, 32, 8, 128)),
    "Mixtral-8x7B": ("mixtral", dict(
        architectures=["MixtralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
        hidden_size=4096, initializer_range=0.02, intermediate_size=14336, max_position_embeddings=32768,
        num_attention_heads=32, num_experts_per_tok=2, num_hidden_layers=32, num_key_value_heads=8, num_local_experts=8,
        output_router_logits=False, rms_norm_eps=1e-5, rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None,
        tie_word_embeddings=False, use_cache=True, vocab_size=32000,
    ), (32, 32, 8, 128)),
    "phi-2": ("phi", dict(
        architectures=["PhiForCausalLM"], attention_dropout=0.0, bos_token_id=50256, embd_pdrop=0.0, eos_token_id=50256,
        hidden_act="gelu_new", hidden_size=2560, initializer_range=0.02, intermediate_size=10240, layer_norm_eps=1e-5,
        max_position_embeddings=2048, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
        partial_rotary_factor=0.4, qk_layernorm=False, resid_pdrop=0.1, rope_scaling=None, rope_theta=10000.0,
        tie_word_embeddings=False, torch_dtype="float16", use_cache=True, vocab_size=51200,
    ), (32, 32, 32, 80)),
    "Phi-3-mini-4k": ("phi3", dict(
        architectures=["Phi3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, embd_pdrop=0.0,
        eos_token_id=32000, hidden_act="silu", hidden_size=3072, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
        original_max_position_embeddings=4096, pad_token_id=32000, resid_pdrop=0.0, rms_norm_eps=1e-5, rope_scaling=None,
        rope_theta=10000.0, sliding_window=2047, tie_word_embeddings=False, use_cache=True, vocab_size=32064,
        auto_map={"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
    ), (32, 32, 32, 96)),
    "Phi-3-mini-128k": ("phi3", dict(
        architectures=["Phi3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, embd_pdrop=0.0,
        eos_token_id=32000, hidden_act="silu", hidden_size=3072, initializer_range=0.02, intermediate_size=8192,
        max_position_embeddings=131072, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
        original_max_position_embeddings=4096, pad_token_id=32000, resid_pdrop=0.0, rms_norm_eps=1e-5,
        rope_scaling={"long_factor": [1.07] * 24 + [60.0] * 24, "short_factor": [1.1] * 24 + [3.1] * 24, "type": "longrope"},
        rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=False, use_cache=True, vocab_size=32064,
    ), (32, 32, 32, 96)),
    "Phi-4-mini": ("phi3", dict(
        _name_or_path="Phi-4-mini-instruct", architectures=["Phi3ForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=199999, embd_pdrop=0.0, eos_token_id=199999, full_attn_mod=1, hidden_act="silu", hidden_size=3072,
        initializer_range=0.02, intermediate_size=8192, interpolate_factor=1, lm_head_bias=False,
        max_position_embeddings=131072, mlp_bias=False, num_attention_heads=24, num_hidden_layers=32, num_key_value_heads=8,
        original_max_position_embeddings=4096, pad_token_id=199999, partial_rotary_factor=0.75, resid_pdrop=0.0,
        rms_norm_eps=1e-5,
        rope_scaling={"long_factor": [1.0] * 24 + [32.0] * 24, "short_factor": [1.0] * 48, "type": "longrope"},
        rope_theta=10000.0, sliding_window=262144, tie_word_embeddings=True, use_cache=True, vocab_size=200064,
    ), (32, 24, 8, 128)),
    "R1-0528-Qwen3-8B": ("qwen3", dict(
        QWEN, attention_bias=False, head_dim=128, hidden_size=4096, intermediate_size=12288, max_position_embeddings=131072,
        max_window_layers=36, num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8,
        rope_scaling={
            "attn_factor": 0.8782488562869419, "factor": 4.0, "original_max_position_embeddings": 32768, "rope_type": "yarn",
        },
        rope_theta=1000000, sliding_window=None, tie_word_embeddings=False, vocab_size=151936,
    ), (36, 32, 8, 128)),
    "R1-Distill-Qwen-1.5B": ("qwen2", dict(
        QWEN, hidden_size=1536, intermediate_size=8960, max_position_embeddings=131072, max_window_layers=21,
        num_attention_heads=12, num_hidden_layers=28, num_key_value_heads=2, rope_theta=10000, sliding_window=4096,
        tie_word_embeddings=False, use_mrope=False, vocab_size=151936,
    ), (28, 12, 2, 128)),
    "SmolLM3-3B": ("smollm3", dict(
        architectures=["SmolLM3ForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=None,
        eos_token_id=128012, hidden_act="silu", hidden_size=2048, initializer_range=0.02, intermediate_size=11008,
        layer_types=["full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28, mlp_bias=False,
        no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16, num_hidden_layers=36,
        num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-6, rope_scaling=None,
        rope_theta=5000000.0, sliding_window=None, use_cache=False, use_sliding_window=False, vocab_size=128256,
    ), (36, 16, 4, 128)),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_read_field_by_field(name):
    kind, fields, sizes = PUBLISHED[name]
    fields = {"model_type": kind, **fields}
    assert kind in registry.family_class(fields, name).model_types
    config = transformers.AutoConfig.for_model(**fields)
    config.num_hidden_layers = 2  # the sizes of a layer do not depend on how many there are
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    family = registry.family_of(model)
    assert (fields.get("num_hidden_layers", fields.get("n_layer")), *family_sizes(family)) == sizes
    with pytest.raises(ValueError, match="attention_sink = 4"):
        registry.family_class({**fields, "attention_sink": 4})


def family_sizes(family) -> tuple[int, int, int]:
    cfg = family.cfg
    return cfg.n_heads, cfg.n_key_value_heads, cfg.d_head


def test_every_family_has_a_published_model():
    assert {kind for kind, _, _ in PUBLISHED.values()} == set(registry.SUPPORTED)


def test_what_they_say_beyond_sizes():
    """Fields under names of their own come where the model reads them."""
    config = transformers.AutoConfig.for_model(model_type="gpt_neox", **PUBLISHED["pythia-70m"][1])
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    config = transformers.AutoConfig.for_model(model_type="gemma3_text", **PUBLISHED["gemma-3-1b"][1])
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10000
    assert config.rope_parameters["full_attention"]["rope_theta"] == 1000000
    assert config.layer_types[:6] == ["sliding_attention"] * 5 + ["full_attention"]


def test_gpt_oss_whose_weights_were_made_ordinary():
    """As transformers leaves it after Mxfp4Config(dequantize=True): the configuration still names the quantisation."""
    hf = small("gpt_oss")
    hf.config.quantization_config = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"], "dequantize": True}
    hf.config.experts_per_token = hf.config.num_experts_per_tok
    assert pcm.Model(hf).run(torch.arange(9), positions=-1).logits.shape == (1, 61)


def test_the_language_model_of_a_model_of_text_and_images():
    """Gemma 3 12B, whose text_config leaves out what is the class's own default."""
    fields = dict(
        architectures=["Gemma3ForConditionalGeneration"], boi_token_index=255999, eoi_token_index=256000,
        eos_token_id=[1, 106], image_token_index=262144, initializer_range=0.02, mm_tokens_per_image=256, model_type="gemma3",
        text_config=dict(
            hidden_size=3840, intermediate_size=15360, model_type="gemma3_text", num_attention_heads=16, num_hidden_layers=48,
            num_key_value_heads=8, rope_scaling={"factor": 8.0, "rope_type": "linear"}, sliding_window=1024,
        ),
        vision_config=dict(hidden_size=1152, image_size=896, model_type="siglip_vision_model", num_hidden_layers=27),
    )  # fmt: skip
    assert "gemma3_text" in registry.family_class(text_config(fields)).model_types
