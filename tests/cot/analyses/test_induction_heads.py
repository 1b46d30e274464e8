"""E2: the heads that restore an inductive step however it is broken, planted and in a model that reasons."""

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses import induction_heads as module
from pycotmech.cot.analyses.induction_heads import InductionHeads, combined
from pycotmech.cot.analyses.patch_steps import PatchSteps, induction_score
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from pycotmech.report.of_analyses import charts_of
from pycotmech.stats import bootstrap
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference import planted
from tests.reference.close import assert_allclose

KINDS = ("answer", "premise", "rule")
_PLACE = {"answer": "answer", "premise": "last", "rule": "earlier"}
"""Of "... A B ... A" -> B: B is the answer, the last A the premise, the earlier one the rule's subject."""


def broken(prompt, kind, generator):
    """The prompt with one word replaced by one that stands nowhere in it."""
    free = [w for w in planted.CONTENT if w not in prompt.tokens.tolist()]
    out = prompt.tokens.clone()
    out[prompt.positions[_PLACE[kind]]] = free[int(torch.randint(len(free), (1,), generator=generator))]
    return out


def by_hand(p, prompts):
    """An InductionHeads of prompts that are no examples of the task: one step, `len(prompts)` examples."""
    g, parts = torch.Generator().manual_seed(3), {}
    for kind in KINDS:
        rows = []
        for q in prompts:
            ids = broken(q, kind, g)
            sweep = pcm.patch_heads(p.model, q.tokens, ids, metric="kl", answer=q.answer, normalize=False)
            whole = float(sweep.corrupted_metric[0])
            scale = whole or np.nan
            last = p.model.run(ids).logits[-1]
            row = (sweep.raw, whole, -sweep.effect / scale, sweep.noise_floor / scale, int(last.argmax()) != q.answer)
            rows.append(row)
        names = ("kl", "kl_corrupted", "effect", "noise_floor", "changed")
        dims = ("example", "step", "layer", "head")
        values = {name: np.array([r[i] for r in rows], float)[:, None] for i, name in enumerate(names)}
        coords = {"example": range(len(prompts)), "step": [5], "kind": ("step", ["induction"])}
        data = xr.Dataset({k: (dims[: v.ndim], v) for k, v in values.items()}, coords=coords)
        shape = data.sizes["layer"], data.sizes["head"]
        data = data.assign_coords(layer=np.arange(shape[0]), head=np.arange(shape[1]))
        parts[kind] = PatchSteps(data, {"settings": {"corruption": kind}})
    facts = {"model": p.model.name, "source": "docs/protocol.md, E2", "notes": [], "definition": ""}
    return InductionHeads(combined(parts), facts)


@pytest.mark.parametrize("moved", [{}, {"previous": (0, 7), "writer": (3, 0), "n_layers": 5, "n_heads": 8, "seed": 3}])
def test_the_planted_head_restores_under_each_and_the_one_below_it_under_one(moved):
    p = planted.induction(**moved)
    found = by_hand(p, p.prompts(3))
    score, each = found.scores()["mean"][0].values, found.restoration()["mean"][:, 0].values
    broken = found.data["kl_corrupted"].sum(("example", "step"))
    writer, previous = p.heads["writer"], p.heads["previous"]
    assert found.common(5)[0][:2] == writer and score[writer] == pytest.approx(1, abs=1e-3)
    assert_allclose(each[:, *previous], [0, 0, 1], atol=0.02)  # it looks at the rule's subject, at nothing else
    rule = float(broken.sel(corruption="rule") / broken.sum())
    assert score[previous] == pytest.approx(rule, abs=0.01) and previous not in [head[:2] for head in found.common(5)]
    for head in p.noise_heads:
        assert abs(score[head]) < 0.02
    low, high = (found.scores()[k][0].values[writer] for k in ("low", "high"))
    assert 0.99 < low <= high < 1.01


def test_in_a_model_with_nothing_planted_no_head_stands_out():
    p = planted.nothing()
    found = by_hand(p, planted.induction().prompts(4))
    assert np.abs(found.scores()["mean"].values).max() < 0.3  # of 1, where something was planted
    silent = planted.nothing(silent=True)
    still = by_hand(silent, planted.induction().prompts(2))
    assert still.common(5) == [] and not still.clear().values.any()
    assert float(still.data["kl_corrupted"].sel(corruption="premise").min()) > 1e-3  # by the last word itself, no head
    assert np.isnan(still.restoration()["mean"].sel(corruption="answer").values).all()
    assert all(np.isnan(a.mean) for a in still.agreement())


