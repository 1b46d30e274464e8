"""What results with a score for each head have in common, on scores made by hand."""

import numpy as np
import pytest
import xarray as xr

from pycotmech.cot.analyses.by_head import HeadAnalysis, layer_share


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
    results = [made(rng.normal(size=(8, 1, 30, 9)), seed=i) for i in range(100)]
    assert np.mean([abs(r.top(0, 1)[0][2]) for r in results]) > 0.9
    lines = [r.findings()[0] for r in results]
    assert all(line.startswith("step 0 (copying, n = 4 held out): L") for line in lines)
    assert abs(np.mean([told(line) for line in lines])) < 0.2  # of 100 means of 4: standard error 0.05


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
