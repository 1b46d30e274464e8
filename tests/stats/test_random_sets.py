"""Intervals beside random sets hold their level where nothing was chosen, and overlaps by chance are those of draws."""

import math

import numpy as np
import pytest

from pycotmech.stats import bootstrap
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.random_sets import DRAWS, beyond_draws, shared_by_layer, without_strata
from tests.reference.close import assert_allclose

SPREADS = [(0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (1.0, 0.3, 0.3)]
"""Of sets, of examples and of what is left, on the scale of logits."""


def accuracies(rng, n, m, spreads, steps=10):
    """Shares of `steps` steps that m sets keep in n examples: [n, m]."""
    sets, examples, rest = (rng.normal(scale=s, size=shape) for s, shape in zip(spreads, ((1, m), (n, 1), (n, m))))
    return rng.binomial(steps, 1 / (1 + np.exp(-(1 + sets + examples + rest)))) / steps


@pytest.mark.parametrize("n", [8, 16, 64])
@pytest.mark.parametrize("spreads", SPREADS)
def test_a_random_set_is_seldom_called_better_than_random_sets(n, spreads):
    """The chosen set is one more draw: its difference from a further one is 0 in expectation."""
    rng, times = np.random.default_rng(n), 200
    above = covered = 0
    for _ in range(times):
        x = accuracies(rng, n, DRAWS + 1, spreads)
        found = beyond_draws(x[:, :1] - x[:, 1:], within=(-1, 1))
        above += found.low > 0
        covered += found.low <= 0 <= found.high
    assert above / times <= 0.06 and 0.9 <= covered / times <= 0.99


def test_an_interval_of_the_mean_of_draws_would_call_it_so_often():
    """What the interval is not: with many examples the mean over draws is known well, and a random set lies anywhere."""
    rng, above = np.random.default_rng(0), 0
    for _ in range(100):
        x = accuracies(rng, 64, DRAWS + 1, (1.0, 0.3, 0.3))
        above += bootstrap.mean_interval(x[:, 0] - x[:, 1:].mean(1), draws=200).low > 0
    assert above > 30


def test_by_hand():
    x = np.array([[0.5, 0.7, 0.6], [0.3, 0.5, 0.4]])  # of examples and sets, without rest
    found = beyond_draws(x)
    of_examples = bootstrap.mean_interval(x.mean(1))
    reach = 4.302652729749464 * math.sqrt(0.01 * 4 / 3)  # Student's quantile at 2, the variance of 0.4, 0.6, 0.5
    assert_allclose(found.mean, 0.5)
    assert_allclose(found.low, 0.5 - math.hypot(0.5 - of_examples.low, reach))
    assert_allclose(found.high, 0.5 + math.hypot(of_examples.high - 0.5, reach))
    cut = beyond_draws(x, within=(0.0, 1.0))
    assert cut.low == 0 and found.n == 2
    gone = np.concatenate((x, np.full((1, 3), np.nan)))  # an example that does not count
    assert_allclose(beyond_draws(gone).high, found.high)
    for few in (x[:1], x[:, :1]):
        assert np.isnan(beyond_draws(few).low) and np.isfinite(beyond_draws(few).mean)
    with pytest.raises(ValueError, match="values: got shape"):
        beyond_draws(np.zeros((2, 0)))


def test_further_axes_are_taken_one_by_one():
    x = np.random.default_rng(0).random((5, 7, 3))
    found = beyond_draws(x, within=(0, 1))
    for i in range(3):
        one = beyond_draws(x[..., i], within=(0, 1))
        assert_allclose([found.mean[i], found.low[i], found.high[i]], [one.mean, one.low, one.high])


def test_strata_take_their_means_and_their_degrees_of_freedom():
    rng = np.random.default_rng(0)
    strata = np.arange(20) % 2
    x = rng.normal(scale=0.1, size=(6, 20)) + np.where(strata, 5.0, 1.0)
    even = without_strata(x, strata, [3, 1])
    assert_allclose(even.mean(), (3 * x[:, strata == 0].mean() + x[:, strata == 1].mean()) / 4)
    found = beyond_draws(even, lost=2)
    assert found.high - found.low < 0.5 < beyond_draws(x).high - beyond_draws(x).low
    assert_allclose(without_strata(x[:, :1], strata[:1], [3, 1]), x[:, :1])  # a stratum without a draw is left out


def test_overlap_in_the_same_layers_is_that_of_draws():
    rng = np.random.default_rng(2)
    a, b = (rng.random((6, 9)) < rng.random((6, 1)) for _ in range(2))
    expected, p = shared_by_layer(a, b)
    drawn = [int((layer_matched(a[None], rng)[0] & layer_matched(b[None], rng)[0]).sum()) for _ in range(3000)]
    assert expected == pytest.approx(np.mean(drawn), abs=0.15)
    assert p == pytest.approx(np.mean(np.array(drawn) >= (a & b).sum()), abs=0.04)


def test_overlap_in_one_layer_is_hypergeometric():
    a, b = np.zeros((2, 2, 8), bool)
    a[0, :3], b[0, 1:5] = True, True  # two of three among four of eight
    expected, p = shared_by_layer(a, b)
    assert expected == 1.5
    assert p == pytest.approx((math.comb(3, 2) * math.comb(5, 2) + math.comb(5, 1)) / math.comb(8, 4))
    a[1], b[1] = True, True  # a layer that both hold whole adds what it must
    assert shared_by_layer(a, b) == (9.5, pytest.approx(p))
    assert shared_by_layer(a, np.zeros_like(b)) == (0.0, 1.0)
