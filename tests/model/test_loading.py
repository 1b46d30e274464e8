"""Folders of safetensors: what loads is exactly what was saved, and what does not fit is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pycotmech.model.loading import load
from tests.reference.small_families import small
from tests.reference.tiny import same_model, tiny_llama

TOKENS = torch.tensor([[1, 7, 33, 60, 5, 7, 33, 2, 19]])


def saved(folder: Path, **options) -> tuple[Path, torch.nn.Module]:
    model = tiny_llama(**options)
    model.save_pretrained(folder)
    return folder, model


def rewrite(folder: Path, change) -> None:
    """Applies `change` to the dict of tensors in the folder's only weight file."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_key_value_heads": 2},
        {"n_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"tied": True, "dtype": torch.bfloat16},
    ],
    ids=["mha", "gqa", "biases", "tied-bf16"],
)
def test_a_folder_loads_bit_for_bit(tmp_path, options):
    folder, model = saved(tmp_path / "some-model", **options)
    loaded = load(folder)
    assert same_model(loaded.model, model) and same_model(load(str(folder)).model, model)
    loaded.model.set_attn_implementation("eager")
    assert torch.equal(loaded.model(TOKENS).logits, model(TOKENS).logits)
    assert not loaded.model.training
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.name == "some-model"
    assert loaded.tokenizer is None and loaded.prepend_bos is None and loaded.notes == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "torch.bfloat16", torch.float64])
def test_dtype_rounds_the_stored_weights(tmp_path, dtype):
    folder, model = saved(tmp_path)
    loaded = load(folder, dtype=dtype).model
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype.removeprefix("torch."))
    name = "model.layers.1.self_attn.k_proj.weight"
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name).to(wanted))
    assert {weight.dtype for weight in loaded.parameters()} == {wanted}


def test_shards_load_and_a_lost_one_is_named(tmp_path):
    model = tiny_llama()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert same_model(load(tmp_path).model, model)
    shards[1].unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {shards[1].name}"):
        load(tmp_path)


def test_a_tokenizer_that_is_its_file_is_read_from_it(tmp_path, tiny_cot_path):
    """Also beside a model type for which AutoTokenizer takes a class of its own in any case."""
    small("qwen2", vocab_size=256).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(tiny_cot_path) / name, tmp_path)
    text = "Every lempus is a tumpus."
    assert load(tmp_path).tokenizer(text).input_ids == load(tiny_cot_path).tokenizer(text).input_ids


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/tmp/elsewhere.safetensors", "a\0b", 5, ["a"]])
def test_an_index_of_shards_that_points_elsewhere_is_refused(tmp_path, name):
    folder, _ = saved(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    with pytest.raises(ValueError, match=r"expected a file in the folder|is not an index"):
        load(folder)


def test_the_tokenizer_comes_along_and_a_damaged_one_is_named(tmp_path, tiny_cot_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_cot_path, folder)
    assert load(folder).tokenizer("Max is a lempus.").input_ids == load("tiny-cot").tokenizer("Max is a lempus.").input_ids
    (folder / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ValueError, match=r"tokenizer in .*copy cannot be read"):
        load(folder)


def test_old_rotary_buffers_in_a_checkpoint_are_no_fault(tmp_path):
    folder, model = saved(tmp_path)
    rewrite(folder, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert same_model(load(folder).model, model)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(tmp_path):
    folder, _ = saved(tmp_path)

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)
        tensors["model.norm.weight"] = torch.ones(49)

    rewrite(folder, change)
    with pytest.raises(ValueError) as caught:
        load(folder)
    message = str(caught.value)
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in message
    assert "1 unexpected: model.layers.7.mlp.up_proj.weight" in message
    assert "model.norm.weight is [49], expected [48]" in message


def test_an_untied_model_without_its_output_matrix_is_refused(tmp_path):
    folder, _ = saved(tmp_path)
    rewrite(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"1 missing: lm_head\.weight"):
        load(folder)


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinite"), (-float("inf"), "infinite")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(tmp_path, value, word, dtype):
    folder, _ = saved(tmp_path, dtype=dtype)

    def change(tensors):
        tensors["model.layers.1.self_attn.v_proj.weight"][-1, -1] = value

    rewrite(folder, change)
    with pytest.raises(ValueError, match=rf"layers\.1\.self_attn\.v_proj\.weight .* holds {word} values"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 400, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    folder, _ = saved(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged"):
        load(folder)


def test_integer_weights_without_a_quantisation_config_are_refused(tmp_path):
    folder, _ = saved(tmp_path)
    rewrite(folder, lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight is I8"):
        load(folder)


class _Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_a_pickle_is_refused_and_never_opened(tmp_path, name):
    folder, _ = saved(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "opened"
    (folder / name).write_bytes(pickle.dumps(_Bomb(marker)))
    with pytest.raises(ValueError, match=f"only as {name}, a pickle"):
        load(folder)
    assert not marker.exists()


def test_code_in_a_folder_does_not_run_unless_asked_for(tmp_path):
    folder, model = saved(tmp_path / "model")
    marker = tmp_path / "ran"
    (folder / "other.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Other: pass\n")
    edit_config(folder, auto_map={"AutoModelForCausalLM": "other.Other", "AutoConfig": "other.Other"})
    assert same_model(load(folder).model, model)
    assert not marker.exists()


def test_another_family_is_refused_before_its_weights_are_read(tmp_path):
    folder, _ = saved(tmp_path)
    edit_config(folder, model_type="mamba2")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"'mamba2': it has no attention heads.*; supported: .*llama, ministral"):
        load(folder)


@pytest.mark.parametrize("field", ["attn_logit_softcapping", "sliding_window", "residual_multiplier", "num_experts"])
def test_a_field_that_the_family_does_not_know_is_refused_before_weights_are_read(tmp_path, field):
    folder, _ = saved(tmp_path)
    edit_config(folder, **{field: 8})
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"the configuration has {field} = 8, which models of type 'llama' are not known"):
        load(folder)


def test_a_field_that_changes_nothing_is_not_looked_at(tmp_path):
    folder, _ = saved(tmp_path)
    edit_config(folder, sliding_window=None, unsloth_version="2026.1", is_llama_config=True, residual_multiplier=None)
    assert load(folder).model is not None


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), ("[]", "holds a list"), ("{}", "model_type None"),
])  # fmt: skip
def test_a_configuration_that_is_none(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_quantised_checkpoint_is_refused(tmp_path):
    folder, _ = saved(tmp_path)
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ValueError, match=r"is quantised \(gptq\), and only MXFP4 .*load this one with transformers"):
        load(folder)


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither a config\.json nor a \.gguf file"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an adapter, not a model"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["./not/here", "/not/here", "~/not/here", "a/b/c", "not-here.gguf", Path("not-here")])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(FileNotFoundError, match=r"there is no .*here|there is no a/b/c"):
        load(name)


