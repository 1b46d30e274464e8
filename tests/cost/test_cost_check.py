"""`python -m benchmarks.cost_check`: predictions beside the clock, and its judgement of them."""

import json
from types import SimpleNamespace

import pytest

from benchmarks import cost_check
from pycotmech import cost


def run(tmp_path, *words):
    """Returns the exit status and the rows of a run on the tiny model."""
    sizes = ["--tokens", "64", "--suffix", "8", "--threads", "1", "--runs", "0"]
    out = tmp_path / "out.json"
    status = cost_check.main(["--model", "tiny-cot", "--dtype", "float32", *sizes, "--out", str(out), *words])
    return status, json.loads(out.read_text())["rows"]


@pytest.fixture
def exact(monkeypatch):
    """A clock that a machine of the model of cost would show: each call takes what was predicted, times `factor`."""
    asked, factor = [], {"": 1.0}

    def measured(model, **_):
        def seconds(cfg, demand):
            asked.append(demand.flop(cfg) / 1e6)
            return asked[-1]

        return SimpleNamespace(
            seconds=seconds, layer=((8, 1.0),), attention=1e9, statistics=1e9, logits=1e-3, copy=1e9, factor=1.0
        )

    ticks = iter(range(10**6))
    monkeypatch.setattr(cost, "of_model", measured)
    monkeypatch.setattr(cost_check.time, "perf_counter", lambda: asked[-1] * factor[""] * (next(ticks) % 2) if asked else 0.0)
    return factor


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.2, 0), (1.3, 1), (0.7, 1)])
def test_what_is_off_by_more_than_a_quarter_is_judged(exact, factor, status, tmp_path, capsys):
    exact[""] = factor
    found, rows = run(tmp_path, "--only", "sweep, last", "lens")
    assert found == status
    assert [row["name"] for row in rows] == ["sweep, last, logit_diff", "sweep, last, kl", "lens, suffix"]
    assert [row["judged"] for row in rows] == [True, True, False]  # single analyses are shown only
    assert rows[0]["ratio"] == pytest.approx(1 / factor)
    said = capsys.readouterr().out
    assert ("OFF" in said) == bool(status) and f"{2 - 2 * status} of 2 within 25%" in said


@pytest.mark.slow
def test_all_cases_and_the_paper_on_a_tiny_model(tmp_path):
    _, rows = run(tmp_path, "--paper", "2")
    names = [row["name"] for row in rows]
    for beginning in ("sweep, all", "paths, kl", "summary, ", "lens", "traces", "E1 ", "paper, 2 examples"):
        assert any(name.startswith(beginning) for name in names), (beginning, names)
    assert all(row["predicted"] > 0 and row["measured"] > 0 for row in rows if not row["name"].startswith("E"))
