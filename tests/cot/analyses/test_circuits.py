"""Circuits: planted ones are found as the minimal set, and nothing is found where nothing was planted."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.circuit_search import KeptLogits, but, members, of_heads
from pycotmech.cot.tools.cost import workload
from tests.reference import planted, truth
from tests.reference.tiny import tiny_llama

N = 12
EVERY = torch.ones(N, 1, dtype=torch.bool)
circuits_of = importlib.import_module("pycotmech.cot.analyses.circuits")

PLANTED = [
    ("induction", {}, {"previous", "writer"}),
    ("induction", dict(previous=(1, 0), writer=(2, 3), n_layers=4), {"previous", "writer"}),
    ("copying", {}, {"writer"}),
    ("parallel", {}, {"marker", "question", "generated"}),
    ("relation", {}, {"previous", "relate", "writer"}),
]


def case(name, **options):
    made = getattr(planted, name)(**options)
    return made, planted.examples(made, N)


def found_in(made, examples, **options):
    return pcm.cot.circuits(made.model, examples, right=EVERY[: len(examples)], **({"kind": "zero"} | options))


@pytest.mark.parametrize(("name", "options", "roles"), PLANTED)
def test_planted_circuits_are_the_minimal_set(name, options, roles):
    made, examples = case(name, **options)
    found = found_in(made, examples)
    heads = {made.heads[role] for role in roles}
    assert set(members(found.data["kept"].values[0])) == heads
    row = found.table().to_dict("records")[0]
    assert row["n"] == 6 and row["held_out"] and row["finished"] and row["heads"] == len(heads) == row["needed"]
    assert row["share"] == pytest.approx(1, abs=0.03) and abs(row["full"] - row["circuit"]) < 0.03 * row["full"]
    assert row["gap"] < 0.03  # complete: without any subset it does what the model does without it
    assert row["random"] < 0.5
    share = -found.minimality()["mean"].values[0] / (row["full"] - row["empty"])
    for head in heads:  # each of the parallel writers writes half
        assert share[head] == pytest.approx(0.5 if name == "parallel" else 1, abs=0.05)
    assert np.isnan(share).sum() == share.size - len(heads)


def test_a_useless_head_fails_minimality():
    made, examples = case("induction")
    heads = [made.heads["previous"], made.heads["writer"]]
    useless = next(head for head in made.noise_heads if head[0] == 1)
    cells = list(choose(made.model, examples, right=EVERY))
    values = KeptLogits(made.model, cells, shared=1, means=None, everywhere=False, against="counterfactual", memory_gb=None)
    kept = of_heads([*heads, useless], values.shape)
    with_it, *without = values(np.stack([kept, *(but(kept, [head]) for head in (*heads, useless))])).mean(1)
    lost = (with_it - np.array(without)) / with_it
    assert lost[0] > 0.95 and lost[1] > 0.95 and abs(lost[2]) < 0.03
    assert useless not in members(found_in(made, examples).data["kept"].values[0])


def test_kept_sets_are_hooked_forwards():
    made, examples = case("relation", dtype=torch.float64)
    cells = list(choose(made.model, examples, right=EVERY))[:3]
    values = KeptLogits(made.model, cells, shared=1, means=None, everywhere=True, against="counterfactual", memory_gb=None)
    kept = np.random.default_rng(0).random((3, *values.shape)) < 0.6
    found = values(kept)
    for i, mask in enumerate(kept):
        for j, cell in enumerate(cells):
            edits = [("z", l, h, None, 0.0) for l, h in members(~mask)]
            logits = truth.edited_logits(made.model.hf, cell.step.clean, edits)
            assert found[i, j] == pytest.approx(float(logits[cell.step.answer] - logits[cell.step.wrong]), abs=1e-9)
    assert values.evaluations == 3 and values(kept[:1])[0].tolist() == found[0].tolist() and values.evaluations == 3


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_is_found_where_nothing_was_planted(silent):
    made, examples = case("nothing", silent=silent)
    found = found_in(made, examples)
    row = found.table().to_dict("records")[0]
    assert not row["holds"] and found.why_not(0).startswith("whether heads matter at all is open")
    assert "are no small faithful circuit" in found.findings()[0]
    assert found.plot() is not None and found.plot_heads() is not None


def test_a_head_that_always_does_the_same_is_in_its_mean():
    """The marker of `parallel` writes the same on every prompt: its mean does what it does, zero does not."""
    made, examples = case("parallel")
    found = found_in(made, examples, kind="mean", mean=planted.examples(made, 8, seed=9))
    assert set(members(found.data["kept"].values[0])) == {made.heads["question"], made.heads["generated"]}


def test_no_answer_is_reported_on_what_chose_it():
    made, examples = case("induction")
    found = found_in(made, examples)
    held = found.data["held_out"].values[:, 0]
    assert (held == 1).sum() == 6 and (held == 0).sum() == 6 and found.data["separate"].values.tolist() == [1]
    for name in ("random", "circuit_without", "full_without", "minimality"):
        there = found.data[name].notnull().any([d for d in found.data[name].dims if d != "example"])
        assert there.values.tolist() == (held == 1).tolist(), name
    few = pcm.cot.circuits(made.model, examples.only(examples.items[:3]), right=EVERY[:3], kind="zero")
    assert few.data["separate"].values.tolist() == [0] and "chosen on the same" in few.findings()[0]
    assert not few.holds(0) and few.why_not(0).endswith("and fewer than 4 hold out none"), few.why_not(0)
    alone = pcm.cot.circuits(made.model, examples.only(examples.items[:1]), right=EVERY[:1], kind="zero")
    assert alone.why_not(0) == "one example has no interval"


@pytest.fixture(scope="module")
def task(model):
    examples = pcm.cot.make_examples(4, shots=2, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    right = torch.zeros(4, examples.n_steps, dtype=torch.bool)
    right[:, [3, 5]] = True
    right[0, 3] = False
    return examples, right


def test_steps_of_the_task(model, task, tmp_path):
    examples, right = task
    scores = pcm.cot.patch_steps(model, examples, steps=[3, 5, 9], right=right | (torch.arange(10) == 9))
    found = pcm.cot.circuits(model, examples, scores, steps=[3, 5, 9], right=right, n_random=20, against="competitor")
    table = found.table()
    assert table["step"].tolist() == [3, 5] and table["n"].tolist() == [3, 2] and not found.data["kept"].values[2].any()
    assert (table["heads"] < 16).all() and (table["full"] > table["empty"]).all() and (table["random"] < table["share"]).all()
    assert "step 9" not in " ".join(found.findings()) and "competitor" in found.about["definition"]
    found.save(tmp_path)
    again = pcm.cot.circuits.__globals__["Circuits"].load(tmp_path)
    assert again.table().equals(table) and again.plot() is not None
    everywhere = pcm.cot.circuits(
        model, examples, scores, steps=[5], right=right, n_random=2, n_subsets=1, n_greedy=0, positions="all", evaluations=5
    )
    assert everywhere.about["settings"]["where"] == "at every position" and everywhere.data.sizes["subset"] == 1


def test_the_work_is_predicted(model, task):
    examples, right = task
    chosen = torch.zeros_like(right)
    chosen[:, 5] = True
    found = pcm.cot.circuits(model, examples, steps=[5], right=chosen)
    load = workload(choose(model, examples, steps=[5], right=chosen))
    size = int(found.data["kept"].values.sum())
    sets = int(found.data["evaluations"].values[0])
    predicted = circuits_of.cost(model.cfg, load, steps=1, heads=size, sets=sets, scores=False)
    assert 0.6 < predicted.token_forwards / found.about["cost"]["token_forwards"] < 1.6
    assert circuits_of.ANALYSIS.cost(model.cfg, load).flop > 0


def test_wrong_arguments_are_named(model, task):
    examples, right = task
    scores = pcm.cot.patch_steps(model, examples, steps=[5], right=right)
    made, one_step = case("induction")
    noise = dataclasses.replace(scores, about={**scores.about, "settings": {**scores.about["settings"], "direction": "noise"}})
    for arguments, match in (
        (dict(tolerance=1.0), "tolerance: got"),
        (dict(n_random=0), "n_random: got 0"),
        (dict(evaluations=0), "evaluations: got 0"),
        (dict(against="nobody"), "against: got"),
        (dict(positions="last"), "positions: got"),
        (dict(kind="zero", mean=examples), "mean: kind 'zero'"),
        (dict(scores=scores, steps=[3, 5]), "scores: step 3 is missing"),
        (dict(scores=noise, steps=[5]), "scores: expected effects"),
    ):
        with pytest.raises(ValueError, match=match):
            pcm.cot.circuits(model, examples, right=right, **arguments)
    with pytest.raises(TypeError, match=r"evaluations: got 2\.5"):
        pcm.cot.circuits(model, examples, right=right, evaluations=2.5)
    with pytest.raises(TypeError, match="scores: got"):
        pcm.cot.circuits(model, examples, 3, right=right, steps=[5])
    with pytest.raises(ValueError, match="against: 'competitor' needs"):
        found_in(made, one_step, against="competitor")


def test_random_weights_have_no_small_faithful_circuit(model):
    """On the task, with every step taken for right: what is found on one half of the examples does nothing on the other."""
    hf = tiny_llama(n_layers=4, n_heads=4, d_vocab=len(model.tokenizer), n_positions=512, seed=1)
    random = pcm.Model(hf, model.tokenizer, name="random", check=False)
    examples = pcm.cot.make_examples(8, shots=1, tokenizer=model.tokenizer, seed=2)
    every = torch.ones(8, examples.n_steps, dtype=torch.bool)
    found = pcm.cot.circuits(random, examples, steps=[3, 5], right=every, n_subsets=2, n_greedy=0)
    table = found.table()
    assert table["step"].tolist() == [3, 5] and not table["holds"].any() and all(found.why_not(s) for s in (3, 5))
    assert sum("no small faithful circuit" in line for line in found.findings()) == 2
