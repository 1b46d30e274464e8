"""Simulates how often each kind of interval of `pycotmech.stats` contains the truth: 95 % nominal, 8, 16 and 64 examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap, change
from pycotmech.stats.crossed import LayerMeans

EXAMPLES = (8, 16, 64)
_RESAMPLES = 1000
_SLOW = 10
"""Draws of the intervals that resample one statistic at a time are fewer by this factor."""
Simulation = Callable[[np.random.Generator, int, int], tuple[Any, Any, Any]]
"""From a generator, the number of examples and of draws to low [draws], high [draws] and the truth."""


class Kind(NamedTuple):
    """One kind of interval. least, most: the range of its coverage, stated in its docstring if it is not 0.9 to 0.97."""

    name: str
    simulate: Simulation
    least: float = 0.90
    most: float = 0.97
    slow: bool = False


def table(draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """Returns a row for each kind of interval and number of examples: how often it covers the truth, its mean width, the stated
    range of coverage, and whether this holds to three standard errors of the simulation."""
    rows = []
    for number, kind in enumerate(KINDS):
        for n in EXAMPLES:
            repeats = max(2, draws // _SLOW if kind.slow else draws)
            low, high, true = kind.simulate(np.random.default_rng([seed, number, n]), n, repeats)
            covered = float(((low <= true + 1e-12) & (true - 1e-12 <= high)).mean())
            below, above = (3 * (max(p * (1 - p), 0.05 * 0.95) / repeats) ** 0.5 for p in (kind.least, kind.most))
            rows.append(
                {
                    "interval": kind.name,
                    "n": n,
                    "covered": round(covered, 4),
                    "width": round(float(np.mean(np.asarray(high) - low)), 4),
                    "at_least": kind.least,
                    "at_most": kind.most,
                    "draws": repeats,
                    "holds": bool(kind.least - below <= covered <= kind.most + above),
                }
            )
    return rows


def _ends(found: bootstrap.Interval, true: Any) -> tuple[NDArray, NDArray, Any]:
    return found.low, found.high, true


def _mean(rng: np.random.Generator, n: int, draws: int, *, law: str) -> tuple[Any, Any, Any]:
    values = getattr(rng, law)(size=(n, draws))
    return _ends(bootstrap.mean_interval(values, draws=_RESAMPLES), 0.0 if law == "normal" else 1.0)


def _trials(rng: np.random.Generator, share: float, trials: int, shape: tuple[int, int], alike: float = 0.1) -> NDArray:
    """Shares of `trials` steps of each example that succeed together with an intra-class correlation of `alike`."""
    if trials == 1 or share in (0, 1):
        return rng.binomial(trials, share, shape) / trials
    size = 1 / alike - 1
    return rng.binomial(trials, rng.beta(size * share, size * (1 - share), shape)) / trials


def _share(
    rng: np.random.Generator, n: int, draws: int, *, share: float, trials: int, alike: float = 0.1
) -> tuple[Any, Any, Any]:
    values = _trials(rng, share, trials, (n, draws), alike)
    return _ends(bootstrap.mean_interval(values, within=bootstrap.SHARE), share)


def _apart(rng: np.random.Generator, n: int, draws: int, *, a: float, b: float, trials: int) -> tuple[Any, Any, Any]:
    values = _trials(rng, a, trials, (n, draws)) - _trials(rng, b, trials, (n, draws))
    return _ends(bootstrap.mean_interval(values, within=bootstrap.SHARES_APART), a - b)


def _ratio(rng: np.random.Generator, n: int, draws: int, *, skewed: bool) -> tuple[Any, Any, Any]:
    """Means of numerators that are a uniform share of their denominators."""
    below = rng.lognormal(sigma=1.0, size=(n, draws)) if skewed else rng.gamma(4.0, size=(n, draws))
    return _ends(bootstrap.ratio_interval(below * rng.uniform(size=below.shape), below, draws=_RESAMPLES), 0.5)


def _weighed(rng: np.random.Generator, n: int, draws: int) -> tuple[Any, Any, Any]:
    """The share of all trials of examples that have 2 to 10 of them each."""
    trials = rng.integers(2, 11, (n, draws))
    hits = rng.binomial(trials, rng.beta(7.2, 1.8, (n, draws)))
    return _ends(bootstrap.ratio_interval(hits, trials, within=bootstrap.SHARE), 0.8)


def _one_by_one(
    make: Callable[[np.random.Generator, int], Callable[[NDArray[np.int64]], float]],
    true: float,
    within: bootstrap.Range | None,
    rng: np.random.Generator,
    n: int,
    draws: int,
) -> tuple[Any, Any, Any]:
    found = [bootstrap.statistic_interval(make(rng, n), n, within=within, draws=300, seed=i) for i in range(draws)]
    return np.array([f.low for f in found]), np.array([f.high for f in found]), true


def _median(rng: np.random.Generator, n: int) -> Callable[[NDArray[np.int64]], float]:
    values = rng.normal(size=n)
    return lambda rows: float(np.median(values[rows]))


_HEADS = np.random.default_rng(7).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=40).T
"""The true means of two scores of 40 heads."""
_CORRELATED = float(np.corrcoef(_HEADS)[0, 1])


def _correlation(rng: np.random.Generator, n: int) -> Callable[[NDArray[np.int64]], float]:
    """Over 40 heads, of the means over examples of their two scores."""
    a, b = (true + 0.5 * rng.normal(size=(n, 40)) for true in _HEADS)
    return lambda rows: float(np.corrcoef(a[rows].mean(0), b[rows].mean(0))[0, 1])


def _curves(rng: np.random.Generator, n: int) -> NDArray:
    """Curves over 13 depths that rise by 1 at depth 7, in noise, part of which drifts along the depths."""
    return 0.2 * rng.normal(size=(n, 13)).cumsum(1) + 0.5 * rng.normal(size=(n, 13)) + (np.arange(13) >= 7)


def _place(rng: np.random.Generator, n: int) -> Callable[[NDArray[np.int64]], float]:
    curves = _curves(rng, n)
    return lambda rows: change.change_point(curves[rows].mean(0))


def _rise(rng: np.random.Generator, n: int, draws: int) -> tuple[Any, Any, Any]:
    """The rise at the depth that was chosen, against the true curve's rise there."""
    step, low, high, true = (np.arange(13) >= 7).astype(float), [], [], []
    for i in range(draws):
        curves = _curves(rng, n)
        drawn = bootstrap.resampled(n, draws=300, seed=i) @ curves / n
        _, a, b = change.rise_interval(curves.mean(0), drawn, n)
        low.append(a), high.append(b), true.append(change.rise_at(step, change.change_point(curves.mean(0))))
    return np.array(low), np.array(high), np.array(true)


