"""Random sets and orders of heads (sets beside an analysis's own: tests/cot/analyses/test_keep_only.py)."""

import numpy as np

from pycotmech.stats.averages import nanmean
from pycotmech.stats.draws import sets_like, shuffled_heads


def test_random_sets_have_the_sizes_of_their_models_and_differ():
    masks = np.random.default_rng(3).random((2, 3, 4, 8)) < 0.4
    masks[:, 1] = masks[:, 0]
    drawn = sets_like(masks, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.sum((2, 3)), masks.sum((2, 3)))
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 0] != drawn[:, 2]).any()
    np.testing.assert_array_equal(drawn, sets_like(masks, np.random.default_rng(0)))


def test_every_head_has_one_place_in_a_random_order():
    orders = [shuffled_heads((3, 5), 7, draw) for draw in (0, 1, 0)]
    assert all(sorted(order) == [(l, h) for l in range(3) for h in range(5)] for order in orders)
    assert orders[0] == orders[2] != orders[1]


def test_means_are_of_what_is_there():
    x = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(nanmean(x), [2.0, 5.0, np.nan])
