"""The threshold that controls set: exact ranks, and the level that it promises."""

import math

import numpy as np
import pytest

from pycotmech.stats.null_effects import null_threshold


def test_ranks():
    size = np.arange(1.0, 101.0)
    assert null_threshold(size * (-1) ** np.arange(100)) == 96  # ceil(0.95 x 101)
    assert null_threshold(size[:19]) == 19 and null_threshold(size[:39]) == 38
    assert null_threshold(size[:5].reshape(5, 1)) == 5  # too few for the level: the largest
    assert null_threshold(np.array([np.nan, 2.0, -3.0])) == 3
    assert math.isnan(null_threshold(np.full(3, np.nan)))


@pytest.mark.parametrize("m", [19, 30, 100])
def test_no_more_than_the_level_lies_beyond(m):
    """Whatever the distribution: here one with a heavy tail."""
    rng = np.random.default_rng(m)
    draws = rng.standard_cauchy((4000, m + 1))
    beyond = [abs(row[0]) > null_threshold(row[1:]) for row in draws]
    assert np.mean(beyond) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
