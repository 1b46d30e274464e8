"""Rules that choose heads, on scores whose sets are worked out by hand."""

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.tools.head_sets import HeadSet, scores_of
from pycotmech.cot.tools.result import Analysis
from pycotmech.cot.tools.select_heads import select_heads, spread
from pycotmech.stats import significance
from tests.reference.close import assert_allclose
from tests.reference.tiny import tiny_llama

# 64 scores from 0 to 10 with quartiles 4.5 and 6.5: bins of width 2 * 2 / 64^(1/3) = 1, the fullest from 5 to 6.
VALUES = [0.0, *[2.5] * 4, *[4.5] * 20, *[5.5] * 22, *[6.5] * 12, *[8.5] * 4, 10.0]


@pytest.fixture
def grid():
    return np.random.default_rng(0).permutation(VALUES).reshape(4, 16)


@pytest.mark.parametrize(
    ("options", "sizes", "bounds"),
    [
        ({}, [17, 5, 5, 1, 0], [(5, 6), (4, 7), (3, 8), (2, 9), (1, 10)]),
        ({"tails": "both"}, [42, 10, 10, 2, 1], [(5, 6), (4, 7), (3, 8), (2, 9), (1, 10)]),
        ({"definition": "paper"}, [64, 22, 10, 6, 2], [(5, 5), (4, 6), (3, 7), (2, 8), (1, 9)]),  # one bin short above
        ({"definition": "paper", "tails": "upper"}, [39, 17, 5, 5, 1], [(5, 5), (4, 6), (3, 7), (2, 8), (1, 9)]),
    ],
)
def test_window(grid, options, sizes, bounds):
    found = select_heads(grid, rule="window", t=range(5), **options)
    assert [len(s) for s in found] == sizes
    assert_allclose(found.bounds, bounds)
    both = options.get("tails", "both" if "definition" in options else "upper") == "both"
    for s, (low, high) in zip(found, bounds):
        outside = (grid > high + 1e-9) | ((grid < low - 1e-9) & both)
        np.testing.assert_array_equal(s.mask, outside)
    assert len(select_heads(grid, rule="window", definition="paper")) == 10 and len(found[4].order) == sizes[4]


def test_window_is_clipped_at_the_ends_of_the_histogram(grid):
    found = select_heads(grid, rule="window", t=9, definition="paper")
    assert len(found[0]) == 0 and found.bounds == ((0.0, 10.0),)


def test_top_k_is_nested_in_order_of_the_scores():
    grid = np.array([[3.0, -9.0, 1.0], [3.0, 0.5, -2.0]])
    found = select_heads(grid, k=[1, 4, 2], name="mine")
    assert [len(s) for s in found] == [4, 2, 1] and found.thresholds == (4, 2, 1)
    assert found.ranking == ((0, 0), (1, 0), (0, 2), (1, 1), (1, 2), (0, 1))  # ties to the lower head
    assert found[0].order == ((0, 0), (1, 0), (0, 2), (1, 1)) and found[0].name == "mine"
    assert [h for h in select_heads(grid, k=2, by="size")[0]] == [(0, 1), (0, 0)]
    assert [h for h in select_heads(grid, k=2, by="low")[0]] == [(0, 1), (1, 2)]
    assert found.masks.shape == (3, 2, 3) and (found.masks[1] <= found.masks[0]).all()
    assert [len(s) for s in select_heads(grid)] == [6, 5, 4, 3, 2, 1, 0]
    assert spread(270)[0] == 0 and spread(270)[-1] == 270 and len(spread(270)) == 13


def test_heads_without_a_score_are_chosen_only_with_all():
    grid = np.array([[1.0, np.nan], [np.nan, 2.0]])
    found = select_heads(grid, k=[4, 2])
    assert len(found[0]) == 4 and found[1].order == ((1, 1), (0, 0))
    with pytest.raises(ValueError, match="k: got 3, but only 2 of 4 heads have a score"):
        select_heads(grid, k=3)


def test_means_over_steps_weigh_steps_alike():
    values = np.full((2, 2, 1, 2), np.nan)
    values[:, 0] = [[[1.0, 0.0]], [[3.0, 0.0]]]
    values[0, 1] = [[0.0, 8.0]]  # the second example does not count at the second step
    scores = scores_of(values)
    assert_allclose(scores.mean(), [[1.0, 4.0]])
    assert_allclose(scores.at(0).mean(), [[2.0, 0.0]])
    assert_allclose(scores.by_example()[:, 0], [[0.5, 4.0], [3.0, 0.0]])
    assert select_heads(values, k=1, step=0)[0].order == ((0, 0),) and select_heads(values, k=1)[0].order == ((0, 1),)


