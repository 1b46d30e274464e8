"""GGUF files written here from known weights: what is read back is those weights, and nothing is passed over."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from pycotmech.model.gguf import _unpermute, read_gguf, weights
from pycotmech.model.loading import load
from tests.reference.close import assert_allclose, assert_close
from tests.reference.gguf_files import write_sizes, written
from tests.reference.tiny import same_model, tiny_llama

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleave(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Row order of a GGUF file: first row of a head, first of its second half, second row, and so on."""
    half = rows.shape[0] // n_heads // 2
    order = [head * 2 * half + part * half + i for head in range(n_heads) for i in range(half) for part in (0, 1)]
    return rows[order]


def gguf_tensors(model) -> dict[str, np.ndarray]:
    config, tensors = model.config, {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        if ".q_proj." in name or ".k_proj." in name:
            array = interleave(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        stem, kind = name.rsplit(".", 1)
        if stem.startswith("model.layers."):
            layer, stem = stem.removeprefix("model.layers.").split(".", 1)
            tensors[f"blk.{layer}.{NAMES[stem]}.{kind}"] = array
        else:
            tensors[f"{NAMES[stem]}.{kind}"] = array
    return tensors


def write(path: Path, model, *, tensors=None, types=None, architecture="llama", keys=(), vocabulary=None) -> Path:
    """types: tensor name -> block format. keys: further hyperparameters, (name, value, method of the writer)."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    write_sizes(writer, config, config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    for key, value, method in keys:
        getattr(writer, method)(key, value)
    if vocabulary is not None:
        tokens, merges = vocabulary
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(True)
    for name, array in (gguf_tensors(model) if tensors is None else tensors).items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    written(writer)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_key_value_heads": 2, "tied": True},
        {"n_heads": 6, "n_key_value_heads": 3, "attention_bias": True, "mlp_bias": True, "n_layers": 3},
    ],
    ids=["mha", "gqa-tied", "biases"],
)
def test_weights_come_back_bit_for_bit(tmp_path, options):
    model = tiny_llama(**options)
    path = write(tmp_path / "tiny-model.gguf", model)
    loaded = load(path)
    assert same_model(loaded.model, model)
    assert loaded.name == "tiny-model" and loaded.tokenizer is None and loaded.prepend_bos is None
    assert loaded.notes == ("weights restored from F32 blocks of tiny-model.gguf",)
    config, wanted = loaded.model.config, model.config
    assert config.rms_norm_eps == pytest.approx(wanted.rms_norm_eps, rel=1e-7)
    assert config.tie_word_embeddings == wanted.tie_word_embeddings
    assert config.max_position_embeddings == wanted.max_position_embeddings
    tokens = torch.tensor([[1, 5, 9, 60, 3]])
    loaded.model.set_attn_implementation("eager")
    assert_close(loaded.model(tokens).logits, model(tokens).logits)  # the epsilon is a float32 in the file


def test_rows_are_ordered_so_that_scores_are_those_of_the_file():
    """Scores from the file's rows with the rotation of neighbouring pairs = scores from ours with that of halves."""
    rng = np.random.default_rng(0)
    n_heads, d_head, d_model, n = 3, 8, 12, 5
    packed_q, packed_k = rng.normal(size=(2, n_heads * d_head, d_model))
    x = rng.normal(size=(n, d_model))
    angle = np.arange(n)[:, None] * 100.0 ** (-np.arange(d_head // 2) / (d_head // 2))

    def scores(q, k, halves):
        turned = []
        for rows in (q, k):
            z = (x @ rows.T).reshape(n, n_heads, d_head)
            a, b = (z[..., : d_head // 2], z[..., d_head // 2 :]) if halves else (z[..., ::2], z[..., 1::2])
            turned.append((a + 1j * b) * np.exp(1j * angle)[:, None])
        return np.einsum("thi,shi->hts", turned[0], turned[1].conj()).real

    ours = scores(_unpermute(packed_q, n_heads), _unpermute(packed_k, n_heads), halves=True)
    assert_allclose(ours, scores(packed_q, packed_k, halves=False), rtol=1e-12)
    assert np.abs(ours - scores(packed_q, packed_k, halves=True)).max() > 1


def test_transformers_reads_the_same(tmp_path):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    model = tiny_llama(n_key_value_heads=2)
    path = write(tmp_path / "m.gguf", model, keys=[("llama.vocab_size", 61, "add_uint32")])
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    ours = dict(weights(read_gguf(path)))
    assert theirs.keys() == ours.keys()
    assert all(np.array_equal(ours[name], theirs[name].numpy()) for name in ours)


def test_quantised_blocks_are_restored_by_their_definition(tmp_path):
    """Blocks of 32. Q8_0: a half-precision scale times signed bytes; Q4_1: a scale times 4 bits plus a minimum."""
    model = tiny_llama(d_model=64, d_mlp=96)
    down, gate = "blk.0.ffn_down.weight", "blk.1.ffn_gate.weight"
    kinds = {down: gguf.GGMLQuantizationType.Q8_0, gate: gguf.GGMLQuantizationType.Q4_1}
    kinds["blk.1.attn_v.weight"] = gguf.GGMLQuantizationType.BF16
    path = write(tmp_path / "q.gguf", model, types=kinds)
    raw = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    loaded = load(path)
    assert loaded.notes[0].startswith("weights restored from F32, ") and "Q8_0" in loaded.notes[0]

    blocks = raw[down].reshape(64, 3, 34)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    wanted = (scale * blocks[..., 2:].view(np.int8)).reshape(64, 96)
    ours = loaded.model.get_parameter("model.layers.0.mlp.down_proj.weight").numpy()
    assert np.array_equal(ours, wanted)
    original = model.get_parameter("model.layers.0.mlp.down_proj.weight").numpy()
    assert 0 < np.abs(ours - original).max() < np.abs(original).max() / 100

    blocks = raw[gate].reshape(96, 2, 20)
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    least = blocks[..., 2:4].copy().view(np.float16).astype(np.float32)
    nibbles = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1).astype(np.float32)
    ours = loaded.model.get_parameter("model.layers.1.mlp.gate_proj.weight").numpy()
    assert np.array_equal(ours, (scale * nibbles + least).reshape(96, 64))

    ours = loaded.model.get_parameter("model.layers.1.self_attn.v_proj.weight")
    assert torch.equal(ours, model.get_parameter("model.layers.1.self_attn.v_proj.weight").bfloat16().float())


def frequencies(model) -> torch.Tensor:
    return model.model.rotary_emb.inv_freq


def test_linear_scaling_of_positions(tmp_path):
    model = tiny_llama(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    keys = [("llama.rope.scaling.type", "linear", "add_string"), ("llama.rope.scaling.factor", 4.0, "add_float32")]
    loaded = load(write(tmp_path / "m.gguf", model, keys=keys)).model
    assert torch.equal(frequencies(loaded), frequencies(model))
    assert loaded.config.rope_parameters["rope_type"] == "linear"


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_frequencies_are_recognised(tmp_path, factor):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    model = tiny_llama(rope_parameters=rope, d_head=32)
    plain = tiny_llama(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, d_head=32)
    divisors = (frequencies(plain) / frequencies(model)).numpy()
    assert len(np.unique(divisors.round(3))) > 2  # 1, the factor, and something between
    path = write(tmp_path / "m.gguf", model, tensors=gguf_tensors(model) | {"rope_freqs.weight": divisors})
    loaded = load(path).model
    assert {key: loaded.config.rope_parameters[key] for key in rope} == pytest.approx(rope)
    assert same_model(loaded, model)


def test_any_other_frequencies_are_taken_as_they_are(tmp_path):
    model = tiny_llama()
    divisors = np.linspace(1, 3, 8, dtype=np.float32)
    path = write(tmp_path / "m.gguf", model, tensors=gguf_tensors(model) | {"rope_freqs.weight": divisors})
    loaded = load(path).model
    assert_close(frequencies(loaded), frequencies(model) / torch.from_numpy(divisors), rtol=1e-6, atol=0)
    assert loaded.model.rotary_emb.attention_scaling == 1.0
    ones = gguf_tensors(model) | {"rope_freqs.weight": np.ones(8, dtype=np.float32)}
    assert same_model(load(write(tmp_path / "ones.gguf", model, tensors=ones)).model, model)


def test_the_vocabulary_becomes_a_tokenizer(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", ".", "pu", "pus", "Ġpus"]
    vocabulary = (tokens, ["p u", "pu s", "Ġ pus"])
    model = tiny_llama(d_vocab=len(tokens))
    loaded = load(write(tmp_path / "m.gguf", model, vocabulary=vocabulary))
    assert loaded.prepend_bos is True
    ids = loaded.tokenizer("lem pus", add_special_tokens=False).input_ids
    assert [tokens[i] for i in ids] == ["l", "e", "m", "Ġpus"]
    assert loaded.tokenizer.bos_token_id == 1 and loaded.tokenizer.eos_token_id == 2
    assert (loaded.model.config.bos_token_id, loaded.model.config.eos_token_id) == (1, 2)


def test_large_files_are_written_in_shards(tmp_path, monkeypatch):
    from pycotmech.model import gguf as reader

    monkeypatch.setattr(reader, "_SHARD_BYTES", 40_000)
    model = tiny_llama()
    folder = tmp_path / "out"
    folder.mkdir()
    reader.convert(read_gguf(write(tmp_path / "m.gguf", model)), folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert same_model(load(folder).model, model)


def test_files_that_are_found_and_files_that_are_not(tmp_path):
    model = tiny_llama()
    write(tmp_path / "a.gguf", model)
    assert same_model(load(tmp_path).model, model)
    write(tmp_path / "b.gguf", tiny_llama(seed=1))
    with pytest.raises(ValueError, match=r"has 2 GGUF files; choose one with gguf_file=: a\.gguf, b\.gguf"):
        load(tmp_path)
    assert same_model(load(tmp_path, gguf_file="b.gguf").model, tiny_llama(seed=1))
    with pytest.raises(FileNotFoundError, match=r"has no c\.gguf; it has a\.gguf, b\.gguf"):
        load(tmp_path, gguf_file="c.gguf")
    with pytest.raises(ValueError, match=r"gguf_file='a\.gguf' has no meaning for a file"):
        load(tmp_path / "b.gguf", gguf_file="a.gguf")


def test_a_package_that_holds_one_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    model = tiny_llama()
    write(package / "m.gguf", model)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("some_weights", "some-weights"):
        loaded = load(name)
        assert loaded.name == name and same_model(loaded.model, model)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("blk.1.ffn_up.weight"), r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        (without("token_embd.weight"), r"has no tensor token_embd\.weight"),
        (lambda t: t | {"blk.0.attn_sinks.weight": np.ones(4, np.float32)}, r"does not: blk\.0\.attn_sinks\.weight"),
        (lambda t: t | {"blk.2.attn_norm.weight": np.ones(48, np.float32)}, r"1 unexpected: model\.layers\.2\.input"),
        (lambda t: t | {"blk.0.attn_v.bias": np.ones(64, np.float32)}, r"1 unexpected: .*\.0\.self_attn\.v_proj\.bias"),
        (
            lambda t: t | {"output_norm.weight": np.ones(47, np.float32)},
            r"model\.norm\.weight is \[47\], expected \[48\]",
        ),
        (lambda t: t | {"rope_freqs.weight": np.ones(7, np.float32)}, r"rope_freqs\.weight of shape \[7\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    model = tiny_llama()
    path = write(tmp_path / "m.gguf", model, tensors=change(gguf_tensors(model)))
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (("llama.attention.sliding_window", 64, "add_uint32"), r"not understood: attention\.sliding_window"),
        (("llama.logit_scale", 2.0, "add_float32"), r"not understood: logit_scale"),
        (("llama.expert_count", 8, "add_uint32"), "mixture of experts"),
        (("llama.rope.scaling.type", "yarn", "add_string"), r"'yarn'.*supported: none, linear"),
        (("llama.attention.head_count_kv", [4, 2], "add_array"), "differs between layers"),
        (("llama.rope.dimension_count", 8, "add_uint32"), "other than the head size 16"),
    ],
)
def test_hyperparameters_that_would_change_the_model_are_refused(tmp_path, key, message):
    model = tiny_llama()
    path = tmp_path / "m.gguf"

    class Writer(gguf.GGUFWriter):
        """Leaves out what `key` says in another way."""

        def add_key_value(self, name, *args, **kwargs):
            if name != key[0] or args[0] == key[1]:
                super().add_key_value(name, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", Writer)
        write(path, model, keys=[key])
    with pytest.raises(ValueError, match=message):
        load(path)


def test_damaged_files_and_other_architectures(tmp_path):
    model = tiny_llama()
    path = write(tmp_path / "m.gguf", model, architecture="bert")
    with pytest.raises(ValueError, match="of the architecture 'bert'; supported here: gemma3, llama"):
        load(path)
    whole = write(tmp_path / "whole.gguf", model).read_bytes()
    for keep in (6, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"m\.gguf is truncated or damaged"):
            load(path)
    path.write_bytes(b"PK\x03\x04" + whole[4:])
    with pytest.raises(ValueError, match="does not begin with the letters GGUF"):
        load(path)


def test_nan_in_a_file_is_named(tmp_path):
    model = tiny_llama()
    tensors = gguf_tensors(model)
    tensors["blk.1.ffn_down.weight"] = tensors["blk.1.ffn_down.weight"].copy()
    tensors["blk.1.ffn_down.weight"][3, 3] = np.nan
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj\.weight in .*m\.gguf holds NaN"):
        load(write(tmp_path / "m.gguf", model, tensors=tensors))
