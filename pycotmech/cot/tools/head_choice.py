"""Heads that are chosen on some examples and reported on others, and shares of layers that hold the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap

Choose = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""From the numbers of examples, which may repeat, to the heads [..., layer, head] that are chosen on them."""
SPLITS = 20


@dataclass(frozen=True, eq=False)
class LowerShares:
    """The share of the chosen heads' positive mean gain that lies in the first half of the layers.

    split [splits, ...]: chosen on one half of the examples, reported on the other, for random halves. drawn [draws, ...]: the
    same with each half resampled. NaN where nothing is chosen.
    """

    split: NDArray[np.float64] = field(repr=False)
    drawn: NDArray[np.float64] = field(repr=False)


def lower_shares(gain: NDArray, choose: Choose, *, draws: int = 200, seed: int = 0) -> LowerShares:
    """gain [n, ..., layer, head]. Halves are drawn anew each time and then resampled apart, so that no example is in both.

    Cost: `SPLITS` + draws calls of `choose`.
    """
    n, first = len(gain), gain.shape[-2] // 2
    rng = np.random.default_rng(seed)

    def share(chosen_on: NDArray, reported_on: NDArray) -> NDArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            here = gain[reported_on]
            mean = np.where(np.isfinite(here), here, 0.0).sum(0) / np.isfinite(here).sum(0)
            kept = np.where(choose(chosen_on), np.maximum(np.nan_to_num(mean), 0.0), 0.0)
            return kept[..., :first, :].sum((-2, -1)) / kept.sum((-2, -1))

    def halves() -> tuple[NDArray, NDArray]:
        return bootstrap.halves(n, seed=int(rng.integers(2**31)))

    split = [share(*halves()) for _ in range(SPLITS)]
    drawn = [share(*(rng.choice(half, len(half)) for half in halves())) for _ in range(draws)]
    return LowerShares(np.stack(split), np.stack(drawn))


def share_interval(split: NDArray, drawn: NDArray, n: int) -> bootstrap.Interval:
    """One share with an interval that holds the choice, over n examples of which one half is reported on: split [splits] and
    drawn [draws] as `LowerShares` has them.

    Draws in which nothing is chosen may have had any share: they count as 0 for the lower end and as 1 for the upper. NaN
    where most splits choose nothing.
    """
    known = split[np.isfinite(split)]
    if 2 * len(known) < len(split):
        nan = np.array(np.nan)
        return bootstrap.Interval(nan, nan, nan, np.array(0))
    mean, number = np.array(known.mean()), np.array(n)
    low, high = (bootstrap.percentiles(np.where(np.isfinite(drawn), drawn, end))[end] for end in (0, 1))
    low, high = bootstrap.widened(mean, low, high, np.array(n - n // 2), within=bootstrap.SHARE)
    return bootstrap.Interval(mean, low, high, number)


def placed_at_random(weights: NDArray, shape: tuple[int, int], *, draws: int = 4000, seed: int = 0) -> NDArray[np.float64]:
    """The share in the first half of the layers of heads with these weights [k], if they lay anywhere among all heads of a
    model of this shape: [draws]."""
    rng = np.random.default_rng(seed)
    L, H = shape
    places = np.stack([rng.choice(L * H, len(weights), replace=False) for _ in range(draws)])
    return ((places // H < L // 2) * weights).sum(1) / weights.sum()
