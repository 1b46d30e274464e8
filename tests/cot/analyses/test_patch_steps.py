"""E1: restoration by head, for three metrics from one sweep per cell."""

from functools import partial

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import patch_steps as module
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference.close import assert_allclose
from tests.reference.truth import double, kl, logits_of, sweep_truth

STEPS = [5, 7]


@pytest.fixture(scope="module")
def result(model, examples, every):
    model.prefixes.clear()  # the cost is that of a cold call
    return pcm.cot.patch_steps(model, examples, steps=STEPS, right=every)


def test_all_metrics_are_those_of_sweeps_of_their_own(model, examples, result):
    for e, example in enumerate(examples):
        for s, number in enumerate(STEPS):
            step = example.steps[number]
            for metric in ("kl", "logit_diff", "prob"):
                sweep = pcm.patch_heads(
                    model, step.clean, step.corrupted, metric=metric, answer=step.answer, wrong=step.wrong, normalize=False
                )
                found = result.data[metric].values[e, s]
                scale = max(np.abs(sweep.raw).max(), abs(sweep.clean_metric[0]))
                assert_allclose(found, sweep.raw, atol=2e-5 * scale)
                assert float(result.data[f"{metric}_clean"][e, s]) == pytest.approx(sweep.clean_metric[0], abs=2e-5 * scale)
                assert float(result.data[f"{metric}_corrupted"][e, s]) == pytest.approx(
                    sweep.corrupted_metric[0], abs=2e-5 * scale
                )


def test_values_are_those_of_one_hooked_forward_per_head(model, examples, result):
    step = examples[1].steps[5]
    heads = [(0, 7), (1, 2), (3, 5)]
    truth = sweep_truth(
        model.hf, step.corrupted, step.clean, lambda logits: torch.softmax(logits.double(), -1)[step.answer], heads=heads
    )
    for l, h in heads:
        assert float(result.data["prob"][1, 0, l, h]) == pytest.approx(float(truth[l, h]), abs=1e-5)


def test_a_float64_model_is_measured_in_float64(examples, every):
    """Not only the KL, whose sweep it is; one hooked forward of the same weights gives the same."""
    model = pcm.Model.from_pretrained("tiny-cot", dtype="float64")
    found = pcm.cot.patch_steps(model, examples[:1], steps=[5], right=every[:1], controls=False)
    step, hf = examples[0].steps[5], double(model.hf)
    for metric, of in (
        ("logit_diff", lambda logits: logits[step.answer] - logits[step.wrong]),
        ("prob", lambda logits: torch.softmax(logits, -1)[step.answer]),
    ):
        truth = sweep_truth(hf, step.corrupted, step.clean, of, heads=[(1, 2)])
        assert float(found.data[metric][0, 0, 1, 2]) == pytest.approx(float(truth[1, 2]), rel=1e-10)
        ends = [float(of(logits_of(hf, prompt, keep=1)[0])) for prompt in (step.clean, step.corrupted)]
        assert [float(found.data[f"{metric}_{end}"][0, 0]) for end in ("clean", "corrupted")] == pytest.approx(ends, rel=1e-10)


def test_restoration_is_the_ratio_of_means(result):
    for metric in ("kl", "logit_diff", "prob"):
        patched, clean, corrupted = (result.data[name].values for name in (metric, f"{metric}_clean", f"{metric}_corrupted"))
        want = (patched.mean(0) - corrupted.mean(0)[:, None, None]) / (clean - corrupted).mean(0)[:, None, None]
        assert_allclose(result.restoration(metric)["mean"].values, want, rtol=1e-8, atol=1e-12)
    found = result.restoration()
    assert (found["low"] <= found["mean"] + 1e-12).all() and (found["mean"] <= found["high"] + 1e-12).all()
    with pytest.raises(ValueError, match="metric: got 'loss'"):
        result.restoration("loss")


