"""Heads are chosen again in every split and draw, on examples that are not reported on."""

import numpy as np
import pytest

from pycotmech.cot.tools.head_choice import SPLITS, lower_shares, placed_at_random, share_interval


def test_no_example_is_in_both_parts():
    gain = np.ones((9, 4, 2))
    gain[:, :, 0] = np.arange(9)[:, None]  # which examples were reported on can be read off the mean
    seen = []

    def choose(at):
        seen.append(set(at.tolist()))
        return np.ones((4, 2), bool)

    found = lower_shares(gain, choose, draws=30)
    assert found.split.shape == (SPLITS,) and found.drawn.shape == (30,) and (found.split == 0.5).all()
    assert all(len(s) == 4 for s in seen[:SPLITS]) and len({frozenset(s) for s in seen}) > 20


def test_a_share_holds_the_choice():
    """Of two heads, one in each half of the layers, the choice takes one, at random: the interval knows it."""
    gain = np.ones((16, 4, 1))
    one = lambda at: (np.arange(4) == (0 if at.sum() % 2 else 3))[:, None]  # noqa: E731
    shares = lower_shares(gain, one, draws=200)
    found = share_interval(shares.split, shares.drawn, 16)
    assert 0.1 < float(found.mean) < 0.9 and found.low == 0 and found.high == 1 and found.n == 16
    always = lower_shares(gain, lambda at: (np.arange(4) == 0)[:, None], draws=50)
    assert share_interval(always.split, always.drawn, 16)[:3] == (1, 1, 1)


def test_where_nothing_is_chosen_any_share_may_be():
    split, drawn = np.ones(20), np.ones(200)
    drawn[:20] = np.nan
    found = share_interval(split, drawn, 32)
    assert found.mean == 1 and found.low == 0 and found.high == 1
    split[:11] = np.nan
    assert np.isnan(share_interval(split, drawn, 32).mean)


@pytest.mark.parametrize(("k", "chance"), [(1, 0.5), (3, 0.125), (5, 1 / 32)])
def test_heads_anywhere(k, chance):
    drawn = placed_at_random(np.ones(k), (20, 20))
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03) and np.mean(drawn == 1) == pytest.approx(chance, abs=0.02)
