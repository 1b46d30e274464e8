"""Means over groups of examples, with intervals for which both groups and the examples within them are resampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from pycotmech.stats import bootstrap


def pooled_interval(
    groups: Sequence[ArrayLike],
    *,
    within: bootstrap.Range | None = None,
    level: float = bootstrap.LEVEL,
    draws: int = bootstrap.DRAWS,
    seed: int = 0,
) -> bootstrap.Interval:
    """Returns the mean over groups of each group's mean over examples, with its hierarchical bootstrap interval.

    Each resample draws groups, and examples within each drawn group; the values that an example is a mean of stay together.
    The ends are then moved outwards for the number of groups, as `bootstrap.widened` does for the number of examples, since two
    or three groups say little about others.

    groups: an array [n] for each group, NaN where an example does not count. Groups in which no example counts are left out.
    Returns an interval whose n is the number of groups that count. The ends are NaN if one group counts; everything is NaN if
    none does.
    Source: Davison and Hinkley 1997, section 3.8 (both stages with replacement, which is the wider of their two strategies).
    """
    kept = [x[np.isfinite(x)] for x in (np.asarray(g, dtype=np.float64) for g in groups)]
    kept = [x for x in kept if len(x)]
    if not kept:
        nan = np.float64(np.nan)
        return bootstrap.Interval(nan, nan, nan, np.int64(0))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed)
    means = np.stack([x[rng.integers(len(x), size=(draws, len(x), len(kept)))].mean(1) for x in kept])  # [groups, draws, slot]
    chosen = rng.integers(len(kept), size=(draws, len(kept)))
    drawn = means[chosen, np.arange(draws)[:, None], np.arange(len(kept))].mean(1)
    mean, n = np.mean([x.mean() for x in kept]), np.int64(len(kept))
    low, high = bootstrap.widened(mean, *bootstrap.percentiles(drawn, level), n, within=within, level=level)
    return bootstrap.Interval(mean, low, high, n)  # type: ignore[arg-type]
