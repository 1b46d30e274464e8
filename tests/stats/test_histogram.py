"""Bins of a histogram, worked out by hand."""

import numpy as np
import pytest

from pycotmech.stats.histogram import freedman_diaconis
from tests.reference.close import assert_allclose

# 64 scores from 0 to 10 with quartiles 4.5 and 6.5: bins of width 2 * 2 / 64^(1/3) = 1, the fullest from 5 to 6.
VALUES = [0.0, *[2.5] * 4, *[4.5] * 20, *[5.5] * 22, *[6.5] * 12, *[8.5] * 4, 10.0]


def test_bins_are_freedman_and_diaconis():
    assert_allclose(freedman_diaconis(np.random.default_rng(0).permutation(VALUES)), np.arange(11))
    with pytest.raises(ValueError, match="half of the 5 scores or more are equal"):
        freedman_diaconis(np.array([0, 1, 1, 1, 2.0]))