@pytest.mark.parametrize("name", ["Max is a lempus. " * 400, "a\0b"])
def test_a_prompt_is_no_path(name):
    with pytest.raises(FileNotFoundError, match="there is no "):
        load(name)


def test_arguments_are_checked_first():
    with pytest.raises(ValueError, match=r"dtype: got 'int8'; expected one of auto, float16, bfloat16, float32, float64"):
        load("not/here/at/all", dtype="int8")
    with pytest.raises(ValueError, match=r"got torch\.int64"):
        load("not/here/at/all", dtype=torch.int64)
    with pytest.raises(ValueError, match=r"device must name a torch device.*'gpu0'"):
        load("not/here/at/all", device="gpu0")
    with pytest.raises(TypeError, match="must be a str or a path, got int"):
        load(3)
    with pytest.raises(TypeError, match="must be a str or a path"):
        load(b"tiny-cot")
    with pytest.raises(ValueError, match="name_or_path is empty"):
        load(" ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match=r"'cuda' was asked for, but torch\.cuda\.is_available\(\) is False"):
        load("tiny-cot", device="cuda")


def test_arguments_without_meaning_are_refused(tmp_path, tiny_cot_path):
    with pytest.raises(ValueError, match="revision='main' has no meaning for an alias"):
        load("tiny-cot", revision="main")
    with pytest.raises(ValueError, match="revision='main' has no meaning for a local path"):
        load(tiny_cot_path, revision="main")
    with pytest.raises(FileNotFoundError, match=r"gguf_file: .* has no x\.gguf; it has none"):
        load(tiny_cot_path, gguf_file="x.gguf")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"notes\.txt is a file, but not a \.gguf one"):
        load(tmp_path / "notes.txt")


def test_progress_bars_are_left_as_found(tiny_cot_path):
    from transformers.utils import logging

    for setting in (logging.enable_progress_bar, logging.disable_progress_bar):
        setting()
        before = logging.is_progress_bar_enabled()
        load(tiny_cot_path)
        assert logging.is_progress_bar_enabled() == before
    logging.enable_progress_bar()