def test_noise_agrees_in_nothing():
    """Effects drawn at random for each corruption, against a floor of a third of their size."""
    rng = np.random.default_rng(0)
    shape = (3, 8, 1, 30, 9)
    effect = 0.03 * rng.normal(size=shape)
    cell = ("corruption", "example", "step")
    data = {"effect": ((*cell, "layer", "head"), effect), "kl_corrupted": (cell, np.ones(shape[:3]))}
    data |= {"noise_floor": (cell, np.full(shape[:3], 0.01)), "changed": (cell, np.ones(shape[:3]))}
    coords = {"corruption": list(KINDS), "example": range(8), "step": [5], "layer": range(30), "head": range(9)}
    found = InductionHeads(xr.Dataset(data, coords={**coords, "kind": ("step", ["induction"])}), {})
    assert len(found.common(5)) <= 1 and found.by_chance(5) < 0.5
    for a in found.agreement():
        assert abs(a.mean) < 0.15 and a.low < 0.1 and a.high > -0.1


def test_a_floor_above_the_divergence_is_explained_and_is_none_of_what_is_drawn():
    """The rule's divergence is so small in two of four examples that rounding is more than half of it."""
    cell = ("corruption", "example", "step")
    moved = np.array([[10.0] * 4, [1.0] * 4, [0.001, 0.02, 0.4, 0.4]])[..., None]
    floor = np.array([[0.04] * 4, [0.1] * 4, [1.79, 0.6, 0.05, 0.05]])[..., None]
    data = {"effect": ((*cell, "layer", "head"), np.full((3, 4, 1, 2, 2), 0.2)), "kl_corrupted": (cell, moved)}
    data |= {"noise_floor": (cell, floor), "changed": (cell, np.ones(moved.shape))}
    data["score"] = ((*cell[1:], "layer", "head"), np.full((4, 1, 2, 2), 0.2))
    coords = {"corruption": list(KINDS), "example": range(4), "step": [5], "layer": range(2), "head": range(2)}
    about = {"model": "m", "notes": [], "settings": {}, "definition": "d", "cells": 4}
    found = InductionHeads(xr.Dataset(data, coords={**coords, "kind": ("step", ["induction"])}), about)
    largest = max((0.4 + 0.1 + 0.00179) / 11.001, (0.4 + 0.1 + 0.012) / 11.02, (0.4 + 0.1 + 0.02) / 11.4)
    assert found.floors().dims == ("step",) and float(found.floors()[0]) == pytest.approx(largest)
    lines = found.findings()
    assert (
        "step 5: noise floor, of the example where it is largest: 5% with all corruptions together; 4% with the answer "
        "replaced, 10% with the premise broken, 179% with the rule broken"
    ) in lines
    assert (
        "step 5: the floor exceeds 50% in 2 of 4 examples with the rule broken (median KL divergence 0.21): this corruption "
        "hardly changes what the model says there, so that rounding is divided by little. Nothing follows from an effect that "
        "is not beyond the floor"
    ) in lines
    (chart,) = charts_of("induction_heads", found)
    assert [m["floor"] for m in chart["maps"]] == [pytest.approx(largest, rel=1e-3)]
    figure = found.plot()
    texts = " ".join(text.get_text() for text in figure.texts).replace("\n", " ")
    assert "179% with the rule broken" in texts and "rounding is divided by little" not in texts
    assert [image.norm.vmax for axes in figure.axes[:4] for image in axes.images] == [pytest.approx(0.2)] * 4
    found.data["noise_floor"][2] = 0.2
    assert not any("exceeds 50%" in line for line in found.findings())


