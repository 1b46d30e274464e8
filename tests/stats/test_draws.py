"""Random sets of heads with the layers of given ones."""

import numpy as np

from pycotmech.stats.averages import nanmean
from pycotmech.stats.draws import layer_matched, relabelled


def test_random_sets_have_the_layers_of_their_models_and_differ():
    masks = np.random.default_rng(3).random((3, 4, 8)) < 0.4
    masks[1] = masks[0]
    drawn = layer_matched(masks, np.random.default_rng(0))
    np.testing.assert_array_equal(drawn.sum(2), masks.sum(2))
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    np.testing.assert_array_equal(drawn, layer_matched(masks, np.random.default_rng(0)))


def test_random_members_of_a_set_are_drawn_from_it():
    rng = np.random.default_rng(0)
    pool = rng.random((2, 4, 8)) < 0.6
    taken = pool & (rng.random(pool.shape) < 0.5)
    seen = np.zeros(pool.shape)
    for _ in range(200):
        drawn = layer_matched(taken, rng, within=pool)
        assert not (drawn & ~pool).any()
        np.testing.assert_array_equal(drawn.sum(2), taken.sum(2))
        seen += drawn
    share = taken.sum(2) / pool.sum(2)  # every member of a layer equally often
    assert np.abs(seen / 200 - share[..., None])[pool].max() < 0.14  # four standard errors


def test_heads_change_places_in_all_sets_alike():
    rng = np.random.default_rng(1)
    masks = rng.random((3, 4, 8)) < 0.4
    drawn = relabelled(masks, rng)
    np.testing.assert_array_equal(drawn.sum(2), masks.sum(2))
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal((drawn[i] & drawn[j]).sum(1), (masks[i] & masks[j]).sum(1))
    assert (drawn != masks).any()


def test_means_are_of_what_is_there():
    x = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(nanmean(x), [2.0, 5.0, np.nan])
    np.testing.assert_array_equal(nanmean(x, 1), [1.0, 4.0])
