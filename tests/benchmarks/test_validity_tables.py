"""The simulations of intervals and tests: what their rows hold, and that what is promised holds."""

import json

import pytest

from benchmarks.validity import coverage, levels


@pytest.fixture(scope="module")
def covered():
    return coverage.table(200, seed=1)


def test_every_kind_of_interval_is_covered_at_every_number(covered):
    assert json.loads(json.dumps(covered)) == covered
    assert [(row["interval"], row["n"]) for row in covered] == [(k.name, n) for k in coverage.KINDS for n in (8, 16, 64)]
    assert not [row for row in covered if not row["holds"]]
    named = {row["interval"] for row in covered if row["at_least"] < 0.9}  # the docstrings of `pycotmech.stats` say so too
    assert named == {
        "mean, exponential values",
        "share 0.9 of ten steps, half of the variance between examples",
        "difference of shares, 0.1 and 0, one trial",
        "correlation over heads",
    }


def test_a_shortfall_is_told(monkeypatch):
    """Half of the width covers two thirds."""
    normal = coverage.KINDS[0].simulate

    def narrow(rng, n, draws):
        low, high, true = normal(rng, n, draws)
        return 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high, true

    monkeypatch.setattr(coverage, "KINDS", (coverage.Kind("narrow", narrow),))
    assert [row["holds"] for row in coverage.table(300)] == [False] * 3


def test_every_test_holds_its_level_where_it_says_so():
    rows = levels.table(60, seed=2)
    assert json.loads(json.dumps(rows)) == rows
    tests = {row["test"] for row in rows}
    assert {"sign flips, max", "sign test, Holm", "t test, Benjamini-Hochberg", "interval above a threshold"} <= tests
    assert {row["n"] for row in rows} == {5, 8, 16, 64}
    promised = [row for row in rows if row["promised"]]
    assert promised and all(row["holds"] for row in promised)
    down = [row["level"] for row in rows if row["test"] == "sign flips, max" and row["null"] == "skewed down"]
    assert max(down) > 0.3 and not any("holds" in row for row in rows if not row["promised"])
