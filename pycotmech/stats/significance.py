"""Which means differ from 0 beyond chance, over few examples and many heads: tests, and control of false findings.

Level of each test: how often it finds any head where there is none, at alpha 0.05, 64 heads and 5, 8, 16 or 64 examples
(benchmarks/validity/levels.py).

| values | sign flips, max | sign test, Holm or BH | t test, BH |
|---|---|---|---|
| normal, alike or correlated across heads | 0.03 to 0.08 | 0.00 to 0.03 | 0.02 to 0.08 |
| heavy-tailed (t, 3 degrees of freedom) | 0.04 to 0.06 | 0.00 to 0.05 | 0.02 to 0.04 |
| exponential less its mean | 0.00 to 0.01, two-sided 0.34 to 0.58 | 0.00, two-sided 0.37 to 1 | 0.00 to 0.01 |
| the negative of that | 0.29 to 0.73, two-sided 0.30 to 0.62 | 0.00 to 1 | 0.35 to 0.78 |

All hold their level over values that are symmetric about 0 where there is nothing to find. None does over a mean of 0 that many
small positive values and few large negative ones make up: sign flips assume symmetry, a sign test is about the median, and a
t test needs more examples the more skewed the values are. A bootstrap of the mean is not among the tests: with Holm's
correction it finds a head in all draws of normal noise at 5 and 8 examples, and in half of them at 16.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pycotmech._choices import did_you_mean
from pycotmech._words import plural

Test = Literal["sign_flip", "sign"]
Control = Literal["max", "holm", "bh"]
_FLIPS = 4096


def words(test: Test, control: Control | None) -> str:
    """A test and its control, in words."""
    control = control or _default(test)
    named = {"sign_flip": "sign flips of examples", "sign": "a sign test"}[test]
    controls = {
        "max": "the largest statistic of all heads (family-wise)",
        "holm": "Holm's correction (family-wise)",
        "bh": "Benjamini and Hochberg's (share of false heads)",
    }
    return f"{named}, {controls[control]}"


def _default(test: Test) -> Control:
    return "max" if test == "sign_flip" else "holm"


def fewest(
    alpha: float = 0.05, *, test: Test = "sign_flip", control: Control | None = None, two_sided: bool = False, heads: int = 1
) -> int:
    """Returns the least number of examples over which the test can reach a corrected p-value of alpha at all.

    heads: how many are tested at once, which counts for Holm's correction only.
    """
    flips = (2 if two_sided else 1) * (heads if (control or _default(test)) == "holm" else 1)
    return max(2, math.ceil(math.log2(flips / alpha) - 1e-9))


def p_values(
    values: NDArray,
    *,
    test: Test = "sign_flip",
    control: Control | None = None,
    two_sided: bool = False,
    alpha: float = 0.05,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Corrected p-values of "the mean is not above 0" (two_sided: "is 0") for each head: values [n, ...] -> [...].

    NaN in values: an example that does not count for that head; heads without any value get NaN. Examples that count for no
    head are left out: n is the number of the others.
    alpha: the error rate in mind, to refuse what could never reach it. Raises ValueError naming test, control or scores.
    """
    allowed = {"sign_flip": ("max",), "sign": ("holm", "bh")}
    if test not in allowed:
        raise ValueError(
            f"test: got {test!r}; expected {' or '.join(map(repr, allowed))}, which find false heads no more often than alpha "
            f"over few examples{did_you_mean(test, allowed)}"
        )
    control = control or _default(test)
    if control not in allowed[test]:
        raise ValueError(
            f"control: got {control!r}; expected {' or '.join(map(repr, allowed[test]))} with test={test!r}"
            f"{did_you_mean(control, allowed[test])}"
        )
    x, shape = _counting(values), values.shape[1:]
    n, known = len(x), np.isfinite(x).any(0)
    x = x[:, known]
    least = fewest(alpha, test=test, control=control, two_sided=two_sided, heads=x.shape[1])
    if n < least:
        worst = 2.0**-n * (2 if two_sided else 1) * (x.shape[1] if control == "holm" else 1)
        raise ValueError(
            f"scores: {plural(n, 'example')} can give no p-value below {min(worst, 1.0):.2g} here ({words(test, control)}, "
            f"{x.shape[1]} heads), but alpha is {alpha:g}; expected {least} examples or more"
            + (", or test='sign_flip'" if test == "sign" else "")
        )
    raw = _sign(x, two_sided) if test == "sign" else sign_flip(x, two_sided=two_sided, seed=seed)
    out = np.full(known.shape, np.nan)
    out[known] = raw if control == "max" else adjusted(raw, control)
    return out.reshape(shape)


