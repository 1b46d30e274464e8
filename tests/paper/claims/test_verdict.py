"""Verdicts follow the intervals, and nothing else."""

import numpy as np
import pytest
import xarray as xr

from pycotmech.cot.analyses.functional_rift import FunctionalRift
from pycotmech.paper import CLAIMS
from pycotmech.paper.claims import decided

BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.mark.parametrize(
    ("low", "high", "n", "above", "word", "evidence"),
    [
        (0.6, 0.9, 2, True, "borne out", "e"),
        (0.4, 0.9, 8, True, "not decided", "e; the interval contains the threshold 0.5"),
        (0.1, 0.5, 8, True, "not borne out", "e"),
        (0.1, 0.4, 8, False, "borne out", "e"),
        (0.5, 0.9, 8, False, "not borne out", "e"),
        (np.nan, 0.9, 3, True, "not decided", "e; there is no interval"),
        (np.nan, np.nan, 1, True, "not decided", "e; one example has no interval"),
        (1.0, 1.0, 6, True, "borne out", "e"),
        (1.0, 1.0, 5, True, "not decided", "e; all 5 examples agree, and fewer than 6 that agree decide nothing about 0.5"),
        (0.1, 0.1, 5, True, "not decided", "e; all 5 examples agree, and fewer than 6 that agree decide nothing about 0.5"),
    ],
)
def test_the_whole_interval_decides(low, high, n, above, word, evidence):
    verdict = decided(low, high, 0.5, "e", n=n, above=above)
    assert (verdict.word, verdict.evidence) == (word, evidence)


def test_shares_that_all_agree_decide_about_a_threshold_only_from_many_examples():
    """Six of six have a probability of 0.53 where the share is 0.9."""
    assert decided(1.0, 1.0, 0.9, n=6).word == decided(1.0, 1.0, 0.9, n=28).word == "not decided"
    assert decided(1.0, 1.0, 0.9, n=29).word == decided(0.5, 0.5, 0.0, n=6).word == "borne out"
    assert decided(0.0, 0.0, 0.05, n=8, above=False).word == "not decided"
    assert decided(0.0, 0.0, 0.05, n=59, above=False).word == "borne out"


def test_examples_that_agree_decide_one_of_several_only_at_the_corrected_level():
    """Six equal signs have a probability of 0.03, which is not below 0.05 / 7."""
    assert decided(1.0, 1.0, 0.0, n=6).word == "borne out"
    assert decided(1.0, 1.0, 0.0, n=8, level=1 - 0.05 / 7).word == "not decided"
    assert decided(1.0, 1.0, 0.0, n=9, level=1 - 0.05 / 7).word == "borne out"


def test_a_result_that_is_missing_leaves_a_claim_open():
    for claim in CLAIMS:
        verdict = claim.verdict({})
        assert verdict.word == "not decided" and claim.needs[0] in verdict.evidence


def rift(prior, context, n=6):
    rng = np.random.default_rng(0)
    dims = ("example", "step", "depth")
    spread = lambda curve: np.asarray(curve)[None, None] + 0.001 * rng.normal(size=(n, 2, len(curve)))  # noqa: E731
    names = ("prior", "context", "prior_top1", "context_top1", "contextual")
    data = {name: (dims, spread(prior if "prior" in name else context)) for name in names}
    data["other"] = (dims, spread(np.zeros(len(prior))))
    return {"functional_rift": FunctionalRift(xr.Dataset(data, coords={"depth": np.arange(len(prior))}), {})}


def test_a_rift_is_abrupt_in_the_middle_and_turns():
    claim = BY_NAME["rift"]
    low, high = [0.05] * 5, [0.6] * 6
    early_prior = [0.3] * 5 + [0.01] * 6
    assert claim.verdict(rift(early_prior, low + high)).word == "borne out"
    late = claim.verdict(rift([0.3] * 9 + [0.01] * 2, [0.05] * 9 + [0.6] * 2))
    assert late.word == "not borne out" and late.evidence.endswith("not so: in the middle third")
    gradual = claim.verdict(rift(np.linspace(0.3, 0, 11), np.linspace(0.05, 0.6, 11)))
    assert gradual.word == "not borne out" and gradual.evidence.endswith("not so: half of the rise within one layer")
    none = claim.verdict(rift([0.3] * 11, low + [0.2] * 6))
    assert none.word == "not borne out" and "not so: the prompt takes over" in none.evidence
    falling = claim.verdict(rift([0.0] * 11, np.linspace(0.6, 0.0, 11)))
    assert falling.word == "not borne out" and "rises nowhere" in falling.evidence
    alone = claim.verdict(rift([0.0] * 11, np.linspace(0.6, 0.0, 11), n=1))
    assert alone.word == "not decided" and "rises nowhere" in alone.evidence
    assert alone.evidence.endswith("open: the prompt takes over (one example has no interval)")


def test_a_rift_whose_interval_leaves_it_open_is_not_denied():
    claim = BY_NAME["rift"]
    middle, late = ([0.05] * k + [0.6] * (11 - k) for k in (5, 9))
    mixed = rift([0.3] * 5 + [0.01] * 6, middle, n=4)
    data = mixed["functional_rift"].data
    for name, curve in (("context", late), ("prior", [0.3] * 9 + [0.01] * 2)):  # of one example in four
        data[name][3] = np.asarray(curve)[None]
    verdict = claim.verdict(mixed)
    assert verdict.word == "not decided" and "open: in the middle third" in verdict.evidence
    alone = claim.verdict(rift([0.3] * 5 + [0.01] * 6, middle, n=1))
    assert alone.word == "not decided" and "nan" not in alone.evidence and "one example has no interval" in alone.evidence
    few = claim.verdict(rift([0.3] * 5 + [0.01] * 6, middle, n=4))  # all four change at the same depth
    assert few.word == "not decided" and "open: in the middle third (all 4 examples agree" in few.evidence
