"""Interactions of the strongest heads by step, and what a head that works against the answer answers to."""

import importlib

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from tests.reference import planted
from tests.reference.close import assert_allclose

N = 12
EVERY = torch.ones(N, 1, dtype=torch.bool)
interactions_of = importlib.import_module("pycotmech.cot.analyses.head_interactions")


def test_a_chain_interacts_and_parallel_writers_add_up():
    made = planted.induction()
    found = pcm.cot.head_interactions(made.model, planted.examples(made, N), right=EVERY, k=3)
    assert set(found.names(0)[:2]) == {"L0H1", "L1H2"}
    assert_allclose(found.effects()["mean"].values[0], [1, 1, 0], atol=0.05)
    first = found.table().iloc[0]
    assert {first["a"], first["b"]} == {"L0H1", "L1H2"} and first["n"] == 6 and first["clear"]
    assert first["interaction"] == pytest.approx(-1, abs=0.06) and first["low"] <= first["interaction"] <= first["high"]
    assert (found.table()["interaction"].iloc[1:].abs() < 0.05).all()
    apart = planted.parallel()
    found = pcm.cot.head_interactions(apart.model, planted.examples(apart, N), right=EVERY, k=2)
    assert set(found.names(0)) == {"L1H0", "L3H2"} and abs(found.table()["interaction"].item()) < 0.05
    assert found.plot() is not None


def test_a_head_that_takes_back_what_a_lower_one_writes():
    """A head above the writer copies what the writer wrote with the opposite sign: without the writer it does nothing."""
    c = planted_suppressor()
    found = pcm.cot.head_interactions(c.model, planted.examples(c, N), right=EVERY, k=2)
    assert found.data["negative_layer"].values.tolist() == [2] and found.data["negative_head"].values.tolist() == [0]
    alone, given = found.negative()["mean"].values[0], found.given_layer()["mean"].values[0]
    assert alone < -0.1 and abs(given[1]) < 0.1 * abs(alone) and given[0] == pytest.approx(alone, rel=0.1)
    assert np.isnan(given[2:]).all()
    line = found.findings()[-1]
    assert "L2H0 works against the answer" in line and "with all heads of layer 1 corrupted" in line and "of it remains" in line
    assert found.plot_negative() is not None


def planted_suppressor():
    """`copying` with one more head above the writer, which reads the word in the answer space of its own row."""
    from tests.reference.planted.circuit import MATCH, WRITE, Circuit, feature
    from tests.reference.planted.models import Planted, _one_concept
    from tests.reference.planted.words import CONCEPTS, ID, ids

    c = Circuit(n_layers=4, n_heads=4)
    writer, against = (1, 1), (2, 0)
    c.score(writer, feature("token", [ID["="]]), feature("token", ids(CONCEPTS)), MATCH)
    c.rest(writer)
    c.copy(writer, "token", "answer", weight=WRITE)
    c.score(against, feature("token", [ID["="]]), feature("token", [ID["="]]), MATCH)
    c.rest(against)
    c.copy(against, "answer", "answer", weight=-0.3)
    return Planted("suppressor", c.finish(torch.float32, "suppressor"), {"writer": writer, "against": against}, _one_concept)


def test_steps_of_the_task(model, tmp_path):
    examples = pcm.cot.make_examples(4, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    right = torch.zeros(4, examples.n_steps, dtype=torch.bool)
    right[:, 5] = True
    scores = pcm.cot.patch_steps(model, examples, steps=[5], right=right)
    found = pcm.cot.head_interactions(model, examples, scores, steps=[5], k=4, right=right)
    step = examples[0].steps[5]
    heads = [(int(name[1]), int(name[3])) for name in found.names(5)]
    by_hand = pcm.head_interactions(
        model, step.clean, step.corrupted, heads, answer=step.answer, wrong=step.wrong, normalize=False
    )
    assert_allclose(found.data["joint"].values[0, 0], by_hand.joint[0], atol=1e-4)
    assert (found.data["held_out"].values[:, 0]).sum() == 2 and len(found.table()) == 6
    sums = (found.data["joint"] - found.data["single"] - found.data["single"].rename(unit="other")).isel(step=0)
    rows = found.data["held_out"].values[:, 0] == 1
    span = found.data["span"].values[rows, 0].mean()
    expected = -sums.values[rows].mean(0) / span
    assert_allclose(found.interactions()["mean"].values[0], expected, atol=1e-6)
    alone = type(found)(found.data.isel(example=[int(np.flatnonzero(rows)[0])]), found.about)
    assert alone.findings()[0] == "step 5: one example has no interval, so no interaction can be called clear of the noise"
    found.save(tmp_path)
    assert type(found).load(tmp_path).table().equals(found.table())
    predicted = interactions_of.cost(model.cfg, workload(choose(model, examples, steps=[5], right=right)), k=4)
    assert 0.4 < predicted.token_forwards / found.about["cost"]["token_forwards"] < 2.5
    with pytest.raises(ValueError, match="k: got 1"):
        pcm.cot.head_interactions(model, examples, scores, k=1, right=right)
