"""The values that a verdict carries are the examples' own, of the quantity that is compared with the threshold."""

import numpy as np
import pytest

from pycotmech.paper.claims import abidance, pathways, sources, writers
from pycotmech.stats import bootstrap
from tests.paper.claims.test_abidance import HEADS, LAYERS, N, counted, spread
from tests.paper.claims.test_sources import taken
from tests.paper.claims.writers_cases import written


def test_abidance():
    found = counted(spread(0.1, 0.6), np.full((N, LAYERS, HEADS), 0.1))
    verdict = abidance.CLAIM.verdict({"context_abidance": found})
    assert verdict.values.shape == (N,) and verdict.threshold == 0 and not verdict.share
    assert verdict.values.mean() == pytest.approx(float(found.rise().mean))
    own, half = spread(0.1, 0.6), LAYERS // 2
    np.testing.assert_allclose(verdict.values, own[:, half:].mean((1, 2)) - own[:, :half].mean((1, 2)))


def test_sources():
    """Of four pathways two lead to either place, and one beside it to the generated one: a quarter is what it has beyond."""
    verdict = sources.CLAIM.verdict(taken((0, 2, 2, 0), (0, 0, 1, 3)))
    np.testing.assert_allclose(verdict.values, np.full(12, 0.25))
    assert verdict.threshold == 0
    apart = taken(((0, 4, 0, 0), (0, 2, 2, 0)), occurs=((0, 2, 0), (0, 2, 2)))  # the first step does not count
    np.testing.assert_allclose(sources.CLAIM.verdict(apart).values, np.full(12, 0.5))


def test_writers_and_pathways():
    number = np.array([3.0, 2.0, 4.0, 3.0])
    made = {"answer_writers": written(number, competitors=1.0, late=np.array([1.0, 0.5, 1.0, 1.0]))}
    made = made if not isinstance(made["answer_writers"], dict) else made["answer_writers"]
    verdict = pathways.CLAIM.verdict(made)
    np.testing.assert_allclose(verdict.values, number - 1)
    late = writers.CLAIM.verdict(made)
    np.testing.assert_allclose(late.values, [1.0, 0.5, 1.0, 1.0])
    assert late.share and late.threshold == 0.9
    x = bootstrap.mean_interval(late.values, within=bootstrap.SHARE)
    assert x.words() in late.evidence
