"""Intervals of shares: Wilson's formula, what clustered trials are worth, and coverage."""

import numpy as np
import pytest
from scipy import optimize, stats

from pycotmech.stats.bootstrap import SHARE, SHARES_APART, mean_interval, ratio_interval, statistic_interval
from pycotmech.stats.shares import wilson, worth


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 8), (8, 8), (57, 60)])
def test_wilson_inverts_the_score_test(k, n):
    low, high = wilson(k / n, n)
    z = stats.norm.ppf(0.975)

    def beyond(p):
        return (k / n - p) ** 2 - z**2 * p * (1 - p) / n

    assert low == (pytest.approx(optimize.brentq(beyond, 1e-9, k / n - 1e-9), abs=1e-9) if k else 0.0)
    assert high == (pytest.approx(optimize.brentq(beyond, k / n + 1e-9, 1 - 1e-9), abs=1e-9) if k < n else 1.0)


def test_examples_that_all_agree_have_an_interval_with_a_width():
    found = mean_interval(np.ones(8), within=SHARE)
    assert (found.mean, found.high, found.n) == (1.0, 1.0, 8) and found.low == pytest.approx(0.6756, abs=1e-4)
    six = mean_interval(np.ones(6), within=SHARE)
    assert six.low < 0.9  # six of six are no sign of a share above 0.9: at 0.9 they happen in half of all draws


def test_single_trials_are_worth_their_number_and_clusters_less():
    rng = np.random.default_rng(0)
    trials = (rng.random((400, 1)) < 0.7).astype(float)
    counts = np.ones_like(trials, dtype=bool)
    t = stats.t.ppf(0.975, 399) / stats.norm.ppf(0.975)
    assert worth(trials, np.ones_like(trials), counts)[0] == pytest.approx(400 * 399 / 400 / t**2, rel=1e-12)
    shares = rng.binomial(10, 0.7, (400, 1)) / 10  # ten independent trials each
    assert worth(shares, np.ones_like(shares), counts)[0] == pytest.approx(4000, rel=0.15)
    together = np.repeat(trials, 1, axis=1)  # ten trials that always agree are one
    assert worth(10 * together, np.full_like(together, 10.0), counts)[0] == pytest.approx(worth(trials, counts, counts)[0])


def test_the_share_of_a_ratio_weighs_examples_by_their_trials():
    top, below = np.array([9.0, 1.0, 5.0, 0.0]), np.array([10.0, 2.0, 5.0, 3.0])
    found = ratio_interval(top, below, within=SHARE)
    p = 15 / 20
    residual = top - p * below
    variance = 4 / 3 * (residual**2).sum() / 20**2
    t, z = stats.t.ppf(0.975, 3), stats.norm.ppf(0.975)
    low, high = wilson(p, p * (1 - p) / variance * (z / t) ** 2)
    assert found.mean == pytest.approx(p) and found.low == pytest.approx(low) and found.high == pytest.approx(high)


def test_an_example_that_does_not_count_changes_nothing():
    values = np.array([1.0, 0.5, np.nan, 0.8])
    known = values[np.isfinite(values)]
    assert mean_interval(values, within=SHARE) == mean_interval(known, within=SHARE)
    nothing = mean_interval(np.full(3, np.nan), within=SHARE)
    assert np.isnan(nothing.low) and np.isnan(nothing.high) and nothing.n == 0
    one = mean_interval([0.5], within=SHARE)
    assert one.mean == 0.5 and np.isnan(one.low) and np.isnan(one.high)


@pytest.mark.parametrize("value", [-1.0, -0.3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 8, 64])
def test_differences_that_all_agree_have_an_interval_with_a_width(value, n):
    """Up to z^2 / (n + z^2) of all examples may have any other difference."""
    found = mean_interval(np.full(n, value), within=SHARES_APART)
    other = wilson(0.0, n).high
    assert found.mean == value and found.high - found.low == pytest.approx(2 * other)
    assert found.low == pytest.approx(value - other * (value + 1)) and found.high == pytest.approx(value + other * (1 - value))
    assert -1 <= found.low <= value <= found.high <= 1


def test_shares_that_agree_but_for_rounding_agree():
    rounded = mean_interval(1 - 1e-8 * np.arange(8), within=SHARE)
    assert rounded.low == pytest.approx(mean_interval(np.ones(8), within=SHARE).low, abs=1e-6)


def test_no_statistic_that_is_a_share_has_an_interval_without_width():
    found = statistic_interval(lambda rows: (1.0, 0.0, 1.0, 4.0), 8, within=(SHARE, SHARE, SHARES_APART, (0.0, 9.0)))
    assert found.low == pytest.approx([0.6756, 0, 0.3512, 4], abs=1e-4)
    assert found.high == pytest.approx([1, 0.3244, 1, 4], abs=1e-4)


_APART = {
    "both 0.9": (0.9, 0.9, 1),
    "0.9 and 0.5": (0.9, 0.5, 1),
    "0.9 and none": (0.9, 0.0, 1),
    "ten steps, 0.9 and 0.5": (0.9, 0.5, 10),
    "ten steps, 0.98 and 0.8": (0.98, 0.8, 10),
}


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("kind", _APART)
def test_coverage_of_differences(kind, n):
    """Two shares of each example, one trial each or ten with an intra-class correlation of 0.1. The bootstrap's interval covers
    0.9 and none in 56 % at 8 examples."""
    p, q, trials = _APART[kind]
    rng, draws = np.random.default_rng(n), 4000

    def drawn(share):
        if share == 0:
            return np.zeros((n, draws))
        each = share if trials == 1 else rng.beta(9 * share, 9 * (1 - share), (n, draws))
        return rng.binomial(trials, each, (n, draws)) / trials

    found = mean_interval(drawn(p) - drawn(q), within=SHARES_APART)
    covered = ((found.low <= p - q + 1e-12) & (p - q - 1e-12 <= found.high)).mean()
    assert 0.93 <= covered <= (1 if trials == 1 else 0.97)


_KINDS = [("trials", 0.5), ("trials", 0.9), ("clusters", 0.8), ("clusters", 0.9), ("tight", 0.9)]


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize(("kind", "p"), _KINDS)
def test_coverage(kind, p, n):
    """Each example is one trial, ten trials with an intra-class correlation of 0.1, or a probability near p."""
    rng, draws = np.random.default_rng(n), 4000
    if kind == "trials":
        values = (rng.random((n, draws)) < p).astype(float)
    elif kind == "clusters":
        values = rng.binomial(10, rng.beta(9 * p, 9 * (1 - p), (n, draws))) / 10
    else:
        values = rng.beta(30 * p, 30 * (1 - p), (n, draws))
    found = mean_interval(values, within=SHARE)
    covered = ((found.low <= p) & (p <= found.high)).mean()
    # Trials are whole numbers, so that no interval has exactly its level: 8 trials at 0.5 are covered in 99.3 %.
    assert 0.93 <= covered <= (0.995 if kind == "trials" else 0.97)
