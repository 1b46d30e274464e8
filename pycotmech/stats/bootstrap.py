"""Uncertainty over examples: percentile bootstrap (Efron 1979) with a small-sample correction, halves for choosing and
reporting.

With few examples the percentile interval is too narrow, because resamples spread by sqrt((n - 1) / n) of what samples do and
normal quantiles are used where Student's belong: of a normal mean it covers 50 % at n = 2, 80 % at 4 and 89 % at 8 instead of
95 %. Both ends are therefore moved away from the estimate by the ratio of these (Hesterberg 2015, arXiv 1411.5279, on
narrowness bias and t quantiles): by 1.9 at 4 examples, by 1.05 at 40, and less the more there are. A normal mean is then
covered in 93 to 95 % from 2 examples on, one of skewed values (exponential) in 88 to 90 % up to 8 and in 93 % at 40.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pycotmech.stats import shares

DRAWS = 2000
LEVEL = 0.95
Range = tuple[float, float]
"""The least and the largest value that a quantity can take."""
SHARE: Range = (0.0, 1.0)
"""The range of shares, probabilities and accuracies."""
SHARES_APART: Range = (-1.0, 1.0)
"""The range of differences of two shares, and of correlations."""
COUNT: Range = (0.0, np.inf)
"""The range of counts, sizes and divergences."""
FEWEST_ALIKE = 6
"""Least number of examples that all agree for which an interval of no width decides anything (`agreeing`). Resamples of equal
examples are equal however few there are, but a two-sided sign test needs 6 equal signs to reach p < 0.05 (p = 0.03)."""

HALVED = 4
"""Examples from which on there are two halves of at least two: one to choose on, one to report on."""


class Interval(NamedTuple):
    """An estimate and its interval, arrays of one shape. low and high are NaN where fewer than two examples count."""

    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    n: NDArray[np.int64]
    """Examples that count."""

    def words(self, form: str = "{:.0%}") -> str:
        """A single number followed by its interval if there is one; "unknown" if there is no number."""
        mean, low, high = (float(x) for x in self[:3])
        return number(mean, form) + ends(low, high, form) if np.isfinite(mean) else "unknown"


def number(value: Any, form: str) -> str:
    """A number in a form such as "{:+.2f}"; one that is rounded to 0 has no sign."""
    text = form.format(float(value))
    return text[1:] if text[:1] in "+-" and float(value) != 0 and not text.strip("+-0.%") else text


def points(mean: Any, low: Any, high: Any) -> str:
    """A difference of two shares with its interval, if there is one, in percentage points."""
    return f"{number(100 * float(mean), '{:.0f}')}{ends(100 * float(low), 100 * float(high), '{:.0f}')} percentage points"


def ends(low: Any, high: Any, form: str = "{:.0%}") -> str:
    """The interval in brackets after a space; nothing if there is none."""
    low, high = float(low), float(high)
    return f" [{number(low, form)}, {number(high, form)}]" if np.isfinite(low) and np.isfinite(high) else ""


def undecidable(
    low: float,
    high: float,
    n: int,
    threshold: float = 0.0,
    within: Range | None = None,
    level: float = LEVEL,
    unit: str = "example",
) -> str:
    """Returns why an interval over n examples decides nothing about a threshold; an empty string if it may decide.

    It decides nothing if it does not exist, or if it has no width and n examples could agree by chance (`agreeing`).
    within: the range of the quantity; None: a quantity between 0 and 1, with such a threshold, is taken to be a share.
    level: of the interval. unit: what is counted, in the singular.
    """
    if not (np.isfinite(low) and np.isfinite(high)):
        return f"one {unit} has no interval" if n == 1 else "there is no interval"
    if high - low > 1e-9 * max(1.0, abs(low), abs(high)):
        return ""
    if within is None and 0 < threshold < 1 and -1e-9 <= low <= high <= 1 + 1e-9:
        within = SHARE
    enough = agreeing((low + high) / 2, threshold, within, level)
    if n >= enough:
        return ""
    about = f" about {threshold:g}" if threshold else ""
    return f"all {n} {unit}s agree, and fewer than {enough} that agree decide nothing{about}"


def agreeing(value: float, threshold: float = 0.0, within: Range | None = None, level: float = LEVEL) -> int:
    """Returns how many examples must share one value for an interval of no width to decide on which side of a threshold the
    mean lies: the smallest number that would agree with a probability below 1 - level if the mean were the threshold.

    There are two bounds, and the larger one holds:

    * By sign: if an example lies on either side with probability 1/2, n of them agree with probability 2 (1/2)^n, which is
      below 0.05 from FEWEST_ALIKE on. An interval at a level corrected for several tests needs more. This bound suffices for
      differences with a threshold of 0.
    * By range: a mean of `threshold` is also reached if a share p of the examples have `value` and the others lie at the far
      end of the range, with p = (threshold - end) / (value - end). Then n examples agree with probability p^n. For a value of 1
      this is threshold^n: a threshold of 0.9 needs 29 examples, and six agree with probability 0.53. This bound does not
      apply to a value that equals the threshold.
    """
    end = -np.inf if within is None else within[0] if value > threshold else within[1]
    p = (threshold - end) / (value - end) if np.isfinite(end) and end != value else 0.0
    by_sign = np.ceil(np.log2(2 / (1 - level)) - 1e-9)
    by_range = np.ceil(np.log(1 - level) / np.log(p) + 1e-12) if 0 < p < 1 else 1.0
    return max(int(by_sign), int(by_range))


def above_zero(low: float, high: float, n: int) -> bool | None:
    """Whether a difference with this interval over n examples is above 0; None if the interval leaves that open."""
    if undecidable(low, high, n):
        return None
    return True if low > 0 else False if high < 0 else None


def mean_interval(
    values: ArrayLike, *, within: Range | None = None, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """The mean over examples and its bootstrap interval, widened for few examples (see `widened`).

    values [n, ...]: one entry per example on the first axis, NaN where an example does not count.
    within: the range that the quantity can take, to which the ends are cut; None: any number. With SHARE and SHARES_APART the
        interval is Wilson's in place of the bootstrap's (`shares.bounded`), and has a width where all examples agree.
    level: of the interval; draws: resamples of the examples (all entries of one example stay together).
    """
    return ratio_interval(values, None, within=within, level=level, draws=draws, seed=seed)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike | None,
    *,
    within: Range | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """The ratio of two means over examples, with its bootstrap interval: both are resampled together. Widened by the number of
    examples that count in an entry, and cut to `within`, as in `mean_interval`.

    numerator, denominator [n, ...], NaN in either where an example does not count; denominator None: the plain mean.
    within: SHARE (for a difference of shares SHARES_APART) asks for an interval that holds its level near the ends of the
        range: Wilson's (`shares.bounded`) in place of the bootstrap's.
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
    n_counted = np.asarray(counts.sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = top.sum(0) / np.where(counts.any(0), below.sum(0), np.nan)
    if within in (SHARE, SHARES_APART):
        low, high = shares.bounded(top, below, counts, within, level)
    else:
        weights = resampled(n, draws=draws, seed=seed)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (weights @ top) / np.where(weights @ counts > 0, weights @ below, np.nan)
        low, high = widened(mean, *percentiles(drawn, level), n_counted, within=within, level=level)
    return Interval(mean.reshape(shape), low.reshape(shape), high.reshape(shape), n_counted.reshape(shape))


def statistic_interval(
    statistic: Callable[[NDArray[np.int64]], ArrayLike],
    n: int,
    *,
    within: Range | Sequence[Range] | None = None,
    level: float = LEVEL,
    draws: int = 500,
    seed: int = 0,
) -> Interval:
    """Any statistic of a set of examples, by resampling their numbers: statistic(indices [n]) -> number or array. Widened by
    n, and cut to `within`, as in `mean_interval`; within may hold a range for each entry. A share that is the same in all
    resamples has an interval with a width all the same (`with_width`).

    Coverage at 95 % nominal, 8 to 64 examples (benchmarks/validity/coverage.py): 96 to 98 % for a median. A statistic that is
    biased over few examples is covered less: the correlation of two scores over heads, which noise makes smaller, in about
    80 % at 8, 90 % at 16 and 93 % at 64.

    Cost: draws + 1 calls of `statistic`.
    """
    if n < 1:
        raise ValueError(f"n: got {n}; expected at least one example")
    found = np.asarray(statistic(np.arange(n)), dtype=np.float64)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.asarray(statistic(rng.integers(n, size=n)), dtype=np.float64) for _ in range(draws)])
    number = np.full(found.shape, n)
    ends = widened(found, *percentiles(drawn, level), number, within=within, level=level)
    return Interval(found, *with_width(found, *ends, number, within=within, level=level), number)


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
    """The percentiles of draws [draws, ...], of those draws in which the statistic is defined: the ends of the interval as it
    is before `widened`."""
    out = np.full((2, *drawn.shape[1:]), np.nan)
    defined = np.isfinite(drawn).any(0)
    tail = 100 * (1 - level) / 2
    if defined.any():
        out[:, defined] = np.nanpercentile(drawn[:, defined], [tail, 100 - tail], axis=0)
    return out[0], out[1]


