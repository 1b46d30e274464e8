"""Bootstrap intervals against their definition, coverage on known distributions, halves."""

import numpy as np
import pytest

from pycotmech.cot.analyses.bootstrap import halves, mean_interval, ratio_interval, resampled, statistic_interval


def test_mean_and_interval_are_those_of_explicit_resampling():
    values = np.random.default_rng(1).normal(size=(12, 3))
    found = mean_interval(values, draws=300, seed=7)
    weights = resampled(12, draws=300, seed=7)
    drawn = np.array([np.repeat(values, w.astype(int), axis=0).mean(0) for w in weights])
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.low, np.percentile(drawn, 2.5, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.high, np.percentile(drawn, 97.5, axis=0), rtol=1e-12)
    assert found.n.tolist() == [12, 12, 12]


def test_examples_that_do_not_count_are_left_out():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    found = mean_interval(values)
    np.testing.assert_allclose(found.mean, [2.0, 5.0])
    assert found.n.tolist() == [2, 1]
    assert np.isnan(found.low[1]) and np.isnan(found.high[1])  # one example has no spread to tell of
    assert found.low[0] == 1.0 and found.high[0] == 3.0
    assert np.isnan(mean_interval(np.full((3, 1), np.nan)).mean).all()


def test_ratio_is_of_means_and_resampled_together():
    top, below = np.array([1.0, 4.0, 9.0]), np.array([2.0, 4.0, 6.0])
    found = ratio_interval(top, below)
    assert found.mean == pytest.approx(14 / 12)
    exact = ratio_interval(3 * below, below)
    assert exact.low == pytest.approx(3) and exact.high == pytest.approx(3)


def test_intervals_cover_the_true_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(200):
        found = mean_interval(rng.exponential(size=40), draws=400, seed=i)
        hits += found.low <= 1.0 <= found.high
    assert 170 <= hits <= 200  # 95 % nominal; the percentile bootstrap of a skewed sample of 40 covers about 92 %


def test_statistic_interval_takes_any_statistic():
    values = np.arange(9.0)
    found = statistic_interval(lambda i: np.median(values[i]), 9, seed=3)
    assert found.mean == 4.0 and found.low < 4.0 < found.high


def test_halves_part_the_examples():
    a, b = halves(9, seed=5)
    assert len(a) == 4 and len(b) == 5 and sorted([*a, *b]) == list(range(9))
    assert [list(x) for x in halves(9, seed=5)] == [list(a), list(b)]
    assert [x.tolist() for x in halves(1)] == [[0], [0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval(np.empty((0, 3))), r"values: got shape \[0, 3\]"),
        (lambda: mean_interval([1.0], level=95), "level: got 95"),
        (lambda: mean_interval([1.0], draws=1), "draws: got 1"),
        (lambda: halves(0), "n: got 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
