"""Examples of which no step is right: nothing is chosen, drawn, tested or reported on them."""

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses.head_overlap import head_overlap
from pycotmech.cot.analyses.knock_out_curve import knock_out_curve
from pycotmech.cot.tools.select_heads import select_heads
from pycotmech.stats import bootstrap, significance
from tests.reference.close import assert_allclose

L, H, STEPS = 4, 8, [2, 5]
CHOOSING, REPORTING = (half.tolist() for half in bootstrap.halves(4, seed=0))
"""Of all four examples: two right ones that lie in one of these would leave the other without any."""


@pytest.fixture(scope="module")
def four(model):
    return pcm.cot.make_examples(4, shots=1, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)


def scores_of_right(examples, rows, seed=3):
    """Scores per example and step, NaN but for these rows."""
    values = np.full((len(examples), 2, L, H), np.nan)
    values[rows] = np.random.default_rng(seed).normal(size=(len(rows), 2, L, H))
    coords = {"example": [e.index for e in examples], "step": STEPS}
    return xr.DataArray(values, dims=("example", "step", "layer", "head"), coords=coords, name="made up")


def curve_of(model, examples, rows, scores):
    right = torch.zeros(4, 10, dtype=torch.bool)
    right[rows] = True
    return knock_out_curve(model, examples, scores, steps=STEPS, right=right, kind="zero", sizes=[12])


@pytest.mark.parametrize("rows", [CHOOSING, REPORTING, [0, 3]])
def test_two_right_examples_are_one_to_choose_on_and_one_to_report(model, four, rows):
    scores = scores_of_right(four, rows)
    found = curve_of(model, four, rows, scores)
    half = found.data["half"].values
    assert sorted(half[rows]) == ["report", "select"] and all(half[i] == "" for i in range(4) if i not in rows)
    chosen = scores.values[np.flatnonzero(half == "select")[0]].mean(0).ravel()
    gone = found.data["ablated"].sel(order="least").values[1].ravel()
    assert set(np.flatnonzero(gone)) == set(np.argsort(chosen)[:12])
    assert found.about["settings"]["ranked_on"] == "scores of the 1 of 2 examples that are not reported on"
    points = found.operating_points()
    assert points["step"].tolist() == [*STEPS, "all"] and (points["n"] == 1).all()
    assert "on 1 example (held-out examples)" in str(found)


@pytest.mark.parametrize("row", [CHOOSING[0], REPORTING[0]])
def test_a_single_right_example_is_in_both_halves(model, four, row):
    found = curve_of(model, four, [row], scores_of_right(four, [row]))
    assert [h for h in found.data["half"].values if h] == ["both"] and found.data["half"].values[row] == "both"
    points = found.operating_points()
    assert (points["n"] == 1).all() and points["low"].isna().all() and "(the same examples)" in str(found)


def test_the_reason_is_named_where_nothing_can_be_chosen(model, four):
    """Scores of examples that are all reported on, beside others without any."""
    right = torch.ones(4, 10, dtype=torch.bool)
    scores = scores_of_right(four, REPORTING)
    numbers = ", ".join(str(four[i].index) for i in CHOOSING)
    with pytest.raises(ValueError, match=rf"none of the 2 examples to choose on \({numbers}\) is right at these steps"):
        knock_out_curve(model, four, scores, steps=STEPS, right=right, kind="zero", sizes=[12])
    scores[:, 0] = np.nan
    with pytest.raises(ValueError, match=r"scores: no head has a score: none of the 4 examples .* is right at step 2"):
        select_heads(scores, step=2)


@pytest.mark.parametrize("test", ["sign_flip", "sign"])
def test_significance_counts_the_right_ones(test):
    rng = np.random.default_rng(1)
    some = rng.normal(scale=0.1, size=(8, 2, 3))
    some[:, 1, 2] += 0.5
    gone = np.full((8, 2, 3), np.nan)
    mixed = np.concatenate((gone, some, gone))
    np.testing.assert_array_equal(significance.p_values(mixed, test=test), significance.p_values(some, test=test))
    np.testing.assert_array_equal(significance.sign_flip(mixed), significance.sign_flip(some))
    found = select_heads(mixed, rule="significant", test=test)
    assert found[0].order == ((1, 2),) and "mean over 8 examples" in found.about
    with pytest.raises(ValueError, match=r"scores: 2 examples can give no p-value below"):
        select_heads(mixed[6:10], rule="significant", test=test)
    with pytest.raises(ValueError, match=r"scores: 1 example can give no p-value"):
        select_heads(mixed[7:9], rule="significant", test=test)


def test_overlaps_are_drawn_from_the_right_ones():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 3, 8, 8))
    full = [np.concatenate((np.full((3, 8, 8), np.nan), x, np.full((1, 8, 8), np.nan))) for x in (a, b)]
    alone, among = (head_overlap({"a": select_heads(x, k=12), "b": select_heads(y, k=12)}, draws=60) for x, y in ((a, b), full))
    for name in ("f1", "f1_low", "f1_high", "intersection_low"):
        np.testing.assert_array_equal(among.data[name], alone.data[name])
    assert float(alone.data["f1_low"][0, 1]) < float(alone.data["f1_high"][0, 1])
    assert "chosen by scores of 3 examples" in among.findings()[-1]
    one = [x.copy() for x in full]
    for x in one:
        x[4:] = np.nan
    single = head_overlap({"a": select_heads(one[0], k=12), "b": select_heads(one[1], k=12)}, draws=60)
    assert np.isnan(single.data["f1_low"]).all() and np.isfinite(single.data["f1"]).all()


def test_overlaps_of_sets_whose_steps_are_right_in_other_examples():
    """Two of four: a draw of none of them selects nothing, and is left out."""
    rng = np.random.default_rng(5)
    few, many = rng.normal(size=(2, 4, 8, 8))
    few[2:] = np.nan
    few, many = select_heads(few, k=12), select_heads(many, k=12)
    found = head_overlap({"few": few, "many": many}, draws=60).data
    drawn, f1 = np.random.default_rng(0), []
    for _ in range(60):
        rows = drawn.integers(4, size=4)
        if (rows < 2).any():
            f1.append((few.again(rows)[0].mask & many.again(rows)[0].mask).sum() / 12)
    assert 40 < len(f1) < 60
    ends = bootstrap.widened(found["f1"][0, 1], *np.percentile(f1, [2.5, 97.5]), 2, within=bootstrap.SHARE)  # two are right
    assert_allclose((found["f1_low"][0, 1], found["f1_high"][0, 1]), ends)


def test_a_set_knows_which_examples_it_was_chosen_on(four):
    chosen = select_heads(scores_of_right(four, [1, 3]), k=5)[0]
    assert chosen.chosen_on == (four[1].index, four[3].index)
