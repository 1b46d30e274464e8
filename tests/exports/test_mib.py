"""MIB's circuit format: names, scores and edges as EAP-IG's Graph has them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.exports import mib_circuit, write_mib
from tests.reference.tiny import tiny_llama


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(n_heads=4, n_key_value_heads=2))


def test_a_sweep_becomes_scores_of_nodes(model, tmp_path):
    sweep = pcm.patch_heads(model, torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 5, 4]))
    circuit = mib_circuit(sweep, model.cfg, mlps=np.arange(model.cfg.n_layers))
    L, H = model.cfg.n_layers, model.cfg.n_heads
    assert circuit["cfg"] == {"n_layers": L, "n_heads": H, "parallel_attn_mlp": False, "d_model": model.cfg.d_model}
    names = ["input", *(n for l in range(L) for n in (*(f"a{l}.h{h}" for h in range(H)), f"m{l}")), "logits"]
    assert list(circuit["nodes"]) == names and circuit["edges"] == {}
    assert "score" not in circuit["nodes"]["input"] and circuit["nodes"]["m1"]["score"] == 1.0
    assert circuit["nodes"]["a1.h2"] == {"in_graph": False, "score": pytest.approx(float(sweep.effect[1, 2]))}
    path = write_mib(tmp_path / "circuits", circuit, task="arc-easy", model="qwen2.5")
    assert path == tmp_path / "circuits" / "arc-easy_qwen2.5" / "importances.json"
    assert json.loads(path.read_text()) == circuit


def test_a_circuit_has_the_edges_between_its_nodes(model):
    scores = np.zeros((model.cfg.n_layers, 4))
    scores[0, 1], scores[1, 3], scores[1, 0] = 1.0, -2.0, np.nan
    circuit = mib_circuit(scores, model.cfg, mlps=np.zeros(model.cfg.n_layers), keep=np.int64(2))
    assert {n for n, v in circuit["nodes"].items() if v["in_graph"]} == {"input", "a0.h1", "a1.h3", "a1.h0", "logits"}
    heads = ("a0.h1", "a1.h0", "a1.h3")
    expected = {f"input->{h}<{x}>" for h in heads for x in "qkv"} | {f"a0.h1->{h}<{x}>" for h in heads[1:] for x in "qkv"}
    expected |= {f"{n}->logits" for n in ("input", *heads)}
    assert set(circuit["edges"]) == expected and all(e == {"score": 0.0, "in_graph": True} for e in circuit["edges"].values())


@pytest.mark.parametrize("parallel", [False, True])
def test_all_edges_of_a_whole_model(model, parallel):
    cfg = replace(model.cfg, parallel=parallel)
    L, H = cfg.n_layers, cfg.n_heads
    edges = mib_circuit(np.ones((L, H)), cfg, mlps=np.ones(L), keep=L * (H + 1))["edges"]
    before = [1 + l * (H + 1) for l in range(L)]
    count = sum(n * 3 * H + n + (0 if parallel else H) for n in before) + 1 + L * (H + 1)
    assert len(edges) == count and ("a0.h0->m0" in edges) is not parallel


def test_bad_arguments_are_named_and_names_stay_in_the_folder(model, tmp_path):
    ones = np.ones((model.cfg.n_layers, 4))
    for call, message in (
        (lambda: mib_circuit(ones[:1], model.cfg), "scores: got shape [1, 4]"),
        (lambda: mib_circuit(ones * np.inf, model.cfg), "scores: has infinite values"),
        (lambda: mib_circuit(ones * np.nan, model.cfg), "no node has a score"),
        (lambda: mib_circuit(ones, model.cfg, keep=99), "keep: got 99"),
        (lambda: write_mib(tmp_path, {}, task="../ioi", model="gpt2"), "task: got '../ioi'"),
        (lambda: write_mib(tmp_path, {}, task="ioi", model=".."), "model: got '..'"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert message in str(caught.value)
    (tmp_path / "ioi_gpt2").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        write_mib(tmp_path, {}, task="ioi", model="gpt2")
