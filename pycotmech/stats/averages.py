"""Averages of what is there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def nanmean(x: NDArray, axis: int = 0) -> NDArray:
    """The mean over an axis of the entries that are not NaN; NaN, without a warning, where all are."""
    there = ~np.isnan(x)
    n = there.sum(axis)
    return np.where(n > 0, np.where(there, x, 0.0).sum(axis) / np.maximum(n, 1), np.nan)