def _counting(values: NDArray) -> NDArray[np.float64]:
    """The examples that count for any head, [n, heads]: those that count for none can neither be flipped nor drawn."""
    x = np.asarray(values, np.float64).reshape(len(values), math.prod(values.shape[1:]))
    return x[np.isfinite(x).any(1)]


def sign_flip(values: NDArray, *, two_sided: bool = False, flips: int = _FLIPS, seed: int = 0) -> NDArray[np.float64]:
    """Family-wise p-values of "the mean is not above 0": values [n, ...] -> [...], NaN where an example does not count.

    How often the largest statistic of all entries reaches an entry's own when the signs of whole examples are flipped, all
    2^n ways or `flips` random ones, the unflipped among them (Westfall and Young 1993, single step). The statistic is the
    mean over its standard error without a centre: no sign changes that error, and it orders as t does.
    Assumes that values are symmetric about 0 where there is nothing: of exponential values less their mean, turned to the
    negative, it finds a false entry in 29 % of draws at 5 examples and in 73 % at 16 (see the module).
    """
    x = np.nan_to_num(_counting(values))
    n = len(x)
    size = np.sqrt((x**2).sum(0))
    x = x / np.where(size > 0, size, np.inf)
    if 2**n <= flips:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(flips, n))
        signs[0] = 1.0
    fold = np.abs if two_sided else lambda t: t
    largest = np.concatenate([fold(part @ x).max(1) for part in np.array_split(signs, 16) if len(part)])
    return (largest[:, None] >= fold(x.sum(0)) - 1e-9).mean(0).reshape(values.shape[1:])


def _sign(x: NDArray, two_sided: bool) -> NDArray:
    """Exact sign test, which is of the median: values of 0 are left out."""
    above, n = (x > 0).sum(0), (np.isfinite(x) & (x != 0)).sum(0)
    out = np.ones(x.shape[1])
    for i, (k, m) in enumerate(zip(above.tolist(), n.tolist())):
        upper = sum(math.comb(m, j) for j in range(k, m + 1)) / 2**m
        if two_sided:
            lower = sum(math.comb(m, j) for j in range(k + 1)) / 2**m
            upper = min(1.0, 2 * min(upper, lower))
        out[i] = upper
    return out


def adjusted(p: NDArray, control: Literal["holm", "bh"]) -> NDArray[np.float64]:
    """p-values after Holm's (1979) or Benjamini and Hochberg's (1995) correction."""
    m = len(p)
    order = np.argsort(p, kind="stable")
    if control == "holm":
        climbed = np.maximum.accumulate(p[order] * (m - np.arange(m)))
    else:
        climbed = np.minimum.accumulate((p[order] * m / np.arange(1, m + 1))[::-1])[::-1]
    out = np.empty(m)
    out[order] = np.minimum(climbed, 1.0)
    return out


def hypergeometric(overlap: int, a: int, b: int, n: int) -> float:
    """The chance that two random sets of a and b of n things share `overlap` or more."""
    top = sum(math.comb(a, i) * math.comb(n - a, b - i) for i in range(overlap, min(a, b) + 1) if b - i <= n - a)
    return top / math.comb(n, b)


def means_above_zero(values: NDArray, *, alpha: float = 0.05) -> NDArray[np.bool_]:
    """Which entries are above 0 over examples: values [n, ...] -> bool [...].

    One-sided t test of each entry over its examples, false discovery rate over all entries at most alpha (Benjamini and
    Hochberg 1995). With fewer than 2 examples nothing is significant.
    Over 64 entries of noise it finds any in 2 to 8 % of draws if their distribution is symmetric, and in 35 to 78 % if all are
    skewed to the negative as an exponential one is (see the module).
    """
    from scipy import stats

    shape = values.shape[1:]
    flat = values.reshape(len(values), math.prod(shape))
    counted = np.isfinite(flat).sum(0)
    out = np.zeros(flat.shape[1], dtype=bool)
    able = counted > 1
    able[able] = np.nanstd(flat[:, able], axis=0) > 0
    if able.any():
        _, p = stats.ttest_1samp(flat[:, able], 0.0, alternative="greater", nan_policy="omit")
        out[able] = stats.false_discovery_control(np.asarray(p, dtype=float)) <= alpha
    return out.reshape(shape)
