"""Plans how many examples an interval needs to exclude a threshold, from the values of a pilot."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.stats import bootstrap, shares

POWER = 0.8
"""Probability that the planned number of examples decides, if further values are distributed like the pilot's."""

MOST = 10_000
"""Largest number of examples that is planned; beyond it the answer is infinite."""


def examples_needed(
    values: ArrayLike,
    threshold: float,
    *,
    share: bool = False,
    level: float = bootstrap.LEVEL,
    power: float = POWER,
) -> float:
    """Returns the smallest number of examples with which the interval excludes the threshold with probability `power`.

    values [n]: those of the examples of a pilot, NaN where one does not count. Further values are assumed to be distributed
        like these.
    share: whether the values are shares with Wilson's interval, for which the score test that it inverts is used. Otherwise
        the interval is approximated by Student's interval of a mean.
    Returns inf beyond MOST, NaN with fewer than two values. From a small pilot the number is an order of magnitude.
    """
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if len(found) < 2:
        return math.nan
    reached = _of_share(found, threshold, level) if share else _of_mean(found, threshold, level)
    if reached is None or not reached(MOST) >= power:
        return math.inf
    low, high = 1, MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) >= power else (middle, high)
    return float(high)


def _of_mean(values: NDArray, threshold: float, level: float) -> Callable[[int], float] | None:
    """Returns a function from n to the power of Student's test of the mean."""
    from scipy.stats import nct, t

    apart, spread = abs(float(values.mean()) - threshold), float(values.std(ddof=1))
    if spread <= 1e-9 * max(1.0, abs(threshold)):
        return (lambda n: float(n >= bootstrap.FEWEST_ALIKE)) if apart > 0 else None

    def reached(n: int) -> float:
        if n < 2:
            return 0.0
        found = 1 - nct.cdf(t.ppf((1 + level) / 2, n - 1), n - 1, apart / spread * math.sqrt(n))
        return float(found) if np.isfinite(found) else 1.0  # far away, where the distribution is beyond what floats hold

    return reached


def _of_share(values: NDArray, threshold: float, level: float) -> Callable[[int], float] | None:
    """Returns a function from n to the power of the score test of a share.

    A few examples that all agree do not show a share of 0 or 1, so half an example is added to either side (Jeffreys' prior).
    """
    from scipy.stats import binom, norm

    n0, z = len(values), float(norm.ppf((1 + level) / 2))
    p = (float(values.sum()) + 0.5) / (n0 + 1)
    if p == threshold or not 0 < threshold < 1:
        return None
    alike = bool(np.isin(values, (0.0, 1.0)).all()) or float(values.std()) < 1e-12
    # How many yes-or-no trials one example is worth (`shares.worth`).
    trials = 1.0 if alike else float(values.mean() * (1 - values.mean()) / values.var(ddof=1))

    def exact(n: int) -> float:
        k = np.arange(n + 1)
        low, high = shares.wilson(k / n, np.full(n + 1, float(n)), level)
        decides = low > threshold if p > threshold else high < threshold
        return float(binom.pmf(k, n, p)[decides].sum())

    def normal(n: int) -> float:
        reach = z * math.sqrt(threshold * (1 - threshold) / (n * trials))
        return float(norm.cdf((abs(p - threshold) - reach) / math.sqrt(p * (1 - p) / (n * trials))))

    return exact if alike else normal