def test_controls_are_those_of_the_next_example(model, examples, result):
    """One hooked forward for each head that was drawn, with the next example's z from the first difference on."""
    data = result.data
    assert (data["sham"] == 0).all()
    assert (data["control"].notnull().sum(("layer", "head")) == 2).all()  # 6 % of 32 heads
    for e, example in enumerate(examples):
        step, other = example.steps[5], examples[(e + 1) % len(examples)].steps[5].clean
        metric = partial(kl, logits_of(model.hf, step.clean, keep=1)[0])
        heads = np.argwhere(data["control"][e, 0].notnull().values).tolist()
        truth = sweep_truth(
            model.hf, step.corrupted, other, metric, heads=heads, positions=range(min(step.differs), len(step.clean))
        )
        span = float(data["kl_corrupted"][e, 0])
        for l, h in heads:
            assert float(data["control"][e, 0, l, h]) == pytest.approx((span - float(truth[l, h])) / span, abs=1e-4)
    assert len({tuple(np.flatnonzero(data["control"][e, s].notnull())) for e in range(3) for s in range(2)}) > 1


def test_the_threshold_is_in_the_table(model, examples, every, result):
    table, control = result.table(4), result.control()
    assert set(table.columns) >= {"floor", "control", "head_control", "beyond"}
    assert (control > 0).all() and np.isfinite(table["control"]).all()
    beyond = table["mean"].abs() > np.maximum(table["floor"], table["control"])
    assert table["beyond"].tolist() == beyond.tolist()
    without = pcm.cot.patch_steps(model, examples, steps=[5], right=every, controls=False)
    assert "control" not in without.data and np.isnan(without.control()).all()
    assert "floor and control" not in str(without)
    one = pcm.cot.patch_steps(model, examples[:1], steps=[5], right=every[:1])
    assert one.data["control"].isnull().all() and float(one.data["sham"][0, 0]) == 0


def test_noise_and_denoise_rank_from_their_base(model, examples, every):
    noised = pcm.cot.patch_steps(model, examples, steps=[5], right=every, direction="noise")
    mean = noised.restoration()["mean"]  # near 1: nothing was destroyed
    assert_allclose(noised.scores()["mean"].values, 1 - mean.values)
    l, h, value = noised.top(5, 1)[0]
    assert value == pytest.approx(float(1 - mean.sel(step=5, layer=l, head=h))) and value > 0.1
    assert float(noised.data["effect"].sel(step=5, layer=l, head=h).mean()) == pytest.approx(value, rel=0.5)


def test_cells_that_do_not_count_are_nan(model, examples, every):
    right = every.clone()
    right[1, 5] = False
    found = pcm.cot.patch_steps(model, examples, steps=[5], right=right)
    assert np.isnan(found.data["effect"].values[1]).all() and np.isfinite(found.data["effect"].values[[0, 2]]).all()
    assert int(found.scores()["n"].max()) == 2


def test_cost_is_predicted(model, examples, every, result):
    size = workload(choose(model, examples, steps=STEPS, right=every))
    predicted = module.cost(model.cfg, size)
    assert predicted.token_forwards == pytest.approx(result.about["cost"]["token_forwards"], rel=0.15)
    theirs = module.authors_cost(model.cfg, size)
    assert theirs.forwards == 6 * (4 * 8 + 2) and theirs.token_forwards == pytest.approx(theirs.forwards * size.length)


def test_it_shows_itself(result, tmp_path):
    table = result.table(3)
    assert len(table) == 6 and table["rank"].tolist() == [1, 2, 3] * 2
    first = table.iloc[0]
    assert result.top(5, 1) == [(first.layer, first["head"], first["mean"])]
    assert "step 5 (induction, n = 2 held out): L" in str(result)
    keeps_its_ranges(result)
    last, control = result.findings()[-2:]
    assert control.startswith("heads whose interval exceeds floor and control, of 32, by step: 5: ")
    assert "activations 12 heads and examples change at most" in control and "a step with 6 of them says little" in control
    assert last.startswith("heads whose interval exceeds the noise floor, of 32, by step: ")
    assert "(of 32 heads without an effect about 2, one in 20, may lie there by chance" in last
    alone = type(result)(result.data.isel(example=[0]), result.about)
    assert alone.findings()[-1].endswith(": one example has no interval, so no head can be called clear of the noise")
    assert "beyond the noise floor" not in str(alone) and "nan" not in str(alone)
    result.plot(path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    again = type(result).load(result.save(tmp_path).parent)
    np.testing.assert_array_equal(again.data["kl"].values, result.data["kl"].values)
