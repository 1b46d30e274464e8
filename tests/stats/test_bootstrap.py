"""Bootstrap intervals against their definition, coverage on known distributions, halves."""

import numpy as np
import pytest
from scipy import stats

from pycotmech.stats import bootstrap
from pycotmech.stats.bootstrap import (
    COUNT,
    SHARE,
    SHARES_APART,
    Interval,
    factor,
    halves,
    mean_interval,
    number,
    ratio_interval,
    resampled,
    statistic_interval,
    undecidable,
    widened,
)
from tests.reference.close import assert_allclose


def test_mean_and_interval_are_those_of_explicit_resampling_widened_for_their_number():
    values = np.random.default_rng(1).normal(size=(12, 3))
    values[5:, 2] = np.nan  # five examples count there
    found = mean_interval(values, draws=300, seed=7)
    weights = resampled(12, draws=300, seed=7)
    assert found.n.tolist() == [12, 12, 5]
    for j, n in enumerate(found.n):
        drawn = [np.repeat(values[:, j], w.astype(int)) for w in weights]
        drawn = [np.nanmean(x) for x in drawn if np.isfinite(x).any()]
        mean = np.nanmean(values[:, j])
        more = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * np.sqrt(n / (n - 1))
        assert found.mean[j] == pytest.approx(mean, rel=1e-14)
        assert found.low[j] == pytest.approx(mean - more * (mean - np.percentile(drawn, 2.5)), rel=1e-12)
        assert found.high[j] == pytest.approx(mean + more * (np.percentile(drawn, 97.5) - mean), rel=1e-12)


def test_the_factor_is_that_of_students_t_and_goes_to_1():
    assert_allclose(factor([2, 4, 8, 40]), [9.168, 1.875, 1.290, 1.045], atol=5e-4)
    assert np.isnan(factor([0, 1])).all() and factor(10**6) == pytest.approx(1, abs=1e-5)
    assert factor(4, level=0.8) == pytest.approx(stats.t.ppf(0.9, 3) / stats.norm.ppf(0.9) * np.sqrt(4 / 3))


def test_ends_move_away_from_the_estimate_and_stay_in_range():
    low, high = widened([0.9, 0.1, 0.5, np.nan], [0.8, 0.2, 0.5, 0.1], [1.0, 0.3, 0.5, 0.2], np.full(4, 4), within=SHARE)
    more = float(factor(4))
    assert_allclose(low[:3], [0.9 - more * 0.1, 0.2, 0.5])  # a low end above the estimate stays where it is
    assert_allclose(high[:3], [1.0, 0.1 + more * 0.2, 0.5])
    assert np.isnan(low[3]) and np.isnan(high[3])  # no estimate, no interval
    assert widened(0.9, 0.8, 1.0, 4)[1] == pytest.approx(0.9 + more * 0.1)  # any number may be above 1


def test_intervals_are_cut_to_what_a_quantity_can_be():
    shares = np.array([1.0, 0.6, 1.0, 1.0])
    free, cut = mean_interval(shares), mean_interval(shares, within=(-2.0, 1.0))
    assert free.high > 1 and (cut.low, cut.high) == (free.low, 1.0)
    assert ratio_interval(shares, np.ones(4), within=SHARE).high <= 1.0
    assert mean_interval(-shares, within=SHARES_APART).low >= -1 and mean_interval([0.0, 2.0], within=COUNT).low == 0.0
    both = statistic_interval(lambda i: (shares[i].mean(), 5 * shares[i].mean()), 4, within=(SHARE, (0.0, 4.7)), seed=1)
    assert both.high.tolist() == [1.0, 4.7] and both.low[1] == pytest.approx(5 * both.low[0])


def test_examples_that_do_not_count_are_left_out():
    values = np.array([[1.0, np.nan], [3.0, 5.0], [np.nan, np.nan]])
    found = mean_interval(values)
    assert_allclose(found.mean, [2.0, 5.0])
    assert found.n.tolist() == [2, 1]
    assert np.isnan(found.low[1]) and np.isnan(found.high[1])  # one example has no spread to tell of
    assert found.low[0] == pytest.approx(2 - factor(2)) and found.high[0] == pytest.approx(2 + factor(2))
    assert np.isnan(mean_interval(np.full((3, 1), np.nan)).mean).all()


def test_ratio_is_of_means_and_resampled_together():
    top, below = np.array([1.0, 4.0, 9.0]), np.array([2.0, 4.0, 6.0])
    found = ratio_interval(top, below)
    assert found.mean == pytest.approx(14 / 12)
    exact = ratio_interval(3 * below, below)
    assert exact.low == pytest.approx(3) and exact.high == pytest.approx(3)


