"""What results with a score for each head have in common, on scores made by hand."""

import numpy as np
import pytest
import xarray as xr

from pycotmech.cot.tools.by_head import HeadAnalysis, layer_share
from tests.reference.close import assert_allclose


class Made(HeadAnalysis):
    name, main = "made", "score"

    def findings(self):
        return self._strongest()


def made(score, seed=0):
    """score [example, step, layer, head]."""
    n, S = score.shape[:2]
    axes = {"example": range(n), "step": range(S), "kind": ("step", ["copying"] * S)}
    axes |= {"layer": range(score.shape[2]), "head": range(score.shape[3])}
    return Made(xr.Dataset({"score": (("example", "step", "layer", "head"), score)}, coords=axes), {"settings": {"seed": seed}})


def told(line):
    """The score in a finding."""
    return float(line.split(": ")[1].split()[1])


def test_the_strongest_head_is_told_on_examples_it_was_not_chosen_on():
    """Of noise the largest of 270 means is far above 0; on other examples it is 0."""
    rng = np.random.default_rng(0)
    results = [made(rng.normal(size=(8, 1, 30, 9)), seed=i) for i in range(16)]
    assert np.mean([abs(r.top(0, 1, held_out=False)[0][2]) for r in results]) > 0.9
    lines = [r.findings()[0] for r in results]
    assert all(line.startswith("step 0 (copying, n = 4 held out): L") for line in lines)
    assert abs(np.mean([told(line) for line in lines])) < 0.3  # of 16 means of 4: standard error 0.125


def test_tables_rank_on_one_half_and_tell_of_the_other():
    """Of noise the means told are those of any head, and so are the intervals; on the same examples all are clear of 0."""
    rng = np.random.default_rng(0)
    results = [made(rng.normal(size=(16, 1, 30, 9)), i) for i in range(8)]
    tables = [r.table(5) for r in results]
    for r, table in zip(results, tables, strict=True):
        parts = r.apart(np.ones(16, bool))
        chosen = np.abs(parts.choosing.data["score"].mean(("example", "step")).values).ravel()
        assert [(9 * l + h) for l, h in zip(table["layer"], table["head"])] == np.argsort(-chosen)[:5].tolist()
        told_mean = parts.reporting.data["score"].mean(("example", "step")).values[table["layer"], table["head"]]
        assert_allclose(table["mean"], told_mean)
        assert table["n"].eq(8).all() and table["held_out"].all() and table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert results[0].top(0, 3) == list(zip(tables[0]["layer"], tables[0]["head"], tables[0]["mean"]))[:3]
    assert np.mean([t["mean"].abs().mean() for t in tables]) < 0.4 and np.mean([t["clear"].mean() for t in tables]) < 0.25
    same = [r.table(5, held_out=False) for r in results]
    assert all(t["n"].eq(16).all() and not t["held_out"].any() for t in same)
    assert np.mean([t["mean"].abs().mean() for t in same]) > 0.6 and np.mean([t["clear"].mean() for t in same]) > 0.8


def test_tables_of_few_examples_are_of_those_that_chose_and_say_so():
    score = np.random.default_rng(2).normal(size=(5, 3, 2, 3))
    score[0, 1], score[1:3, 2] = np.nan, np.nan  # 5, 4 and 3 examples count
    table = made(score).table(2).set_index("step")
    assert {s: (*set(table.loc[s, "n"]), *set(table.loc[s, "held_out"])) for s in (0, 1, 2)} == {
        0: (3, True),
        1: (2, True),
        2: (3, False),
    }
    best = np.nanmean(score[:, 2], 0)
    assert table.loc[2, "mean"].tolist() == pytest.approx(best.ravel()[np.argsort(-np.abs(best).ravel())[:2]].tolist())
    assert made(score).at_step("score", 2).words == "n = 3, chosen on the same"
    with pytest.raises(ValueError, match="step: got 7; expected one of 0, 1, 2"):
        made(score).top(7)
    score[:, 1] = np.nan
    assert set(made(score).table()["step"]) == {0, 2} and made(score).top(1) == []


def test_a_head_that_is_there_is_found_with_the_mean_of_the_other_half():
    score = np.random.default_rng(1).normal(scale=0.01, size=(6, 2, 3, 4))
    score[:, 0, 1, 2] = [1, 2, 3, 4, 5, 6]
    score[0, 1], score[3:, 1] = np.nan, np.nan  # two examples count at the second step
    result = made(score)
    first, second = result.findings()
    parts = result.apart(np.ones(6, bool))
    mean = parts.reporting.data["score"][:, 0, 1, 2].mean()
    assert first.startswith(f"step 0 (copying, n = 3 held out): L1H2 {float(mean):+.3f} [")
    assert set(parts.choosing.data["example"].values) | set(parts.reporting.data["example"].values) == set(range(6))
    assert second.startswith("step 1 (copying, n = 1 held out): L") and "[" not in second
    assert result.apart(np.zeros(6, bool)) is None and result.apart(np.arange(6) == 2).words == "n = 1"
    score[:, 1] = np.nan
    assert len(made(score).findings()) == 1


def test_layer_share_is_a_ratio_of_positive_sums():
    score = np.zeros((3, 2, 4, 2))
    score[:, 0, 0, 0], score[:, 1, 3, 1], score[:, 0, 2, 0] = 3.0, 1.0, -5.0
    score[2] = np.nan
    found = layer_share(made(score).data["score"], 2)
    assert float(found.mean) == pytest.approx(0.25) and int(found.n) == 2