def _crossed(rng: np.random.Generator, n: int, draws: int, *, rise: bool = False) -> tuple[Any, Any, Any]:
    """4 layers of 9 heads: of an example, of a head and of both, in equal parts."""
    low, high = [], []
    for i in range(draws):
        values = rng.normal(size=(n, 1, 1)) + rng.normal(size=(1, 4, 9)) + rng.normal(size=(n, 4, 9))
        found = LayerMeans.of(values, np.ones_like(values), draws=300, seed=i)
        ends = found.rise(2) if rise else found.over(slice(None))
        low.append(float(ends.low)), high.append(float(ends.high))
    return np.array(low), np.array(high), 0.0


KINDS = (
    Kind("mean, normal values", partial(_mean, law="normal")),
    Kind("mean, exponential values", partial(_mean, law="exponential"), 0.87),
    Kind("share 0.5, one trial an example", partial(_share, share=0.5, trials=1), most=1.0),
    Kind("share 0.9, one trial an example", partial(_share, share=0.9, trials=1), most=1.0),
    Kind("share 0.8 of ten steps, clustered", partial(_share, share=0.8, trials=10)),
    Kind("share 0.9 of ten steps, clustered", partial(_share, share=0.9, trials=10)),
    Kind("share 0.8 of ten steps, half of the variance between examples", partial(_share, share=0.8, trials=10, alike=0.5)),
    Kind(
        "share 0.9 of ten steps, half of the variance between examples", partial(_share, share=0.9, trials=10, alike=0.5), 0.85
    ),
    Kind("share 0.8 of 2 to 10 steps, ratio of sums", _weighed),
    Kind("ratio of means", partial(_ratio, skewed=False)),
    Kind("ratio of means, lognormal denominators", partial(_ratio, skewed=True)),
    Kind("difference of shares, 0.9 and 0.5, one trial", partial(_apart, a=0.9, b=0.5, trials=1)),
    Kind("difference of shares, 0.9 and 0.9, one trial", partial(_apart, a=0.9, b=0.9, trials=1), most=1.0),
    Kind("difference of shares, 0.9 and 0, one trial", partial(_apart, a=0.9, b=0.0, trials=1), most=1.0),
    Kind("difference of shares, 0.1 and 0, one trial", partial(_apart, a=0.1, b=0.0, trials=1), 0.87, 1.0),
    Kind("difference of shares of ten steps, 0.9 and 0.5", partial(_apart, a=0.9, b=0.5, trials=10)),
    Kind("difference of shares of ten steps, 0.98 and 0.8", partial(_apart, a=0.98, b=0.8, trials=10)),
    Kind("median of normal values", partial(_one_by_one, _median, 0.0, None), most=0.99, slow=True),
    Kind(
        "correlation over heads",
        partial(_one_by_one, _correlation, _CORRELATED, bootstrap.SHARES_APART),
        0.75,
        slow=True,
    ),
    Kind("depth of a change", partial(_one_by_one, _place, 7.0, (1.0, 12.0)), most=1.0, slow=True),
    Kind("rise over a change, all depths at once", _rise, most=1.0, slow=True),
    Kind("mean over examples and heads", _crossed, most=1.0, slow=True),
    Kind("mean over examples and heads, upper layers less lower", partial(_crossed, rise=True), most=1.0, slow=True),
)
