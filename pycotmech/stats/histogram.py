"""Bins of a histogram."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def freedman_diaconis(values: NDArray) -> NDArray[np.float64]:
    """Edges of equal bins from the least to the largest value, of width 2 IQR / n^(1/3) or a little less.

    Raises ValueError if the quartiles are equal: the rule has no width then. Source: Freedman and Diaconis 1981.
    """
    low, high = np.percentile(values, [25, 75])
    width = 2 * (high - low) / len(values) ** (1 / 3)
    if not width > 0:
        raise ValueError(
            f"scores: half of the {len(values)} scores or more are equal, so the histogram has no bin width; "
            "expected rule='top_k' or 'significant' for such scores"
        )
    bins = max(math.ceil((values.max() - values.min()) / width), 1)
    return np.linspace(values.min(), values.max(), bins + 1)