def test_sign_test_and_corrections_by_hand():
    x = np.ones((8, 4))
    x[0, 1] = x[:2, 2] = -1
    x[:4, 3] = -1
    raw = [1 / 256, 9 / 256, 37 / 256, 163 / 256]
    assert_allclose(significance._sign(x, False), raw)
    assert_allclose(significance._sign(x, True), [2 / 256, 18 / 256, 74 / 256, 1.0])
    assert_allclose(significance.adjusted(np.array(raw), "holm"), [4 / 256, 27 / 256, 74 / 256, 163 / 256])
    assert_allclose(significance.adjusted(np.array(raw), "bh"), [4 / 256, 18 / 256, 37 * 4 / 3 / 256, 163 / 256])
    assert_allclose(significance.adjusted(np.array([0.9, 0.01]), "holm"), [0.9, 0.02])


def test_sign_flips_are_those_of_explicit_flipping():
    x = np.random.default_rng(2).normal(size=(5, 3)) + np.array([1.5, 0, 0])

    def t(y):
        return y.mean(0) / (y.std(0, ddof=1) / 5**0.5)

    largest = [t(np.array([[1 if b >> i & 1 else -1] for i in range(5)]) * x).max() for b in range(32)]
    expected = [(np.array(largest) >= own - 1e-12).mean() for own in t(x)]
    assert_allclose(significance.p_values(x), expected)


def test_sign_flips_hold_their_level_over_all_heads():
    rng = np.random.default_rng(0)
    smallest = [significance.sign_flip(rng.normal(size=(20, 4, 8)), flips=200, seed=i).min() for i in range(200)]
    assert 0.01 < np.mean(np.array(smallest) < 0.05) < 0.1
    one = rng.normal(size=(20, 4, 8))
    one[:, 2, 3] += 2
    p = significance.sign_flip(one, flips=500)
    assert p[2, 3] < 0.01 and (p < 0.05).sum() == 1
    assert (significance.sign_flip(np.zeros((5, 2, 2))) == 1).all()
    gone = np.concatenate((one, np.full((3, 4, 8), np.nan)))  # examples that do not count weigh nothing
    assert_allclose(significance.sign_flip(gone[:, 2:3, 3:4]), 0, atol=0.01)


@pytest.mark.parametrize("test", ["sign_flip", "sign"])
def test_planted_heads_are_found_and_nothing_else(test):
    rng = np.random.default_rng(4)
    scores = rng.normal(scale=0.05, size=(16, 3, 4))
    scores[:, 1, 2] += 0.5
    scores[:, 2, 0] -= 0.5
    found = select_heads(scores, rule="significant", test=test)
    assert found[0].order == ((1, 2),) and found.p.shape == (3, 4)
    assert sorted(select_heads(scores, rule="significant", test=test, tails="both")[0].order) == [(1, 2), (2, 0)]


def test_chance_of_any_false_head_is_what_was_asked():
    rng = np.random.default_rng(0)
    false = [len(select_heads(rng.normal(size=(8, 4, 8)), rule="significant", alpha=0.1)[0]) > 0 for _ in range(100)]
    assert 2 <= sum(false) <= 19  # 10 expected; the chance of leaving this range is under 1 %


def test_scores_come_from_sweeps_and_analyses():
    model = pcm.Model(tiny_llama(), check=False)
    pairs = [(torch.arange(9) + i, torch.cat((torch.tensor([40 + i]), torch.arange(1, 9) + i))) for i in range(3)]
    sweep = pcm.patch_heads(model, [a for a, _ in pairs], [b for _, b in pairs])
    scores = scores_of(sweep)
    assert scores.values.shape == (3, 1, 2, 4)
    assert_allclose(scores.mean(), sweep.effect, atol=1e-6)
    assert select_heads(sweep, k=3)[0].order == tuple(where for where, _ in sorted(sweep.top(8), key=lambda p: -p[1])[:3])
    data = xr.Dataset(
        {"a": (("step", "layer", "head", "example"), np.arange(24.0).reshape(2, 3, 2, 2)), "b": ("example", [0.0, 1.0])},
        coords={"example": [5, 9], "step": [1, 4]},
    )
    found = scores_of(data)  # the only variable over heads
    assert found.examples == (5, 9) and found.steps == (1, 4) and found.labelled
    assert_allclose(found.mean(), data["a"].mean(("step", "example")).values)
    assert select_heads(data, k=1).of([9])[0].chosen_on == (9,)
    assert_allclose(select_heads(data, k=1).again([1, 1]).scores, data["a"].isel(example=1).mean("step").values)
    two = data.assign(c=data["a"] * -1)
    with pytest.raises(ValueError, match="variable: got None; expected one of those over layer and head: a, c"):
        select_heads(two)
    assert select_heads(Analysis(two, {}), variable="c", k=1)[0].order == ((0, 0),)


