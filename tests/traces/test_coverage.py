"""Whether single sentences carry the answer: found in planted circuits, and not where nothing is, over many models.

In a model with random weights no sentence is special. The interval of the mean excess over the control is at 95 %, so that it
lies above 0 in at most 2.5 % of such models; the number of models in which it does is held to what a rate of 5 % exceeds with
a probability below 0.001.
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import pycotmech as pcm
from pycotmech.stats import bootstrap
from tests.traces.cases import random_trace, tiny
from tests.traces.planted import copies_from_the_chain, ignores_its_chain

RATE, TRACES = 0.05, 6


def excess(model, traces) -> np.ndarray:
    """[trace, sentence], as `ChainUse.excess` has it."""
    found = xr.concat([pcm.traces.suppress(model, trace).data for trace in traces], "trace")
    return pcm.traces.ChainUse(found, {}).excess()


def named(values: np.ndarray) -> bool:
    """Whether single sentences carry the answer, beyond no difference at all."""
    return bool(bootstrap.mean_interval(np.nanmean(values, 1)).low > 0)


@pytest.mark.parametrize("models", [15, pytest.param(300, marks=pytest.mark.slow)])
def test_sentences_of_random_models_are_not_found(models):
    found, sizes = 0, []
    for seed in range(models):
        model = tiny(n_heads=2, seed=seed)
        traces = [random_trace(model, (4,) * 8, prompt=60, seed=TRACES * seed + i) for i in range(TRACES)]
        values = excess(model, traces)
        sizes.append(np.abs(values).max())
        found += named(values)
    assert np.median(sizes) > 0.01  # there is something to be mistaken for an effect
    assert found <= scipy.stats.binom.ppf(0.999, models, RATE), f"{found} of {models}"


@pytest.mark.parametrize("models", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_the_planted_sentence_is_found_in_every_model(models):
    for seed in range(1, models + 1):
        chain, prompt = copies_from_the_chain(TRACES, seed=seed), ignores_its_chain(TRACES, seed=seed)
        values = excess(chain.model, chain.traces)
        assert np.nanargmax(values, 1).tolist() == chain.where
        assert named(values)
        values = excess(prompt.model, prompt.traces)
        assert np.nanmax(values) < 0.1 and not named(values)