@pytest.fixture(scope="module")
def result(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.induction_heads(model, examples, right=every)


def test_each_part_is_the_sweep_of_its_corruption(model, examples, every, result):
    assert result.data["step"].values.tolist() == [5, 9] and result.kinds == list(KINDS)
    for kind in ("answer", "premise"):
        alone = pcm.cot.patch_steps(model, examples, steps=[5, 9], right=every, corruption=kind)
        mine = result.restoration().sel(corruption=kind)
        assert_allclose(mine["mean"].values, alone.restoration()["mean"].values, atol=1e-4)
        np.testing.assert_array_equal(result.data["changed"].sel(corruption=kind).values, alone.data["changed"].values)
    broken = result.data["kl_corrupted"]
    weighted = (result.data["effect"] * broken).sum("corruption") / broken.sum("corruption")
    assert_allclose(result.data["score"], weighted.transpose(*result.data["score"].dims))
    weight = broken.sum("example")
    pooled = (result.restoration()["mean"] * weight).sum("corruption") / weight.sum("corruption")
    assert_allclose(result.scores()["mean"], pooled.transpose(*result.scores()["mean"].dims))


def test_a_corruption_that_breaks_next_to_nothing_weighs_next_to_nothing():
    """A head restores all of a divergence of 11 and works against one of 0.03."""
    cell = ("corruption", "example", "step")
    effect = np.zeros((3, 8, 1, 2, 2))
    effect[:, ..., 0, 0] = np.array([1.0, -1.0, 0.0])[:, None, None]
    broken = np.tile(np.array([11.0, 0.03, 0.0])[:, None, None], (1, 8, 1))
    effect[2] = np.nan  # nothing is broken: nothing can be restored
    data = {"effect": ((*cell, "layer", "head"), effect), "kl_corrupted": (cell, broken)}
    data |= {"noise_floor": (cell, np.full(broken.shape, 0.01)), "changed": (cell, np.ones(broken.shape))}
    coords = {"corruption": list(KINDS), "example": range(8), "step": [5], "layer": range(2), "head": range(2)}
    data = xr.Dataset(data, coords={**coords, "kind": ("step", ["induction"])})
    parts = [PatchSteps(data.sel(corruption=kind), {"settings": {"corruption": kind}}) for kind in KINDS]
    expected = (11 - 0.03) / 11.03
    assert_allclose(induction_score(parts).values[..., 0, 0], np.full((8, 1), expected))
    found = InductionHeads(data, {})
    assert_allclose(found.scores()["mean"][0], [[expected, 0], [0, 0]])
    assert_allclose(found.restoration()["mean"][:2, 0, 0, 0], [1, -1])
    assert np.isnan(found.restoration()["mean"][2]).all()
    assert np.isnan(induction_score(parts[2:])).all()


def test_a_result_of_patch_steps_is_taken_and_nothing_changes(model, examples, every, result):
    answer = pcm.cot.patch_steps(model, examples, steps=[2, 5, 9], right=every)
    reused = pcm.cot.induction_heads(model, examples, right=every, answer=answer)
    assert_allclose(reused.data["score"], result.data["score"], rtol=1e-5, atol=1e-7)
    assert reused.about["settings"]["run"] == ["premise", "rule"]
    assert reused.about["cost"]["token_forwards"] < 0.75 * result.about["cost"]["token_forwards"]
    other = every.clone()
    other[0, 5] = False

    def with_setting(**change):
        return PatchSteps(answer.data, answer.about | {"settings": answer.about["settings"] | change})

    for options, words in (
        ({"answer": PatchSteps(answer.data.sel(step=[5]), answer.about)}, "answer: a result of examples .* steps"),
        ({"answer": answer, "right": other}, "answer: a result in which other steps"),
        ({"answer": with_setting(corruption="rule")}, "answer: a result with corruption='rule'; expected 'answer'"),
        ({"answer": with_setting(direction="noise")}, "direction='noise'"),
        ({"answer": PatchSteps(answer.data, answer.about | {"model": "x"})}, "answer: a result of x"),
        ({"answer": result}, "answer: got InductionHeads"),
        ({"steps": [3]}, r"steps: got \[3\]; expected some of the inductive steps \[5, 9\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            pcm.cot.induction_heads(model, examples, **({"right": every} | options))


def test_intervals_are_over_examples_and_hold_the_mean_of_like_ones(result):
    found = result.scores()
    assert int(found["n"].max()) == 3 and (found["low"] <= found["high"]).all()
    keeps_its_ranges(result)
    mean, drawn, _ = result._ratios
    low, high = np.percentile(drawn.together, [2.5, 97.5], axis=0)
    more, mean = bootstrap.factor(3), mean.together
    assert_allclose(found["low"], mean - more * np.maximum(mean - low, 0), atol=1e-12)
    assert_allclose(found["high"], np.maximum(high, mean + more * (high - mean)), atol=1e-12)
    one = InductionHeads(result.data.isel(example=[1, 1, 1]), result.about)
    xr.testing.assert_allclose(one.scores()["low"], one.scores()["mean"])
    xr.testing.assert_allclose(one.scores()["high"], one.scores()["mean"])
    alone = InductionHeads(result.data.isel(example=[1]), result.about)
    assert np.isnan(alone.scores()["low"]).all() and not alone.common(5)
    assert "one example has no interval" in str(alone)


def test_strongest_heads_are_told_on_the_other_half(result):
    """Of eight examples, made of three: everything in a row is of the four that did not choose its head."""
    rng = np.random.default_rng(3)
    rows = np.arange(8) % 3
    data = result.data.isel(example=rows).assign_coords(example=np.arange(8))
    noise = xr.DataArray(rng.normal(scale=0.3, size=data["effect"].shape), dims=data["effect"].dims)
    data["effect"] = data["effect"] + noise + 2.0 * ((data["layer"] == 1) & (data["head"] == 3))  # one that is there
    parts = [PatchSteps(data.sel(corruption=kind), {"settings": {"corruption": kind}}) for kind in KINDS]
    many = InductionHeads(data.assign(score=induction_score(parts)), result.about)
    table = many.table(4)
    assert table["held_out"].all() and table["n"].eq(4).all()
    parts = many.at_step("score", 5)
    each, common = parts.reporting.restoration()["mean"].sel(step=5), {h[:2] for h in parts.reporting.common(5)}
    score = parts.choosing.scores()["mean"].sel(step=5).values
    first = table[table["step"] == 5]
    heads = list(zip(first["layer"], first["head"]))
    assert heads == [divmod(int(i), score.shape[1]) for i in np.argsort(-np.abs(score).ravel())[:4]]
    for row in first.itertuples():
        for kind in KINDS:
            assert getattr(row, kind) == pytest.approx(float(each.sel(corruption=kind, layer=row.layer, head=row.head)))
        assert row.common == ((row.layer, row.head) in common)
    best = parts.choosing.common(5)
    told = parts.reporting.scores()["mean"].sel(step=5)
    words = ", ".join(f"L{l}H{h} {float(told.sel(layer=l, head=h)):+.2f}" for l, h, _ in best[:5])
    line = next(x for x in many.findings() if x.startswith("step 5: ") and "beyond the noise floor" in x)
    assert best[0][:2] == heads[0] == (1, 3) and line.endswith(f"; the strongest of one half (n = 4 held out): {words}")


def test_cost_is_predicted(model, examples, every, result):
    size = workload(choose(model, examples, right=every))
    assert size.inductive == 6
    counted = result.about["cost"]["token_forwards"]
    assert module.cost(model.cfg, size).token_forwards == pytest.approx(counted, rel=0.15)
    assert module.authors_cost(model.cfg, size).forwards == 3 * 6 * (4 * 8 + 4)


def test_it_shows_itself(result, tmp_path, monkeypatch):
    table = result.table(3)
    assert len(table) == 6 and {"answer", "premise", "rule", "common"} <= set(table)
    for row in table.to_dict("records"):
        broken = result.data["kl_corrupted"].sel(step=row["step"]).sum("example")
        assert row["mean"] == pytest.approx(
            np.average([row[kind] for kind in KINDS], weights=[float(broken.sel(corruption=k)) for k in KINDS])
        )
    assert not table["held_out"].any() and table["n"].eq(3).all()
    text = str(result)
    assert "rank correlation over heads (n = 3)" in text and "beyond the noise floor to the same side under all 3" in text
    result.plot(path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    again = InductionHeads.load(result.save(tmp_path).parent)
    assert again.findings() == result.findings()
    score = float(result.scores()["mean"].sel(step=9, layer=1, head=2))
    monkeypatch.setattr(InductionHeads, "common", lambda self, step: [(1, 2, score)])
    assert f"n = 3); the strongest (n = 3, chosen on the same): L1H2 {score:+.2f}" in " ".join(result.findings())
