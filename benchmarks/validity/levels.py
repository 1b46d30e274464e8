"""Simulates how often each test of `pycotmech.stats.significance` finds a head where there is none, at alpha 0.05."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pycotmech.stats import bootstrap, significance

ALPHA = 0.05
HEADS = 64
EXAMPLES = (5, 8, 16, 64)
_FLIPS = 1024


class Test(NamedTuple):
    """p: smallest corrected p-value over heads, values [n, HEADS] -> number; ValueError where so few examples can give none
    below alpha."""

    name: str
    p: Callable[[NDArray], float]


class Null(NamedTuple):
    """Values with a mean of 0. symmetric: whether they are so about 0, as the tests say that they assume."""

    name: str
    draw: Callable[[np.random.Generator, int], NDArray]
    symmetric: bool = True


def table(draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each test, null and number of examples: in how many draws any of 64 heads was found, whether the test says that
    it holds its level there, and whether it does, to three standard errors of the simulation.

    Then the intervals that decide claims: how often they decide for a share or a difference that lies at the threshold.
    """
    rows = []
    for number, null in enumerate(NULLS):
        for n in EXAMPLES:
            rng = np.random.default_rng([seed, number, n])
            values = [null.draw(rng, n) for _ in range(draws)]
            for test in TESTS:
                try:
                    level = float(np.mean([test.p(x) <= ALPHA for x in values]))
                except ValueError:  # no head can be found
                    level = 0.0
                row = {"test": test.name, "null": null.name, "n": n, "level": round(level, 4), "promised": null.symmetric}
                if null.symmetric:
                    row["holds"] = bool(level <= ALPHA + _slack(draws))
                rows.append(row)
    return rows + _decisions(draws, seed)


def _slack(draws: int) -> float:
    return 3 * (ALPHA * (1 - ALPHA) / draws) ** 0.5


def _decisions(draws: int, seed: int) -> list[dict[str, Any]]:
    """Shares of single trials at a threshold, and differences of them at 0: how often the whole interval lies above, one-sided
    2.5 % nominal. Held to 0.05, since trials are whole numbers; Wilson's interval exceeds that below 6 examples."""
    rows = []
    for n in EXAMPLES:
        rng = np.random.default_rng([seed, n])
        cases = {f"share at {t:g}": (rng.random((n, draws)) < t, t, bootstrap.SHARE) for t in (0.5, 0.8, 0.9)}
        shares = [(rng.random((n, draws)) < 0.9).astype(float) for _ in range(2)]
        cases["difference of two shares of 0.9 at 0"] = (shares[0] - shares[1], 0.0, bootstrap.SHARES_APART)
        for name, (values, threshold, within) in cases.items():
            found = bootstrap.mean_interval(values, within=within)
            level = float((found.low > threshold).mean())
            row = {"test": "interval above a threshold", "null": name, "n": n, "level": round(level, 4), "promised": n > 5}
            rows.append(row | ({"holds": bool(level <= ALPHA + _slack(draws))} if n > 5 else {}))
    return rows


def _t(x: NDArray) -> float:
    return 0.0 if significance.means_above_zero(x, alpha=ALPHA).any() else 1.0


def _flips(x: NDArray, two_sided: bool) -> float:
    if 2.0 ** -len(x) * (2 if two_sided else 1) > ALPHA:
        raise ValueError("too few examples")
    return float(significance.sign_flip(x, two_sided=two_sided, flips=_FLIPS).min())


def _sign(control: significance.Control, two_sided: bool) -> Callable[[NDArray], float]:
    return lambda x: float(np.min(significance.p_values(x, test="sign", control=control, two_sided=two_sided, alpha=ALPHA)))


TESTS = (
    Test("sign flips, max", lambda x: _flips(x, False)),
    Test("sign flips, max, two-sided", lambda x: _flips(x, True)),
    Test("sign test, Holm", _sign("holm", False)),
    Test("sign test, Holm, two-sided", _sign("holm", True)),
    Test("sign test, Benjamini-Hochberg", _sign("bh", False)),
    Test("t test, Benjamini-Hochberg", _t),
)

NULLS = (
    Null("normal", lambda rng, n: rng.normal(size=(n, HEADS))),
    Null("correlated", lambda rng, n: 0.5**0.5 * (rng.normal(size=(n, 1)) + rng.normal(size=(n, HEADS)))),
    Null("heavy-tailed (t, 3)", lambda rng, n: rng.standard_t(3, size=(n, HEADS))),
    Null("skewed up", lambda rng, n: rng.exponential(size=(n, HEADS)) - 1, symmetric=False),
    Null("skewed down", lambda rng, n: 1 - rng.exponential(size=(n, HEADS)), symmetric=False),
)
