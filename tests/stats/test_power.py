"""The planned number of examples decides as often as was asked for, and neither half of it nor a few less would."""

import math

import numpy as np
import pytest
from scipy.stats import binom, t

from pycotmech.stats import bootstrap, shares
from pycotmech.stats.power import MOST, examples_needed


@pytest.mark.parametrize(("apart", "spread"), [(0.5, 1.0), (-1.2, 1.0), (0.2, 1.0), (3.0, 1.0)])
def test_means(apart, spread):
    pilot = np.array([-1.0, 1.0, -1.0, 1.0])
    pilot = pilot / pilot.std(ddof=1) * spread + 2.0 + apart
    n = int(examples_needed(pilot, 2.0))
    rng = np.random.default_rng(0)

    def decided(n):
        x = rng.normal(2.0 + apart, spread, size=(20_000, n))
        reach = t.ppf(0.975, n - 1) * x.std(1, ddof=1) / math.sqrt(n)
        return np.mean(np.abs(x.mean(1) - 2.0) > reach)

    assert decided(n) >= 0.79
    assert n == 2 or decided(n - 1) < 0.815


def test_an_example_of_the_textbooks():
    """Half a standard deviation from the threshold: 34 examples (Cohen 1988, one sample, two-sided 5 %, power 0.8)."""
    pilot = np.array([-1.0, 1.0]) / math.sqrt(2) + 0.5
    assert examples_needed(pilot, 0.0) == 34


@pytest.mark.parametrize(("yes", "n", "threshold"), [(7, 8, 0.5), (8, 8, 0.9), (1, 8, 0.5), (30, 40, 0.9)])
def test_shares(yes, n, threshold):
    pilot = np.array([1.0] * yes + [0.0] * (n - yes))
    needed = examples_needed(pilot, threshold, share=True)
    p, m = (yes + 0.5) / (n + 1), int(needed)
    low, high = shares.wilson(np.arange(m + 1) / m, np.full(m + 1, float(m)))
    assert binom.pmf(np.arange(m + 1), m, p)[(low > threshold) | (high < threshold)].sum() >= 0.8


def test_shares_of_several_steps_are_worth_more_trials_than_examples():
    steps = np.random.default_rng(0).binomial(10, 0.75, size=12) / 10
    several = examples_needed(steps, 0.5, share=True)
    single = examples_needed(np.array([1.0] * 9 + [0.0] * 3), 0.5, share=True)
    assert several < single / 3


def test_what_cannot_be_planned():
    assert math.isnan(examples_needed([1.0], 0.0)) and math.isnan(examples_needed([np.nan, 1.0], 0.0))
    assert examples_needed([-1.0, 1.0], 0.0) == math.inf  # on the threshold
    assert examples_needed([0.0001, 0.02, -0.02], 0.0) == math.inf  # more than MOST
    assert examples_needed([0.5, 0.5, 0.5], 0.0) == bootstrap.FEWEST_ALIKE  # no spread at all
    assert examples_needed([0.5, 0.5], 0.5) == math.inf
    assert examples_needed([1.0, 0.0], 0.5, share=True) == math.inf and MOST == 10_000
