"""The pooled interval is over groups and examples: it covers the mean over groups that could have been drawn."""

import numpy as np
import pytest

from pycotmech.stats import bootstrap
from pycotmech.stats.pooled import pooled_interval


@pytest.mark.parametrize(("between", "within", "groups", "examples"), [(1.0, 1.0, 8, 8), (0.0, 1.0, 8, 8), (2.0, 0.5, 6, 16)])
def test_it_covers_the_mean_of_all_groups(between, within, groups, examples):
    rng = np.random.default_rng(0)
    inside = []
    for trial in range(300):
        centers = rng.normal(3.0, between, size=groups)
        found = pooled_interval([rng.normal(c, within, size=examples) for c in centers], draws=300, seed=trial)
        inside.append(found.low <= 3.0 <= found.high)
    assert np.mean(inside) >= 0.9


def test_one_group_weighs_as_much_as_another():
    found = pooled_interval([np.zeros(100), np.ones(2)])
    assert found.mean == 0.5 and found.n == 2 and found.low <= 0.0 and found.high >= 1.0
    cut = pooled_interval([np.zeros(100), np.ones(2)], within=bootstrap.SHARE)
    assert (cut.low, cut.high) == (0.0, 1.0)


def test_what_does_not_count_is_left_out():
    found = pooled_interval([[1.0, np.nan, 3.0], [np.nan, np.nan], [4.0, 4.0]])
    assert found.mean == 3.0 and found.n == 2
    alone = pooled_interval([[1.0, 2.0]])
    assert alone.mean == 1.5 and alone.n == 1 and np.isnan(alone.low) and np.isnan(alone.high)
    nothing = pooled_interval([])
    assert np.isnan(nothing.mean) and nothing.n == 0
