"""Gemma 3 out of a GGUF file: the weights and the configuration are those that transformers reads."""

import gguf
import numpy as np
import pytest
import torch
import transformers

import pycotmech as pcm
from pycotmech.model.loading import load
from tests.reference.gguf_files import write_sizes, written
from tests.reference.small_families import fill
from tests.reference.truth import logits_of

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
CONFIG = dict(
    vocab_size=61, hidden_size=64, intermediate_size=128, num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=1,
    head_dim=32, max_position_embeddings=256, sliding_window=6, query_pre_attn_scalar=256, bos_token_id=1, eos_token_id=2,
    pad_token_id=0, attn_implementation="eager",
)  # fmt: skip


@pytest.fixture(scope="module")
def hf():
    """Seven layers, of which the sixth sees everything."""
    model = transformers.AutoModelForCausalLM.from_config(transformers.Gemma3TextConfig(**CONFIG))
    fill(model, norm=0.0)
    return model


def write(path, hf, *, kind=None, leave_out=()):
    config = hf.config
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_vocab_size(config.vocab_size)
    write_sizes(writer, config, config.rope_parameters["full_attention"]["rope_theta"])
    writer.add_sliding_window(config.sliding_window)
    for name, weight in hf.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, ending = name.rsplit(".", 1)
        array = weight.numpy() + 1 if "norm" in stem else weight.numpy()
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{layer}.{NAMES[stem]}"
        else:
            stem = NAMES[stem]
        if stem in leave_out:
            continue
        if kind and array.ndim == 2:
            writer.add_tensor(f"{stem}.{ending}", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{stem}.{ending}", array)
    written(writer)
    return path


@pytest.mark.parametrize("kind", [None, gguf.GGMLQuantizationType.Q5_0, gguf.GGMLQuantizationType.Q8_0])
def test_gemma3_is_what_transformers_reads(hf, kind, tmp_path):
    path = write(tmp_path / "gemma.gguf", hf, kind=kind)
    ours = load(path).model
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b.float()), name
    for field in ("layer_types", "rope_parameters", "sliding_window", "query_pre_attn_scalar", "rms_norm_eps", "head_dim"):
        assert getattr(ours.config, field) == getattr(theirs.config, field), field
    model, tokens = pcm.Model.from_pretrained(path), torch.arange(30)
    assert type(model.family).__name__ == "Gemma3Family"
    if kind is None:
        assert (model.run(tokens, positions=-1).logits[0] - logits_of(hf, tokens)[-1]).abs().max() < 1e-4


def test_what_a_gemma3_file_lacks_is_named(hf, tmp_path):
    path = write(tmp_path / "gemma.gguf", hf, leave_out=("blk.3.attn_q_norm",))
    with pytest.raises(ValueError, match=r"1 missing: model\.layers\.3\.self_attn\.q_norm\.weight"):
        load(path)


def test_norms_are_less_one(hf, tmp_path):
    """(w + 1) - 1 in float32, as transformers computes it: not always w."""
    loaded = load(write(tmp_path / "gemma.gguf", hf)).model
    weight = hf.model.norm.weight.numpy()
    np.testing.assert_array_equal(loaded.model.norm.weight.numpy(), (weight + 1) - np.float32(1))
