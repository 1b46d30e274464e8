"""Models that no family computes are refused from their configuration: by name, at once, before a weight is read."""

import json
import time

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from pycotmech.model.families import registry
from pycotmech.model.families.refused import KINDS
from pycotmech.model.loading import load

SIZES = dict(vocab_size=61, hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)

# what config.json has -> the error, as a researcher reads it
CASES = {
    "Qwen3-Next": (dict(model_type="qwen3_next"), ValueError, "'qwen3_next': it has layers of linear attention"),
    "Qwen3.5": (dict(model_type="qwen3_5"), ValueError, "'qwen3_5': it has layers of linear attention"),
    "Llama 4": (dict(model_type="llama4"), ValueError, "'llama4': it has layers of chunked attention"),
    "Granite 4 hybrid": (dict(model_type="granitemoehybrid"), ValueError, "it has layers of a state-space model"),
    "Falcon-H1": (dict(model_type="falcon_h1"), ValueError, "it has layers of a state-space model"),
    "Jamba": (dict(model_type="jamba"), ValueError, "it has layers of a state-space model"),
    "Bamba": (dict(model_type="bamba"), ValueError, "it has layers of a state-space model"),
    "Nemotron-H": (dict(model_type="nemotron_h"), ValueError, "it has layers of a state-space model"),
    "LFM2": (dict(model_type="lfm2"), ValueError, "it has layers of short convolutions"),
    "Mamba 2": (dict(model_type="mamba2"), ValueError, "it has no attention heads"),
    "DeepSeek V3": (dict(model_type="deepseek_v3"), ValueError, "multi-head latent attention"),
    "BLOOM": (dict(model_type="bloom"), ValueError, r"a bias on scores \(ALiBi\)"),
    "OPT": (dict(model_type="opt"), ValueError, "is of model_type 'opt'; supported: gemma, "),
    "text and images": (
        dict(model_type="qwen2_5_vl", text_config={"model_type": "qwen2_5_vl_text"}), ValueError,
        "'qwen2_5_vl', whose text model is of model_type 'qwen2_5_vl_text'",
    ),
    "a type that nobody knows": (dict(model_type="spiral"), ValueError, "is of model_type 'spiral'; supported: gemma, "),
    "dynamic rope": (
        dict(SIZES, model_type="qwen2", rope_scaling={"type": "dynamic", "factor": 2.0}), NotImplementedError,
        "rope_type 'dynamic' changes with the length of the prompt",
    ),
    "a dynamic rope in the layers with windows": (
        dict(SIZES, model_type="gemma3_text", rope_parameters={"sliding_attention": {"rope_type": "dynamic"}}),
        NotImplementedError, "rope_type 'dynamic' changes",
    ),
    "chunked layers": (
        dict(SIZES, model_type="qwen3", layer_types=["chunked_attention", "full_attention"]), NotImplementedError,
        r"layers of 'chunked_attention' \(layer_types\); supported: full_attention, sliding_attention",
    ),
    "layers of linear attention": (
        dict(SIZES, model_type="llama", layer_types=["linear_attention", "full_attention"]), NotImplementedError,
        "layers of 'linear_attention'",
    ),
    "gpt-oss in another quantisation": (
        dict(SIZES, model_type="gpt_oss", quantization_config={"quant_method": "awq"}), ValueError,
        r"is quantised \(awq\), and only MXFP4 is restored when it is read",
    ),
    "an unknown field": (
        dict(SIZES, model_type="llama", attention_temperature=0.5), ValueError,
        "has attention_temperature = 0.5, which models of type 'llama' are not known to have",
    ),
    "a scale of the residual stream": (dict(SIZES, model_type="mistral", residual_multiplier=0.2), ValueError, "residual_mult"),
    "Phi with norms of queries": (dict(SIZES, model_type="phi", qk_layernorm=True), ValueError, "has qk_layernorm = True"),
    "OLMoE that clips": (dict(SIZES, model_type="olmoe", clip_qkv=8.0), ValueError, "has clip_qkv = 8.0"),
    "Gemma 3 for embeddings": (
        dict(SIZES, model_type="gemma3_text", use_bidirectional_attention=True), ValueError, "use_bidirectional_attention",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_is_said_within_a_second_and_before_weights_are_read(name, tmp_path):
    """config.json is all that the folder has that can be read: its weights are no safetensors file."""
    config, error, message = CASES[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"nothing to read")
    started = time.perf_counter()
    with pytest.raises(error, match=message) as caught:
        load(tmp_path)
    assert time.perf_counter() - started < 1
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_refused_by_name_is_one_that_transformers_has(kind):
    assert kind in CONFIG_MAPPING_NAMES and kind not in registry.SUPPORTED
    with pytest.raises(ValueError, match=f"is of model_type '{kind}': it"):
        registry.family_class({"model_type": kind})


def test_a_model_in_memory_is_refused_too():
    config = transformers.AutoConfig.for_model(**CASES["dynamic rope"][0])
    with pytest.raises(NotImplementedError, match="changes with the length of the prompt"):
        registry.family_class(config)
