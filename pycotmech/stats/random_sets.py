"""Compares a chosen set with random sets: intervals over examples and draws, and overlaps by chance.

A chosen set is compared with m random sets on the same n examples. Two things vary: the examples, and which random sets were
drawn. A chosen set that is no better than random differs from the mean of the draws as one further draw does. An interval of
the mean over draws becomes ever narrower with m, and would call half of all random sets better than random. The intervals
here are therefore prediction intervals, for one further random set.

The value of an example and a draw is modelled as mean + example + draw + residual, random effects with the variances e, d and
r. The mean over both then differs from the expected value of a further draw with the variance (e + r / m) / n + d (1 + 1 / m).

* The first term belongs to the mean over examples of each example's mean over draws; `bootstrap.mean_interval` gives it.
* In the second, d is the variance of the draws' means minus its part r / n, from the two-way table. It takes Student's
  quantile at m - 1 degrees of freedom.

The two half-widths are combined as the root of the sum of their squares, on each side (Zou and Donner 2008, MOVER).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.stats import bootstrap
from pycotmech.stats.averages import nanmean

DRAWS = 20
"""Number of random sets: the smallest with which a set that is above all of them has p < 0.05 (1 / 21)."""


def beyond_draws(
    values: ArrayLike,
    *,
    within: bootstrap.Range | None = None,
    lost: int = 1,
    level: float = bootstrap.LEVEL,
    seed: int = 0,
) -> bootstrap.Interval:
    """Returns the mean over examples and random sets, with a prediction interval for one further random set.

    values [n, m, ...]: by example and draw, NaN where an example does not count (then for all draws). For a difference from a
        chosen set, the chosen set's value minus that of the draw.
    within: as in `bootstrap.mean_interval`.
    lost: degrees of freedom taken from the draws, the number of means that were subtracted (`without_strata`); 1: only their
        own mean.
    low and high are NaN with fewer than two examples, or without degrees of freedom.
    """
    from scipy.special import stdtrit

    x = np.asarray(values, dtype=np.float64)
    if x.ndim < 2 or 0 in x.shape[:2]:
        raise ValueError(f"values: got shape {list(x.shape)}; expected [n, m, ...] with at least one example and one draw")
    m = x.shape[1]
    by_example = nanmean(np.moveaxis(x, 1, 0))  # [n, ...]
    found = bootstrap.mean_interval(by_example, within=within, level=level, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        by_draw = nanmean(x)  # [m, ...]
        spread = by_draw.var(0, ddof=lost) if m > lost else np.full(by_draw.shape[1:], np.nan)
        rest = x - by_example[:, None] - by_draw[None] + nanmean(by_draw)
        rest = np.nansum(rest**2, (0, 1)) / ((found.n - 1) * max(m - lost, 1))
        of_sets = np.maximum(spread - rest / found.n, 0.0)
        reach = stdtrit(max(m - lost, 1), (1 + level) / 2) * np.sqrt(of_sets * (1 + 1 / m))
    low = found.mean - np.hypot(found.mean - found.low, reach)
    high = found.mean + np.hypot(found.high - found.mean, reach)
    if within is not None:
        low, high = np.clip(low, *within), np.clip(high, *within)
    return bootstrap.Interval(found.mean, low, high, found.n)


def without_strata(values: NDArray, strata: ArrayLike, weights: ArrayLike) -> NDArray[np.float64]:
    """Replaces each stratum's mean by the mean over strata, so that draws of several kinds can be treated as of one kind.

    values [n, m]: by example and draw. strata [m]: the stratum 0, 1, ... of each draw. weights: of each stratum in the mean
    over strata; strata without a draw are left out. Returns [n, m].
    """
    strata, weights = np.asarray(strata), np.asarray(weights, float)
    there = [s for s in range(len(weights)) if (strata == s).any()]
    means = np.stack([nanmean(values[:, strata == s].T) for s in there], 1)  # [n, strata]
    mean = (means * weights[there]).sum(1) / weights[there].sum()
    return values - means[:, [there.index(s) for s in strata]] + mean[:, None]


def shared_by_layer(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[float, float]:
    """Returns what two sets of heads, bool [L, H], share by chance if each keeps its number of heads in each layer.

    These are the expected number of shared heads, the sum over layers of a_l b_l / H, and the p-value of sharing as many as
    they do or more. The number is hypergeometric in each layer, and the sum over layers is their convolution: exact up to
    rounding.
    """
    from scipy.stats import hypergeom

    H = a.shape[1]
    counts = list(zip(a.sum(1).tolist(), b.sum(1).tolist()))
    total = np.ones(1)
    for m, n in counts:
        if m and n:
            total = np.convolve(total, hypergeom.pmf(np.arange(min(m, n) + 1), H, m, n))
    return sum(m * n for m, n in counts) / H, float(min(1.0, total[int((a & b).sum()) :].sum()))
