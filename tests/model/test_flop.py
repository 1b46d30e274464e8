"""Operations that are predicted for a row of each family, against those that PyTorch counts in the Hugging Face model."""

from collections import Counter

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import pycotmech as pcm
from pycotmech.model.config import layer_flop, logits_flop
from tests.reference.parts import layers_of
from tests.reference.small_families import by_family, small

ROUTED = ("gpt_oss", "mixtral", "olmoe", "qwen3_moe")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "dense")
T = 20


def counted(hf) -> Counter:
    """FLOP of one forward pass of T tokens by part: attention without its products with keys and values, mlp, lm_head."""
    tokens, found = torch.arange(T)[None], Counter()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        hf(tokens, use_cache=False)
    for name, ops in counter.get_flop_counts().items():
        *above, last = name.split(".")
        if last in ("mlp", "lm_head"):
            found[last] += sum(ops.values())
        elif last in PROJECTIONS or (last == "c_proj" and above[-1] == "attn"):
            found["attention"] += sum(ops.values())
    return found


@pytest.mark.parametrize("family", by_family())
def test_a_row_costs_what_the_hugging_face_model_computes(family):
    hf = small(family)
    cfg = pcm.Model(hf, check=False).cfg
    row, found = layer_flop(cfg), counted(hf)
    assert found["mlp"] == T * cfg.n_layers * row.mlp > 0
    assert found["attention"] == T * cfg.n_layers * (row.qkv + row.attn_out)
    assert found["lm_head"] == T * logits_flop(cfg)


@pytest.mark.parametrize("family", ROUTED)
def test_a_mixture_counts_its_chosen_experts_and_its_router(family):
    """By hand: 2 of 4 experts, and a router; in Qwen3-MoE here one layer of three has an MLP."""
    hf = small(family)
    cfg = pcm.Model(hf, check=False).cfg
    d, width = cfg.d_model, 40 if family == "qwen3_moe" else 80
    routed, dense = 2 * (2 * 3 * d * width + 4 * d), 2 * 3 * d * 80
    expected = (2 * routed + dense) / 3 if family == "qwen3_moe" else routed
    assert layer_flop(cfg).mlp == expected
    assert cfg.mixture.n_layers == sum(hasattr(layer.mlp, "experts") for layer in layers_of(hf))


def test_a_planned_sweep_counts_them(monkeypatch):
    """The plan of a sweep grows by what the experts of its rows cost."""
    clean = torch.arange(T)
    corrupted = clean.clone()
    corrupted[13] = 40
    one, two = (pcm.Model(small("mixtral", num_experts_per_tok=n)) for n in (1, 2))
    options = dict(metric="logit_diff", answer=7, wrong=11, normalize=False)
    plans = [pcm.plan_heads(model, clean, corrupted, **options) for model in (one, two)]
    rows = (plans[0].token_forwards + plans[0].base_token_forwards) * one.cfg.n_layers
    more = layer_flop(two.cfg).mlp - layer_flop(one.cfg).mlp
    assert plans[1].flop - plans[0].flop == pytest.approx(rows * more, rel=1e-2) and more > 0