@pytest.mark.parametrize(
    ("draw", "n", "least", "most"),
    [
        ("normal", 2, 0.92, 0.95),
        ("normal", 3, 0.94, 0.98),
        ("normal", 4, 0.94, 0.98),
        ("normal", 8, 0.935, 0.97),
        ("normal", 40, 0.935, 0.965),
        ("exponential", 3, 0.86, 0.93),
        ("exponential", 4, 0.88, 0.94),
        ("exponential", 8, 0.89, 0.94),
        ("exponential", 40, 0.92, 0.955),
    ],
)
def test_intervals_cover_the_true_mean(draw, n, least, most):
    """95 % nominal. Without the correction a normal mean is covered in 50, 74, 80, 89 and 94 %."""
    rng = np.random.default_rng(n)
    values = getattr(rng, draw)(size=(n, 4000))
    found = mean_interval(values, draws=1000, seed=1)
    true = 0.0 if draw == "normal" else 1.0
    assert least <= ((found.low <= true) & (true <= found.high)).mean() <= most


def test_the_ratio_of_skewed_means_is_covered_by_four_examples():
    rng = np.random.default_rng(3)
    below = rng.gamma(4.0, size=(4, 3000))
    found = ratio_interval(below * rng.uniform(size=below.shape), below, draws=1000)
    assert 0.92 <= ((found.low <= 0.5) & (found.high >= 0.5)).mean() <= 0.98


def test_what_too_few_examples_leave_open():
    assert undecidable(np.nan, np.nan, 1) == "one example has no interval"
    assert undecidable(np.nan, np.nan, 3) == "there is no interval"
    assert undecidable(1.0, 1.0 + 1e-12, 5) == "all 5 examples agree, and fewer than 6 that agree decide nothing"
    assert undecidable(1.0, 1.0, 6) == "" and undecidable(0.9, 1.0, 2) == ""
    assert stats.binomtest(6, 6).pvalue < 0.05 < stats.binomtest(5, 5).pvalue


@pytest.mark.parametrize(
    ("value", "threshold", "within", "enough"),
    [
        (1.0, 0.0, None, 6),  # a difference, by sign
        (0.1, 0.0, SHARES_APART, 32),  # 0.1 in ten of eleven examples and -1 in one have a mean of 0
        (1.0, 0.9, SHARE, 29),
        (1.0, 0.5, SHARE, 6),  # 0.5^5 is below 0.05 too, but by sign six are needed
        (0.0, 0.05, SHARE, 59),
        (3.0, 1.0, COUNT, 6),
        (1.2, 1.0, COUNT, 17),  # 1.2 in five of six examples and 0 in one have a mean of 1
        (1.0, 1.0, COUNT, 6),  # not above 1, by sign
    ],
)
def test_how_many_examples_have_to_agree(value, threshold, within, enough):
    assert bootstrap.agreeing(value, threshold, within) == enough
    assert undecidable(value, value, enough, threshold, within) == ""
    said = undecidable(value, value, enough - 1, threshold, within)
    assert said.startswith(f"all {enough - 1} examples agree, and fewer than {enough} that agree decide nothing")


def test_how_many_have_to_agree_is_the_binomial_chance_at_the_threshold():
    for share in (0.5, 0.8, 0.9, 0.95):
        n = int(bootstrap.agreeing(1.0, share, SHARE))
        assert share**n < 0.05 and (share ** (n - 1) >= 0.05 or n == 6)
    assert stats.binom.pmf(6, 6, 0.9) == pytest.approx(0.53, abs=0.002)
    assert undecidable(1.0, 1.0, 6, 0.9) == "all 6 examples agree, and fewer than 29 that agree decide nothing about 0.9"


def test_numbers_in_words_have_brackets_only_where_there_is_an_interval():
    assert mean_interval([1.0, 1.0], within=SHARE).words() == "100% [34%, 100%]"
    assert mean_interval([1.0]).words() == "100%" and mean_interval([np.nan]).words() == "unknown"
    assert mean_interval([0.5, 0.5]).words("{:+.2f}") == "+0.50 [+0.50, +0.50]"
    assert bootstrap.points(0.81, 0.77, 0.86) == "81 [77, 86] percentage points"
    assert bootstrap.points(-0.041, np.nan, np.nan) == "-4 percentage points"
    assert bootstrap.ends(0.2, np.nan) == bootstrap.ends(np.nan, 0.2) == ""


def test_what_is_rounded_to_zero_has_no_sign():
    found = Interval(-0.001, -0.2, -0.0004, 8)
    assert found.words() == "0% [-20%, 0%]" and found.words("{:+.2f}") == "0.00 [-0.20, 0.00]"
    assert number(0.001, "{:+.2f}") == "0.00" and number(0.0, "{:+.2f}") == "+0.00" and number(-0.5, "{:.0f}") == "0"
    assert number(-3, "{}") == "-3.0" and number(float("nan"), "{:.1f}") == "nan" and number(1e-9, "{:.1e}") == "1.0e-09"


def test_statistic_interval_takes_any_statistic():
    values = np.arange(9.0)
    found = statistic_interval(lambda i: np.median(values[i]), 9, seed=3)
    assert found.mean == 4.0 and found.low < 4.0 < found.high
    rng = np.random.default_rng(3)
    drawn = [np.median(values[rng.integers(9, size=9)]) for _ in range(500)]
    assert found.low == pytest.approx(4 - factor(9) * (4 - np.percentile(drawn, 2.5)))
    assert np.isnan(statistic_interval(lambda i: values[i].mean(), 1).low)


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
        (lambda: statistic_interval(lambda indices: indices.mean(), 0), "n: got 0"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
