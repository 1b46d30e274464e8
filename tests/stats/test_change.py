"""Where curves change, on curves that are made."""

import numpy as np
import pytest

from pycotmech.stats import bootstrap, change


def test_a_change_is_seldom_named_in_noise_and_found_where_it_is():
    """Curves of 8 examples at 13 depths, of noise that also drifts along the depths; and a step of three times that noise."""

    def named(step, seed):
        rng = np.random.default_rng(seed)
        d = rng.normal(size=(8, 13)).cumsum(1) * 0.3 + rng.normal(size=(8, 13)) + step * (np.arange(13) >= 7)
        drawn = bootstrap.resampled(8, draws=500) @ d / 8
        return change.rise_interval(d.mean(0), drawn, len(d))[1] > 0

    assert np.mean([named(0, seed) for seed in range(200)]) < 0.1
    assert np.mean([named(3, seed) for seed in range(50)]) > 0.9


def test_change_points_of_known_curves():
    assert change.change_point(np.array([0, 0, 0, 1, 1.0])) == 3
    assert np.isnan(change.change_point(np.array([1, 1, 0, 0.0]))) and np.isnan(change.change_point(np.full(5, 0.1)))
    assert change.change_point(np.array([np.nan, 0, 0, np.nan, 1])) == 3
    noisy = np.random.default_rng(0).normal(size=(50, 12)) + np.linspace(0, 1, 12)
    for curve in noisy:  # least squares, written out
        errors = [curve[:j].var() * j + curve[j:].var() * (12 - j) for j in range(1, 12)]
        rising = [e if curve[j:].mean() > curve[:j].mean() else np.inf for j, e in enumerate(errors, 1)]
        assert change.change_point(curve) == 1 + int(np.argmin(rising))
    assert change.crossing(np.array([-1, 1, -1, 1, 1.0])) == 3
    assert np.isnan(change.crossing(np.array([-1, 1, -1.0]))) and np.isnan(change.crossing(np.array([1, 1.0])))
    assert change.abruptness(np.array([0, 0, 0, 1, 1.0]), 3) == 1
    assert change.abruptness(np.linspace(0, 1, 11), 5) == pytest.approx(0.3)
    assert np.isnan(change.abruptness(np.ones(4), np.nan))
