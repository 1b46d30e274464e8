"""The model of cost: its counts are those of the planner and of what runs, and devices turn them into time as they say."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch

import pycotmech as pcm
from pycotmech import cost, paper
from pycotmech.cost import DEVICES, Demand, Measured
from pycotmech.model.config import ModelConfig, layer_flop, logits_flop
from pycotmech.model.work import counted
from pycotmech.runs import Settings
from tests.reference.tiny import tiny_llama

LLAMA = ModelConfig(32, 32, 32, 4096, 128, 11008, 32000, 4096, "llama", torch.bfloat16)
T, S = 200, 24


@pytest.fixture(scope="module")
def model():
    return pcm.Model(tiny_llama(), check=False)


def pair(model):
    clean = torch.randint(model.cfg.d_vocab, (T,), generator=torch.Generator().manual_seed(0))
    corrupted = clean.clone()
    corrupted[T - S :] = (clean[T - S :] + 1) % model.cfg.d_vocab
    return clean, corrupted


@pytest.mark.parametrize("metric", ["kl", "logit_diff"])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_sweep_from_shapes_is_the_planned_one(model, positions, metric):
    clean, corrupted = pair(model)
    where = None if positions == "all" else [-1]
    if positions == "last":
        corrupted[-1] = clean[-1]
    plan = pcm.plan_heads(model, clean, corrupted, positions=where, metric=metric, answer=3, wrong=4)
    cfg, found = model.cfg, cost.heads(model.family, tokens=T, suffix=S, positions=positions, metric=metric)
    planned = cost.of_plan(cfg, plan, metric=metric)
    for counts in (found, planned):
        assert counts.flop(cfg) == pytest.approx(plan.flop, rel=0.06)
        assert counts.token_forwards(cfg) == pytest.approx(plan.token_forwards + plan.base_token_forwards, rel=0.06)
    assert found.unembedded == pytest.approx(planned.unembedded, abs=2) and found.passes == pytest.approx(
        planned.passes, rel=0.2
    )


def test_summaries_and_prompts_are_what_runs(model):
    cfg, tokens = model.cfg, pair(model)[0]
    linear = layer_flop(cfg).linear
    with counted(model.family) as tally:
        pcm.attention_summary(model, tokens)
    found = cost.summary(cfg, T)
    assert found.layer_rows * linear == pytest.approx(tally.flop, rel=1e-6)
    assert found.keys == found.weighed == cfg.n_layers * T * (T + 1) / 2
    with counted(model.family) as tally:
        model.run(tokens)
    found = cost.prompts(cfg, [T], read=T)
    again = T * layer_flop(cfg).qkv  # the last layer computes its keys before the rows that are read
    assert found.layer_rows * linear + found.unembedded * logits_flop(cfg) + again == tally.flop
    assert cost.prompts(cfg, [10, 20], after=5).keys == cfg.n_layers * (55 + 50 + 210 + 100)
    assert (
        cost.lens(cfg, T).unembedded > T * cfg.n_layers
        and cost.lens(cfg, T, positions=1).layer_rows == cost.lens(cfg, T).layer_rows
    )
    assert cost.head_logits(cfg, T).unembedded == cfg.n_layers * (cfg.n_heads + 2)


def test_suppression_counts_what_comes_after_each_sentence(model):
    found = cost.suppression(model.cfg, 10, [(0, 4), (4, 7), (7, 10)])
    assert found.token_forwards(model.cfg) == found.unembedded == 10 + 6 + 3
    by_hand = sum(range(1, 11)) + sum(range(5, 11)) + sum(range(8, 11))
    assert found.keys == model.cfg.n_layers * by_hand


def test_paths_need_no_weights(model):
    plan = pcm.plan_paths(model, T, metric="logit_diff")
    of_config = cost.paths(cost.without_weights(model.hf.config), tokens=T, metric="logit_diff")
    assert of_config == cost.paths(model.family, tokens=T, metric="logit_diff")
    prompts = of_config.flop(model.cfg) - plan.flop
    assert 0 < prompts < 2 * T * (model.cfg.n_layers * layer_flop(model.cfg).linear * 1.2)
    with pytest.raises(TypeError, match=r"expected a pycotmech\.Model or a transformers configuration"):
        cost.without_weights(model.hf)


def test_bad_sizes_are_refused(model):
    with pytest.raises(ValueError, match="suffix: got 0"):
        cost.heads(model.family, tokens=T, suffix=0)
    with pytest.raises(ValueError, match="positions: got 'some'"):
        cost.heads(model.family, tokens=T, suffix=2, positions="some")
    with pytest.raises(ValueError, match="device: got 'v100'; expected one of a100, h100, h200, b200"):
        cost.device_named("v100")


def test_demands_add_up():
    one = Demand(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert one + one == 2 * one == one * 2 and sum((one, one), Demand()) == 2 * one
    bytes_of = one.bytes(LLAMA)
    assert bytes_of > 2 * 202e6 * 2 and (2 * one).bytes(LLAMA) == pytest.approx(2 * bytes_of)


def test_a_data_sheet_is_a_roofline():
    h100 = DEVICES["h100"]
    rows = 512 * 32.0
    products = Demand(layer_rows=rows, passes=32)
    least = rows * layer_flop(LLAMA).linear / (h100.half * h100.products)
    assert least < h100.seconds(LLAMA, products) < 1.5 * least  # what is left are bytes of kernels that are no products
    weights = 32 * layer_flop(LLAMA).linear / 2 * 2  # bytes in bfloat16
    assert h100.seconds(LLAMA, Demand(layer_rows=32.0, passes=32)) == pytest.approx(weights / 3.35e12 / 0.9, rel=0.05)
    assert h100.seconds(LLAMA, Demand(layer_rows=32.0, passes=32, launches=1e6)) == 5.0  # the host is the slower one
    single = dataclasses.replace(LLAMA, dtype=torch.float32)
    assert h100.seconds(single, products) > 10 * h100.seconds(LLAMA, products)
    order = [
        DEVICES[name].seconds(LLAMA, products + Demand(keys=1e9, unembedded=100)) for name in ("a100", "h100", "h200", "b200")
    ]
    assert order == sorted(order, reverse=True) and order[0] > 2 * order[1]


def test_this_machine_is_measured_at_the_shapes_of_a_model(model):
    found = cost.measured(model.cfg)
    assert found.copy > 0 and found.attention > 0 and found.statistics > 0 and found.logits > 0
    rows = [8, 30, 512, 2048, 10_000]
    assert all(found.layer_seconds(n) > 0 for n in rows)
    assert found.layer_seconds(20_000) == pytest.approx(2 * found.layer_seconds(10_000))
    with pytest.raises(ValueError, match="this machine was measured for"):
        found.seconds(LLAMA, Demand(layer_rows=1.0))


def test_a_forward_pass_of_the_model_corrects_its_parts(model):
    cfg, speed = model.cfg, 1e9
    rows = min(512, cfg.n_ctx)
    found = cost.of_model(model, speed)
    seconds = found.seconds(cfg, cost.prompts(cfg, [rows]))
    assert seconds == pytest.approx(rows * cfg.n_layers * layer_flop(cfg).linear / speed)


def test_time_is_the_sum_of_its_parts():
    machine = Measured("m", LLAMA, ((8, 1.0), (2048, 2.0)), 1e6, 2e6, 0.5, 3.0, 4.0, 5.0)
    per_key = layer_flop(LLAMA).per_key
    demand = Demand(
        layer_rows=4096.0, passes=2.0, keys=2.0, weighed=4.0, summarised=6.0, unembedded=5.0, wide=8.0, traffic=10.0
    )
    by_hand = 2 * 2.0 + 2 * per_key / 1e6 + 4 * per_key / 2e6 + 6 * 0.5 + 5 * 3.0 + 8 / 4 + 10 / 5
    assert machine.seconds(LLAMA, demand) == pytest.approx(by_hand)
    assert dataclasses.replace(machine, factor=2.0).seconds(LLAMA, demand) == pytest.approx(2 * by_hand - 15.0)
    assert machine.seconds(LLAMA, Demand(layer_rows=8.0, passes=1.0)) == pytest.approx(1.0)


def test_the_paper_is_planned_for_a_gpu_that_is_not_here(tmp_path):
    settings, said = Settings(model="tiny-cot", examples=2, shots=2, steps=(2, 5)), []
    found = paper.run(settings, tmp_path / "out", plan_only=True, plan_for="h100", say=said.append, only=("copy_heads",))
    assert found.plan.device == "h100" and 0 < found.plan.seconds < found.plan.lines[0].authors_seconds
    assert any("h100: 791,520 GFLOP/s" in text or "h100: 53,520 GFLOP/s" in text for text in said), said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="plan_for: got 'h100' for analyses that are run here"):
        paper.run(settings, tmp_path / "out", plan_for="h100")
    with pytest.raises(ValueError, match="plan_for: got 'abacus'"):
        paper.run(settings, tmp_path / "out", plan_only=True, plan_for="abacus")


def test_a_device_is_anything_that_has_a_name_and_takes_time(model):
    slow = types.SimpleNamespace(name="slow", seconds=lambda cfg, demand: demand.flop(cfg))
    from pycotmech.cot.tools.cost import Workload
    from pycotmech.paper import ENTRIES
    from pycotmech.paper.plan import make

    load = Workload(examples=8, cells=78, length=650.0, suffix=44.0, shared=613, longest=670.0, inductive=16)
    plan = make(model.cfg, ENTRIES[:1], load, slow, 1.0)
    assert plan.device == "slow" and plan.seconds > 0.9 * plan.lines[0].ours.flop
