"""Verdicts follow the intervals, and nothing else."""

import numpy as np
import pytest
import xarray as xr

from pycotmech.cot.analyses.answer_writers import AnswerWriters
from pycotmech.cot.analyses.functional_rift import FunctionalRift
from pycotmech.paper import CLAIMS
from pycotmech.paper.claims import decided

BY_NAME = {claim.name: claim for claim in CLAIMS}


@pytest.mark.parametrize(
    ("low", "high", "above", "word"),
    [
        (0.6, 0.9, True, "borne out"),
        (0.4, 0.9, True, "not decided"),
        (0.1, 0.5, True, "not borne out"),
        (0.1, 0.4, False, "borne out"),
        (0.5, 0.9, False, "not borne out"),
        (np.nan, 0.9, True, "not decided"),
    ],
)
def test_the_whole_interval_decides(low, high, above, word):
    assert decided(low, high, 0.5, "e", above=above).word == word


def test_a_result_that_is_missing_leaves_a_claim_open():
    for claim in CLAIMS:
        verdict = claim.verdict({})
        assert verdict.word == "not decided" and claim.needs[0] in verdict.evidence


def writers(counts, late):
    """AnswerWriters with these counts [example] at every step and threshold."""
    n = len(counts)
    same = lambda values: np.broadcast_to(np.asarray(values, float)[:, None, None], (n, 2, 3)).copy()  # noqa: E731
    dims = ("example", "step", "threshold")
    data = {
        "writers": (dims, same(counts)),
        "control_writers": (dims, same(np.zeros(n))),
        "sources": (dims, same(np.ones(n))),
        "late": (dims, same(late)),
    }
    return AnswerWriters(xr.Dataset(data, coords={"threshold": [0.01, 0.1, 0.5]}), {})


def test_pathways_and_writers():
    several = {"answer_writers": writers([3, 4, 2, 5], [1, 1, 1, 0.95])}
    assert BY_NAME["pathways"].verdict(several).word == "borne out"
    assert "3.5 [" in BY_NAME["pathways"].verdict(several).evidence and "n = 4" in BY_NAME["pathways"].verdict(several).evidence
    assert BY_NAME["writers"].verdict(several).word == "borne out"
    single = {"answer_writers": writers([1, 1, 1, 1], [0.2, 0.3, 0.1, 0.2])}
    assert BY_NAME["pathways"].verdict(single).word == "not borne out"
    assert BY_NAME["writers"].verdict(single).word == "not borne out"
    split = {"answer_writers": writers([0, 3, 0, 3], [1, 1, 0, 1])}
    assert BY_NAME["pathways"].verdict(split).word == "not decided"


def rift(prior, context, n=4):
    rng = np.random.default_rng(0)
    dims = ("example", "step", "depth")
    spread = lambda curve: np.asarray(curve)[None, None] + 0.001 * rng.normal(size=(n, 2, len(curve)))  # noqa: E731
    names = ("prior", "context", "prior_top1", "context_top1", "contextual")
    data = {name: (dims, spread(prior if "prior" in name else context)) for name in names}
    return {"functional_rift": FunctionalRift(xr.Dataset(data, coords={"depth": np.arange(len(prior))}), {})}


def test_a_rift_is_abrupt_in_the_middle_and_turns():
    claim = BY_NAME["rift"]
    low, high = [0.05] * 5, [0.6] * 6
    early_prior = [0.3] * 5 + [0.01] * 6
    assert claim.verdict(rift(early_prior, low + high)).word == "borne out"
    late = claim.verdict(rift([0.3] * 9 + [0.01] * 2, [0.05] * 9 + [0.6] * 2))
    assert late.word == "not borne out" and "not in the middle third" in late.evidence
    gradual = claim.verdict(rift(np.linspace(0.3, 0, 11), np.linspace(0.05, 0.6, 11)))
    assert gradual.word == "not borne out" and "gradual" in gradual.evidence
    none = claim.verdict(rift([0.3] * 11, low + [0.2] * 6))
    assert none.word == "not borne out" and "no take-over" in none.evidence
    falling = claim.verdict(rift([0.0] * 11, np.linspace(0.6, 0.0, 11)))
    assert falling.word == "not borne out" and "rises nowhere" in falling.evidence
