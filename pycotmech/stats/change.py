"""Where a curve changes: the split into two levels that fits best, and whether its rise is more than noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap


def change_point(curve: NDArray) -> float:
    """The first index of the second part, where two levels describe a curve best (least squares), the second higher.

    Entries that are NaN count in neither part. NaN if no split has a higher second level: nothing rises.
    """
    rise, scale = _rises(curve)
    fit = rise * scale
    least = 1e-9 * np.abs(curve[np.isfinite(curve)]).max(initial=0.0)
    return 1.0 + int(fit.argmax()) if fit.size and fit.max() > least else np.nan


def _rises(curves: NDArray) -> tuple[NDArray, NDArray]:
    """For each split of curves [..., D] the second level minus the first, and what it times this scale is the root of what
    the squared error falls by: [..., D - 1] each, 0 where a part has no entry."""
    known = np.isfinite(curves)
    n, total = known.cumsum(-1), np.where(known, curves, 0.0).cumsum(-1)
    below, above = n[..., :-1], n[..., -1:] - n[..., :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rise = (total[..., -1:] - total[..., :-1]) / above - total[..., :-1] / below
        scale = np.sqrt(below * above / n[..., -1:])
    return np.where(np.isfinite(rise), rise, 0.0), np.where(np.isfinite(scale), scale, 0.0)


def rise_at(curve: NDArray, at: float) -> float:
    """The mean of a curve from index `at` on minus its mean below; NaN for NaN."""
    return float(_rises(curve)[0][int(at) - 1]) if np.isfinite(at) else np.nan


def rise_interval(curve: NDArray, drawn: NDArray, n: int, level: float = bootstrap.LEVEL) -> tuple[float, float, float]:
    """The rise of a curve [D] over its `change_point`, with an interval from the curves of resampled examples [draws, D], n of
    them, widened for few as others are (`bootstrap.factor`).

    The split was chosen because its rise is the largest, so the interval holds for all splits at once: it is as wide as the
    largest departure, of any split in a draw, from that split's rise (each on the scale on which the split is chosen).
    (NaN, NaN, NaN) if nothing rises.
    """
    at = change_point(curve)
    if np.isnan(at):
        return (np.nan, np.nan, np.nan)
    rise, scale = _rises(curve)
    again, scales = _rises(drawn)
    off = again * scales - rise * scale
    tail = (1 + level) / 2
    wider = float(bootstrap.factor(n, level)) / scale[int(at) - 1]
    up, down = (float(np.quantile(x.max(-1), tail)) * wider for x in (off, -off))
    value = rise_at(curve, at)
    return value, value - up, value + down


def crossing(curve: NDArray) -> float:
    """The first index from which the curve stays above 0; NaN if it does not end above 0 or never was at or below it."""
    if not curve[-1] > 0 or (curve > 0).all():
        return np.nan
    return float(np.flatnonzero(curve <= 0)[-1] + 1)


def abruptness(curve: NDArray, at: float) -> float:
    """The share of a curve's total rise (from its lowest point to the highest after it) within one step of `at`."""
    if np.isnan(at):
        return float("nan")
    low = np.minimum.accumulate(curve)
    rise = float((curve - low).max())
    if rise <= 0:
        return float("nan")
    a, b = max(0, int(at) - 2), min(len(curve) - 1, int(at) + 1)
    return float(np.clip((curve[b] - curve[a]) / rise, 0, 1))
