"""How large effects are where there is none: the threshold that a sample of control effects sets."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Share of the effects that are like the controls and still lie beyond the threshold, at most."""

ENOUGH = math.ceil(round(1 / LEVEL, 9)) - 1
"""The least number of controls whose largest keeps to the level."""


def null_threshold(null: NDArray, level: float = LEVEL) -> float:
    """Returns the size that |effect| must exceed to be unlike the controls.

    null: effects of controls, of any shape; NaN where none was measured. With m of them in ascending order of size it is the
        one of rank ceil((1 - level) (m + 1)): an effect drawn like the controls lies beyond it with probability `level` at
        most, whatever their distribution. Fewer than 1 / level - 1 of them cannot reach the level; it is then the largest,
        beyond which such an effect lies with probability 1 / (m + 1). NaN for none.
    """
    size = np.sort(np.abs(null[~np.isnan(null)]).ravel())
    m = len(size)
    if m == 0:
        return math.nan
    # Without the rounding of 1 - level, which would be a rank too many where the product is whole.
    rank = math.ceil(round((1 - level) * (m + 1), 9))
    return float(size[min(rank, m) - 1])
