"""What a family may do otherwise: one with a sliding window fits by an adapter of a few lines, and is swept exactly."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import pycotmech as pcm
from pycotmech.model.families import registry
from pycotmech.model.families.attention import LayerAttention
from pycotmech.model.families.llama import LlamaFamily
from tests.reference.small_families import FAMILIES, ONE_QUICK_TEST, small
from tests.reference.tiny import tiny_llama
from tests.reference.truth import activations, double, edited_logits, logits_of, patched_logits, z_of
from tests.reference.written import direct_logits

WINDOW, T, FIRST = 6, 20, 13


class Windowed(LlamaFamily):
    model_types = ("mistral",)
    reads = LlamaFamily.reads | {"sliding_window"}

    def attention(self, l):
        return LayerAttention(self.layers[l].self_attn.scaling, window=WINDOW)


def mistral(window):
    llama = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2)
    config = transformers.MistralConfig(
        **{k: v for k, v in llama.config.to_dict().items() if k not in ("model_type", "architectures")}, sliding_window=window
    )
    config._attn_implementation = "eager"
    hf = transformers.MistralForCausalLM(config).eval().requires_grad_(False)
    hf.load_state_dict(llama.state_dict())
    return hf


@pytest.mark.parametrize("positions", [None, [-1, -3]])
def test_a_window_is_one_method(monkeypatch, positions):
    monkeypatch.setattr(registry, "FAMILIES", (LlamaFamily, Windowed))
    hf = mistral(WINDOW)
    model = pcm.Model(hf)
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[FIRST] = (corrupted[FIRST] + 7) % 61
    for precise in (False, True):  # in float64 prompts do not go through the C++ kernel
        if precise:
            model = pcm.Model(hf.double())
        source = z_of(hf, clean)
        found = pcm.patch_heads(
            model, clean, corrupted, positions=positions, metric="logit_diff", answer=7, wrong=11, normalize=False
        )
        each = [[patched_logits(hf, corrupted, source, l, h, positions) for h in range(4)] for l in range(3)]
        truth = np.array([[float(x[7] - x[11]) for x in row] for row in each])
        base = logits_of(hf, corrupted)[-1]
        effect = truth - float(base[7] - base[11])
        assert np.abs(effect).max() > 0.2
        assert np.abs(found.effect - effect).max() <= 1e-4 * np.abs(effect).max()


def test_the_window_matters(monkeypatch):
    """Without the method the check at load says so."""
    monkeypatch.setattr(registry, "FAMILIES", (Windowed,))
    monkeypatch.setattr(Windowed, "attention", LlamaFamily.attention)
    with pytest.raises(ValueError):
        pcm.Model(mistral(WINDOW))


def test_a_prompt_beyond_learned_positions_is_refused():
    model = pcm.Model(small("gpt2"))
    tokens = torch.arange(257) % 61
    with pytest.raises(ValueError, match=r"clean\[0\]: the prompt has 257 tokens, but the model has learned 256 positions"):
        pcm.patch_heads(model, tokens, tokens.flip(0))


def test_queries_scaled_by_their_position_matter():
    """By far more than the tolerances below: the small model has an original length of 8 tokens."""
    hf = small("ministral3")
    plain = small("ministral3", rope_parameters={**hf.config.rope_parameters, "llama_4_scaling_beta": 0.0})
    tokens = torch.arange(T)
    ours, theirs = (pcm.Model(x, check=False).run(tokens).logits for x in (hf, plain))
    assert (ours - theirs)[8:].abs().max() > 0.1 and torch.equal(ours[:8], theirs[:8])
    assert (theirs - logits_of(plain, tokens)).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("family", ONE_QUICK_TEST)
def test_sites_and_patched_heads(family):
    """The quick test of families whose suites are slow (`test_every_family.py`): against hooked passes in float64."""
    hf = small(family)
    wide, model = double(hf), pcm.Model(hf, check=False)
    clean = torch.randint(61, (T,), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[FIRST] = (corrupted[FIRST] + 7) % 61
    truth = activations(wide, clean)
    acts = model.run(clean, capture=("resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z"))
    for site in acts:
        expected = torch.stack([truth[site, l] for l in range(3)])
        assert (acts[site] - expected).abs().max() <= 2e-5 * expected.abs().max(), site
    found = pcm.patch_heads(model, clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False)
    parts = pcm.head_logits(model, clean, answer=7, wrong=11)
    base = logits_of(wide, corrupted)[-1]
    for l, h in ((0, 1), (1, 2), (2, 3)):
        x = edited_logits(wide, corrupted, [("z", l, h, None, truth["z", l][:, h])])
        effect = float(x[7] - x[11] - base[7] + base[11])
        assert abs(found.effect[l, h] - effect) <= 1e-4 * np.abs(found.effect).max() > 0
    written = direct_logits(wide, truth, torch.tensor([7, 11]))
    assert np.abs(parts.heads - written.numpy()).max() <= 2e-5 * written.abs().max()


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "windowed"])
def test_every_family_loads_from_a_folder(family, tmp_path):
    hf = small(family)
    hf.save_pretrained(tmp_path)
    model = pcm.Model.from_pretrained(tmp_path)
    tokens = torch.arange(20)
    assert (model.run(tokens, positions=-1).logits[0] - logits_of(hf, tokens)[-1]).abs().max() < 1e-4
    assert model.family.is_plain() and str(pcm.Model.from_pretrained(tmp_path, dtype="bfloat16").cfg.dtype) == "torch.bfloat16"


def test_gpt2_as_its_first_checkpoints_have_it(tmp_path):
    """Without the name of the trunk, and with the masks of attention as buffers."""
    hf = small("gpt2")
    hf.save_pretrained(tmp_path)
    weights = {name.removeprefix("transformer."): w for name, w in load_file(tmp_path / "model.safetensors").items()}
    masks = {f"h.{l}.attn.bias": torch.ones(1, 1, 256, 256).tril() for l in range(3)}
    save_file(weights | masks, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = pcm.Model.from_pretrained(tmp_path)
    tokens = torch.arange(20)
    assert (model.run(tokens, positions=-1).logits[0] - logits_of(hf, tokens)[-1]).abs().max() < 1e-4
    del weights["h.1.attn.c_proj.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: transformer\.h\.1\.attn\.c_proj\.bias"):
        pcm.Model.from_pretrained(tmp_path)


def test_experts_that_a_checkpoint_lacks_are_named(tmp_path):
    small("mixtral").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "experts" in name)
    save_file({k: w for k, w in weights.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="do not match its configuration"):
        pcm.Model.from_pretrained(tmp_path)


@pytest.mark.parametrize("where", ["attn", "mlp.dropout"])
def test_hooks_that_would_be_ignored_are_refused(where):
    hf = small("gpt2")
    hf.transformer.h[1].get_submodule(where).register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=rf"transformer\.h\.1\.{where} carries forward hooks"):
        pcm.Model(hf)


def test_a_hook_on_a_joint_projection_is_honoured():
    hf = small("gpt2")
    model, tokens = pcm.Model(hf), torch.arange(20)
    before = model.run(tokens, positions=-1).logits
    hf.transformer.h[1].attn.c_attn.register_forward_hook(lambda m, a, out: out * 1.5)
    after = model.run(tokens, positions=-1).logits
    assert (after - before).abs().max() > 0.1
    assert (after[0] - logits_of(hf, tokens)[-1]).abs().max() < 1e-4
