"""Uncertainty over examples: percentile bootstrap (Efron 1979), halves for choosing and reporting."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate and its interval, arrays of one shape. low and high are NaN where fewer than two examples count."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]
    """Examples that count."""


def mean_interval(values: ArrayLike, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """The mean over examples and its bootstrap interval.

    values [n, ...]: one entry per example on the first axis, NaN where an example does not count.
    level: of the interval; draws: resamples of the examples (all entries of one example stay together).
    """
    return ratio_interval(values, None, level=level, draws=draws, seed=seed)


def ratio_interval(
    numerator: ArrayLike, denominator: ArrayLike | None, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The ratio of two means over examples, with its bootstrap interval: both are resampled together.

    numerator, denominator [n, ...], NaN in either where an example does not count; denominator None: the plain mean.
    """
    top = np.asarray(numerator, dtype=np.float64)
    if top.ndim == 0 or len(top) == 0:
        raise ValueError(f"values: got shape {list(top.shape)}; expected [n, ...] with at least one example")
    if not 0 < level < 1:
        raise ValueError(f"level: got {level}; expected a number between 0 and 1")
    if draws < 2:
        raise ValueError(f"draws: got {draws}; expected 2 or more")
    shape, n = top.shape[1:], len(top)
    top = top.reshape(n, -1)
    below = np.ones_like(top) if denominator is None else np.broadcast_to(np.asarray(denominator, float), (n, *shape))
    below = below.reshape(n, -1)
    counts = np.isfinite(top) & np.isfinite(below)
    top, below = np.where(counts, top, 0.0), np.where(counts, below, 0.0)
    weights = resampled(n, draws=draws, seed=seed)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = top.sum(0) / np.where(counts.any(0), below.sum(0), np.nan)
        drawn = (weights @ top) / np.where(weights @ counts > 0, weights @ below, np.nan)
    low, high = percentiles(drawn, level)
    enough = counts.sum(0) > 1
    low, high = np.where(enough, low, np.nan), np.where(enough, high, np.nan)
    return Interval(*(x.reshape(shape) for x in (mean, low, high, counts.sum(0))))


def statistic_interval(
    statistic: Callable[[NDArray[np.int64]], ArrayLike], n: int, *, level: float = LEVEL, draws: int = 500, seed: int = 0
) -> Interval:
    """Any statistic of a set of examples, by resampling their numbers: statistic(indices [n]) -> number or array.

    Cost: draws + 1 calls of `statistic`.
    """
    whole = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.asarray(statistic(rng.integers(n, size=n)), dtype=np.float64) for _ in range(draws)])
    low, high = percentiles(drawn, level)
    if n < 2:
        low, high = np.full_like(whole, np.nan), np.full_like(whole, np.nan)
    return Interval(whole, low, high, np.full(whole.shape, n))


def resampled(n: int, *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """How often each of n examples is drawn in each resample: float64 [draws, n], rows sum to n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def halves(n: int, *, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the examples to choose on and of those to report on: a seeded split into two halves, both sorted.

    With an odd n the reporting half has one more; a single example is used for both, which the caller has to say.
    """
    if n < 1:
        raise ValueError(f"n: got {n}; expected at least one example")
    if n == 1:
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: n // 2]), np.sort(order[n // 2 :])


def percentiles(drawn: NDArray, level: float = LEVEL) -> tuple[NDArray, NDArray]:
    """The ends of the interval from draws [draws, ...], of those draws in which the statistic is defined."""
    out = np.full((2, *drawn.shape[1:]), np.nan)
    some = np.isfinite(drawn).any(0)
    tail = 100 * (1 - level) / 2
    if some.any():
        out[:, some] = np.nanpercentile(drawn[:, some], [tail, 100 - tail], axis=0)
    return out[0], out[1]
