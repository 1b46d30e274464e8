"""Overlaps of sets, by counting; chance, by drawing."""

import math

import numpy as np
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses.head_overlap import HeadOverlap, head_overlap
from pycotmech.stats import bootstrap
from pycotmech.stats.draws import layer_matched
from pycotmech.stats.significance import hypergeometric
from tests.reference.close import assert_allclose


def random_set(rng, size, shape=(8, 8)):
    mask = np.zeros(shape[0] * shape[1], bool)
    mask[rng.choice(mask.size, size, replace=False)] = True
    return mask.reshape(shape)


def test_overlaps_by_hand():
    a, b, c = [(0, 0), (0, 1), (1, 1)], [(0, 1), (1, 1), (1, 2), (0, 3)], [(1, 3)]
    found = head_overlap(a=a, b=b, c=c, shape=(2, 4))
    row = found.table().iloc[0]
    assert (row.a, row.b, row.size_a, row.size_b) == ("a", "b", 3, 4)
    assert row.intersection == 2 and row.iou == 2 / 5 and row.f1 == pytest.approx(4 / 7)
    assert row.chance == 3 * 4 / 8 and row.f1_chance == pytest.approx(2 * 1.5 / 7)
    # 2 or 3 of a's heads among b's 4 of 8
    assert row.p == pytest.approx((math.comb(3, 2) * math.comb(5, 2) + math.comb(3, 3) * math.comb(5, 1)) / math.comb(8, 4))
    d = found.data
    assert (np.diag(d["f1"]) == 1).all() and (np.diag(d["iou"]) == 1).all()  # F1(A, A) = 1
    assert float(d["intersection"].sel(set="a", other="c")) == 0 and float(d["p"].sel(set="a", other="c")) == 1
    assert_allclose(d["f1"], d["f1"].T)
    assert np.isnan(d["f1_low"]).all()  # sets as given have no spread


def test_random_sets_overlap_as_chance_says():
    rng = np.random.default_rng(0)
    draws = [((random_set(rng, 20) & random_set(rng, 24)).sum()) for _ in range(3000)]
    found = head_overlap(a=random_set(rng, 20), b=random_set(rng, 24))
    assert float(found.data["chance"][0, 1]) == 7.5 == 20 * 24 / 64
    assert np.mean(draws) == pytest.approx(7.5, abs=0.12)  # four standard errors
    for k in (7, 9, 11):
        assert np.mean(np.array(draws) >= k) == pytest.approx(hypergeometric(k, 20, 24, 64), abs=0.035)
    assert hypergeometric(0, 20, 24, 64) == 1 and hypergeometric(20, 20, 24, 64) == math.comb(44, 4) / math.comb(64, 24)


def test_sets_of_the_same_layers_are_not_called_alike_for_it():
    """Both lie in the upper half: half of what they share is due to that."""
    rng = np.random.default_rng(6)
    upper = np.zeros((8, 8), bool)
    upper[4:] = True
    masks = [layer_matched(upper[None] & (np.arange(8) < 5), rng)[0] for _ in range(2)]  # 5 of 8 in each of four layers
    found = head_overlap(a=masks[0], b=masks[1])
    row = found.table().iloc[0]
    assert row["chance"] == 20 * 20 / 64 and row["chance_by_layer"] == 4 * 5 * 5 / 8
    assert row["f1_chance_by_layer"] == pytest.approx(12.5 / 20)
    assert row["p"] < 0.01 and row["p_by_layer"] > 0.1
    assert found.findings()[0].startswith("0 of 1 pairs of sets share more heads than random sets with as many heads in each")
    assert found.findings()[0].endswith("1 more than random sets of any layers")
    assert "by chance 12.5 in the same layers (p = " in found.findings()[1] and "6.2 in any (p = " in found.findings()[1]


