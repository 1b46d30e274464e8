"""Means over examples and heads, both resampled."""

import numpy as np
import pytest

from pycotmech.stats import bootstrap
from pycotmech.stats.crossed import LayerMeans


def test_means_are_pooled_over_what_counts():
    rng = np.random.default_rng(0)
    below = rng.integers(0, 3, size=(5, 4, 3)).astype(float)
    below[:, 2] = 0
    top = below * rng.random((5, 4, 3))
    found = LayerMeans.of(top, below)
    want = [top[:, l].sum() / below[:, l].sum() if l != 2 else np.nan for l in range(4)]
    np.testing.assert_allclose(found.curve, want)
    by_layer = found.by_layer()
    np.testing.assert_allclose(by_layer.mean, want)
    assert by_layer.n.tolist()[2] == 0 and np.isnan([by_layer.low[2], by_layer.high[2]]).all()
    assert found.over(slice(1, None)).mean == pytest.approx(top[:, 1:].sum() / below[:, 1:].sum())
    rise = found.rise(2)
    assert rise.mean == pytest.approx(top[:, 3].sum() / below[:, 3].sum() - top[:, :2].sum() / below[:, :2].sum())
    assert rise.low < rise.mean < rise.high


def test_it_is_the_same_again_with_a_seed():
    x = np.random.default_rng(1).random((6, 3, 4))
    first, again, other = (LayerMeans.of(x, np.ones_like(x), seed=s).rise(1) for s in (0, 0, 1))
    assert first == again and first.low != other.low


def test_heads_may_be_left_as_they_are():
    x = np.broadcast_to(np.random.default_rng(1).random((1, 4, 5)), (6, 4, 5))
    found = LayerMeans.of(x, np.ones_like(x), heads=False).rise(2)
    assert found.low == pytest.approx(found.mean) and found.high == pytest.approx(found.mean)


@pytest.mark.parametrize(("by_example", "by_head"), [(1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
def test_the_interval_covers_whatever_varies(by_example, by_head):
    """Effects of examples, of heads, and of both: a rise of 0 is covered in at least 90 % of 200 sets."""
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        x = by_example * rng.normal(size=(12, 6, 1)) + by_head * rng.normal(size=(1, 6, 6)) + 0.3 * rng.normal(size=(12, 6, 6))
        rise = LayerMeans.of(x, np.ones_like(x), draws=400).rise(3)
        inside += rise.low <= 0 <= rise.high
    assert inside >= 180


def test_a_share_of_none_has_an_interval_with_a_width():
    found = LayerMeans.of(np.zeros((8, 2, 3)), np.ones((8, 2, 3)), draws=50)
    low, high = found.over(slice(None), within=bootstrap.SHARE)[1:3]
    assert (low, high) == (0, pytest.approx(0.3244, abs=1e-4))
    rise = found.rise(1, within=bootstrap.SHARES_APART)
    assert rise.low == pytest.approx(-0.3244, abs=1e-4) and rise.high == pytest.approx(0.3244, abs=1e-4)
