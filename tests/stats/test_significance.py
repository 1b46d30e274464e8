"""Tests of means over few examples (the tests that choose heads: tests/cot/tools/test_select_heads.py)."""

import math

import numpy as np
import pytest

from pycotmech.stats.significance import adjusted, fewest, hypergeometric, means_above_zero, p_values
from tests.reference.close import assert_allclose


def test_false_discoveries_are_as_rare_as_asked():
    noise = np.random.default_rng(0).normal(size=(200, 8, 30, 9))
    found = np.array([means_above_zero(x).any() for x in noise])
    assert found.mean() < 0.1  # at most 5 %, with nothing to find
    noise[:, :, 3, 2] += 8
    assert np.mean([means_above_zero(x)[3, 2] for x in noise]) > 0.95
    assert not means_above_zero(noise[0, :1]).any()


def test_without_examples_nothing_is_found():
    assert means_above_zero(np.empty((0, 3, 2))).tolist() == [[False, False]] * 3
    with pytest.raises(ValueError, match="0 example"):
        p_values(np.empty((0, 3, 2)))


def test_corrections_are_those_of_holm_and_of_benjamini_and_hochberg():
    p = np.array([0.01, 0.04, 0.03, 0.5])
    assert_allclose(adjusted(p, "holm"), [0.04, 0.09, 0.09, 0.5])
    assert_allclose(adjusted(p, "bh"), [0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_random_sets_share_as_many_as_they_may():
    counted = [math.comb(4, i) * math.comb(6, 3 - i) / math.comb(10, 3) for i in range(4)]
    for overlap in range(4):
        assert hypergeometric(overlap, 4, 3, 10) == pytest.approx(sum(counted[overlap:]))


@pytest.mark.parametrize(
    ("options", "least"), [({}, 5), ({"two_sided": True}, 6), ({"alpha": 0.5}, 2), ({"test": "sign", "heads": 64}, 11)]
)
def test_the_fewest_examples_are_those_that_are_not_refused(options, least):
    heads, options = options.get("heads", 8), {k: v for k, v in options.items() if k != "heads"}
    assert fewest(heads=heads, **options) == least
    p_values(np.ones((least, heads)), **options)
    if least > 2:
        with pytest.raises(ValueError, match=f"expected {least} examples or more"):
            p_values(np.ones((least - 1, heads)), **options)
