"""Whether single sentences carry the answer: found in planted circuits, and not where nothing is, over many models.

In a model with random weights no sentence is special. The interval of the mean excess over the control is at 95 %, so that it
lies above 0 in at most 2.5 % of such models; the number of models in which it does is held to what a rate of 5 % exceeds with
a probability below 0.001.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

import pycotmech as pcm
from pycotmech.stats import bootstrap
from tests.traces.cases import random_trace, tiny
from tests.traces.planted import copies_from_the_chain, ignores_its_chain

RATE, TRACES = 0.05, 6


def excess(model, traces) -> np.ndarray:
    """[trace, sentence]: by how much more a sentence changes the answer than its control changes other tokens."""
    found = [pcm.traces.suppress(model, trace).data for trace in traces]
    return np.stack([d["answer_change"].values - d["control_answer_change"].values for d in found])


@pytest.mark.parametrize("models", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_sentences_of_random_models_are_not_found(models):
    found, sizes = 0, []
    for seed in range(models):
        model = tiny(n_heads=2, seed=seed)
        traces = [random_trace(model, (4,) * 8, prompt=60, seed=TRACES * seed + i) for i in range(TRACES)]
        values = excess(model, traces)
        sizes.append(np.abs(values).max())
        found += bool(bootstrap.mean_interval(np.nanmean(values, 1)).low > 0)
    assert np.median(sizes) > 0.01  # there is something to be mistaken for an effect
    assert found <= scipy.stats.binom.ppf(0.999, models, RATE), f"{found} of {models}"


@pytest.mark.parametrize("models", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_the_planted_sentence_is_found_in_every_model(models):
    for seed in range(1, models + 1):
        chain, prompt = copies_from_the_chain(TRACES, seed=seed), ignores_its_chain(TRACES, seed=seed)
        values = excess(chain.model, chain.traces)
        assert np.nanargmax(values, 1).tolist() == chain.where
        assert bootstrap.mean_interval(np.nanmean(values, 1)).low > 0
        assert np.nanmax(np.abs(excess(prompt.model, prompt.traces))) < 0.1