def test_table_says_of_each_head_in_which_sets_it_is():
    grid = np.array([[3.0, np.nan, 1.0], [2.0, 0.5, -2.0]])
    table = select_heads(grid, k=[6, 3, 1]).table()
    assert list(table) == ["rank", "layer", "head", "score", "sets", "threshold"]
    assert list(zip(table["layer"], table["head"])) == [(0, 0), (1, 0), (0, 2), (1, 1), (1, 2), (0, 1)]
    assert table["sets"].tolist() == [3, 2, 2, 1, 1, 1] and table["threshold"].tolist() == [1, 3, 3, 6, 6, 6]
    assert table["rank"].tolist()[:5] == [1, 2, 3, 4, 5] and table["rank"].isna().tolist()[5]
    assert table["score"].tolist()[:5] == [3.0, 2.0, 1.0, 0.5, -2.0] and np.isnan(table["score"][5])
    scores = np.random.default_rng(4).normal(scale=0.05, size=(16, 3, 4))
    scores[:, 1, 2] += 0.5
    found = select_heads(scores, rule="significant")
    table = found.table()
    assert table["p"][0] == found.p[1, 2] and table["threshold"][0] == 0.05 and table["threshold"][1:].isna().all()


def test_plot_counts_the_heads_of_each_set(grid, tmp_path):
    """Bars of a set are as high as there are heads of it; the window's ends are where the bounds are."""
    found = select_heads(grid, rule="window", t=[0, 2, 4])
    figure = found.plot(path=tmp_path / "a.png")
    axis = figure.axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert [sum(h) for h in heights] == [64, 17, 5] and heights[0] == [1, 0, 4, 0, 20, 22, 12, 0, 4, 1]
    assert heights[1] == [0, 0, 0, 0, 0, 0, 12, 0, 4, 1]
    assert [line.get_xdata()[0] for line in axis.lines] == pytest.approx([6, 8])
    assert [t.get_text() for t in figure.legends[0].texts][1:] == ["t = 0: 17 heads", "t = 2: 5 heads"]
    assert (tmp_path / "a.png").stat().st_size > 5000
    both = select_heads(grid, rule="window", t=[0], definition="paper").plot().axes[0]
    assert [line.get_xdata()[0] for line in both.lines] == pytest.approx([5, 5])
    far = np.concatenate((grid.ravel(), [0.001, 5.0, 4000.0, -900.0]))[None]  # bins of width 1 could not be told apart
    axis = select_heads(far, k=2).plot().axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axis.containers]
    assert [sum(h) for h in heights] == [68, 2] and len(heights[0]) == 60 and heights[1][-1] == 1
    assert axis.get_xscale() == "asinh" and axis.get_xticks().tolist() == [-100, -10, 0, 10, 100, 1000]
    flat = select_heads(np.array([[0.0, 0.0, 0.0, 0.0, 3.0]]), k=1).plot().axes[0]  # no bin width by quartiles
    assert [sum(bar.get_height() for bar in bars) for bars in flat.containers] == [5, 1] and not flat.lines


def test_sets_add_and_subtract():
    a = HeadSet.of([(1, 1), (0, 0)], (2, 3), name="a")
    b = HeadSet.of(torch.tensor([[False, True, False], [False, True, False]]), (2, 3), name="b")
    assert (a & b).order == ((1, 1),) and (a | b).order == ((1, 1), (0, 0), (0, 1)) and (a - b).order == ((0, 0),)
    assert len(~a) == 4 and (0, 0) in a and (0, 0) not in ~a and (a | b).name == "(a | b)" and next(iter(a)) == (1, 1)
    for bad, words in [
        ([(0, 0), (0, 0)], "one head twice"),
        ([(2, 0)], r"\(2, 0\)"),
        (np.ones((3, 3), bool), r"shape \[3, 3\]; the model has \[2, 3\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            HeadSet.of(bad, (2, 3))
    with pytest.raises(TypeError, match="heads: got int"):
        HeadSet.of(3, (2, 3))


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        (np.zeros(3), {}, "scores: got ndarray of shape"),
        (np.full((2, 2), np.nan), {}, "no head has a score"),
        (np.zeros((2, 2)), {"rule": "best"}, "rule: got 'best'"),
        (np.zeros((2, 2)), {"k": 5}, r"k: got 5; expected ints in 0\.\.4"),
        (np.zeros((2, 2)), {"k": 1.5}, r"k: got 1\.5"),
        (np.zeros((2, 2)), {"step": 3}, "step: got 3; the scores have no steps"),
        (np.zeros((2, 2)), {"rule": "significant"}, "needs scores per example"),
        (np.ones((3, 2, 2)), {"rule": "significant"}, r"3 examples can give no p-value below 0\.12"),
        (np.ones((8, 16, 16)), {"rule": "significant", "test": "sign"}, "can give no p-value below 1"),
        (
            np.ones((8, 2, 2)),
            {"rule": "significant", "test": "bootstrap"},
            "expected 'sign_flip' or 'sign', which find",
        ),
        (np.ones((8, 2, 2)), {"rule": "significant", "control": "holm"}, "control: got 'holm'; expected 'max'"),
        (np.zeros((4, 4)), {"rule": "window"}, "no bin width"),
    ],
)
def test_bad_input(scores, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        select_heads(scores, **options)