def test_false_findings_are_controlled_over_all_pairs():
    rng = np.random.default_rng(1)
    false, by_layer = 0, 0
    for _ in range(40):
        found = head_overlap({str(i): random_set(rng, 20) for i in range(5)})
        false += bool((found.table()["p_holm"] < 0.05).any())
        by_layer += bool((found.table()["p_by_layer_holm"] < 0.05).any())
    assert false <= 7 and by_layer <= 7  # 2 expected at most
    same = random_set(rng, 20)
    found = head_overlap(a=same, b=same, c=random_set(rng, 20))
    assert found.table()["p_holm"][0] < 1e-10 and "1 of 3 pairs" in found.findings()[0]
    assert found.table()["p_by_layer_holm"][0] < 1e-6


def test_steps_and_types():
    rng = np.random.default_rng(2)
    x = [random_set(rng, 10) for _ in range(4)]
    found = head_overlap({"copy": {1: x[0], 3: x[1]}, "decision": {1: x[0], 3: x[2]}, "all": x[3]})
    assert found.data["set"].values.tolist() == ["copy 1", "copy 3", "decision 1", "decision 3", "all"]
    assert found.data["type"].values.tolist() == ["copy", "copy", "decision", "decision", "all"]
    assert found.data["of_step"].values.tolist() == [1, 3, 1, 3, -1]
    by_type = found.by_type()
    other = 2 * (x[1] & x[2]).sum() / 20
    assert float(by_type.sel(type="copy", other_type="decision")) == pytest.approx((1 + other) / 2)
    assert np.isnan(by_type.sel(type="all", other_type="copy"))


def test_selections_are_made_again_on_resampled_examples():
    rng = np.random.default_rng(3)
    base = rng.normal(size=(8, 8))
    sure = pcm.cot.select_heads(base + rng.normal(scale=0.001, size=(9, 8, 8)), k=12)
    loose = pcm.cot.select_heads(base + rng.normal(scale=2.0, size=(9, 8, 8)), k=12)
    found = head_overlap({"sure": sure, "again": sure, "loose": loose, "fixed": sure[0]}, draws=60)
    d = found.data
    assert float(d["f1_low"].sel(set="sure", other="again")) == 1  # resampled together
    low, high = (float(d[k].sel(set="sure", other="loose")) for k in ("f1_low", "f1_high"))
    assert low < high and low <= float(d["f1"].sel(set="sure", other="loose")) + 0.2
    drawn = np.random.default_rng(0)
    f1 = []
    for _ in range(60):
        rows = drawn.integers(9, size=9)
        both = sure.again(rows)[0].mask & loose.again(rows)[0].mask
        f1.append(2 * both.sum() / 24)
    mean, ends = float(d["f1"].sel(set="sure", other="loose")), np.percentile(f1, [2.5, 97.5])
    assert_allclose((low, high), mean + bootstrap.factor(9) * (ends - mean))  # widened for nine examples
    assert np.isnan(d["f1_low"].sel(set="sure", other="fixed"))  # of a set as given nothing is known


def test_result_is_kept_and_drawn(tmp_path):
    rng = np.random.default_rng(4)
    found = head_overlap({"a": random_set(rng, 9), "b": random_set(rng, 9), "empty": np.zeros((8, 8), bool)}, model="toy")
    assert "empty: empty" in found.findings()[-1] and np.isnan(found.data["p"].sel(set="a", other="empty"))
    found.save(tmp_path)
    xr.testing.assert_equal(HeadOverlap.load(tmp_path).data, found.data)
    found.plot(path=tmp_path / "overlap.png")
    assert (tmp_path / "overlap.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ([], {}, "sets: got none"),
        ([{"a": np.ones((2, 2), bool)}], {}, "sets: got one set, 'a'"),
        ([{"a": [(0, 0)], "b": [(0, 1)]}], {}, "shape: every set is a list of pairs"),
        ([{"a": [(0, 9)], "b": [(0, 1)]}], {"shape": (2, 2)}, r"sets\['a'\]: got \(0, 9\)"),
        ([{"a": pcm.cot.select_heads(np.eye(3), k=[1, 2]), "b": [(0, 1)]}], {}, r"sets\['a'\]: got a selection of 2 sets"),
        ([{"a 1": [(0, 0)], "a": {1: [(0, 0)]}}], {"shape": (2, 2)}, "got two with the name 'a 1'"),
    ],
)
def test_bad_input(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        head_overlap(*arguments, **options)