def factor(n: ArrayLike, level: float = LEVEL) -> NDArray[np.float64]:
    """By how much a percentile interval of n examples has to be wider: t(1 - a/2, n - 1) / z(1 - a/2) * sqrt(n / (n - 1)).

    NaN below two examples. Source: Hesterberg 2015.
    """
    from scipy.special import ndtri, stdtrit

    n, upper = np.asarray(n, dtype=np.float64), (1 + level) / 2
    m = np.where(n > 1, n, np.nan)
    return stdtrit(m - 1, upper) / ndtri(upper) * np.sqrt(m / (m - 1))


def widened(
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    n: ArrayLike,
    *,
    within: Range | Sequence[Range] | None = None,
    level: float = LEVEL,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of a percentile interval, moved away from the estimate by `factor` for n examples, and cut to `within`.

    mean, low, high, n: arrays of one shape. NaN with fewer than two examples or without an estimate. An end that lies on the
    other side of the estimate, as a biased statistic may have it, stays where it is: nothing becomes narrower.
    """
    mean, low, high = (np.asarray(x, dtype=np.float64) for x in (mean, low, high))
    mean = np.where(np.isfinite(mean), mean, np.nan)
    more = factor(n, level) - 1
    low, high = low - more * np.maximum(mean - low, 0), high + more * np.maximum(high - mean, 0)
    if within is None:
        return low, high
    least, most = np.asarray(within, dtype=np.float64).T
    return np.clip(low, least, most), np.clip(high, least, most)


def with_width(
    mean: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    n: ArrayLike,
    *,
    within: Range | Sequence[Range] | None,
    level: float = LEVEL,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of an interval, those of `shares.alike` where a share (within SHARE or SHARES_APART) has one without width: what
    does not change in resamples of few examples may change with others. Arguments as `widened`."""
    mean, low, high = (np.asarray(x, dtype=np.float64) for x in (mean, low, high))
    if within is None:
        return low, high
    least, most = np.asarray(within, dtype=np.float64).T
    several = np.where(np.asarray(n) > 1, n, np.nan)
    for share in (SHARE, SHARES_APART):
        flat = (least == share[0]) & (most == share[1]) & (high - low <= 1e-9)
        ends = shares.alike(mean, several, share, level)
        low, high = np.where(flat, ends.low, low), np.where(flat, ends.high, high)
    return low, high
