"""Which analyses run, in which order, and what the plan says of them."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech import cot
from pycotmech.cost import DEVICES, measured_speed
from pycotmech.cot.tools.cost import Cost, Workload
from pycotmech.cot.tools.held_out import named_halves
from pycotmech.cot.tools.registry import COMPARED, Given
from pycotmech.model.config import layer_flop
from pycotmech.paper import CLAIMS, ENTRIES
from pycotmech.paper.entries import ON_REQUEST, chosen
from pycotmech.paper.plan import CostPlan, Line, make, shown_time
from tests.reference.tiny import tiny_llama

WORK = Workload(examples=8, cells=78, length=650.0, suffix=44.0, shared=613, longest=670.0, inductive=16)


def test_what_an_entry_needs_comes_before_it():
    before: set[str] = set()
    for entry in ENTRIES:
        assert set(entry.needs) <= before, entry.name
        before.add(entry.name)
        assert hasattr(cot, entry.name)
        assert getattr(cot, entry.name) is entry.function and entry.function.__name__ == entry.name
        assert entry.title and entry.function.__module__ == f"pycotmech.cot.analyses.{entry.name}"
    assert {e.source for e in ENTRIES} == {f"E{i}" for i in range(1, 13)}
    assert {e.source for e in ON_REQUEST} == {"E13"} and not {e.name for e in chosen(None)} & {e.name for e in ON_REQUEST}
    assert all(getattr(cot, e.name) is e.function for e in ON_REQUEST)
    assert all(claim.needs for claim in CLAIMS)
    assert {name for entry in ENTRIES for name in entry.claims} == {claim.name for claim in CLAIMS}


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (("functional_rift",), ["functional_rift"]),
        (("e5",), ["patch_steps", "knock_out_curve", "set_transfer"]),
        (("E2",), ["patch_steps", "induction_heads"]),
        (("remove", "E3"), ["patch_steps", "decision_heads", "copy_heads", "remove"]),
        (("answer_sources",), ["information_flow", "answer_sources"]),
        (("circuits",), ["patch_steps", "circuits"]),
        (("E13",), ["patch_steps", "circuits", "head_interactions"]),
    ],
)
def test_named_entries_bring_what_they_need(only, names):
    assert [e.name for e in chosen(only)] == names


@pytest.mark.parametrize("only", [("patch",), ("E99",), ()])
def test_unknown_names_are_refused(only):
    with pytest.raises(ValueError, match="only: got"):
        chosen(only)


def test_every_cost_is_below_the_authors(model):
    """Where the authors ran something; what they read off their graphs is counted once, with these."""
    read_off = {"answer_writers", "answer_sources", "context_abidance"}
    of_graphs = Cost()
    for entry in ENTRIES:
        ours, authors = entry.cost(model.cfg, WORK), entry.authors(model.cfg, WORK)
        assert ours.flop >= 0 and ours.forwards >= 0 and ours.memory >= 0, entry.name
        assert (authors == Cost()) == (entry.name in {*read_off, "head_overlap", "mlp_share", "set_transfer"}), entry.name
        of_graphs = of_graphs + ours if entry.source == "E8" else of_graphs
        if authors != Cost() and entry.name not in ("pair_probes", "relation_heads"):
            assert ours.token_forwards < authors.token_forwards, entry.name
    theirs = next(e for e in ENTRIES if e.name == "information_flow").authors(model.cfg, WORK)
    assert of_graphs.token_forwards < theirs.token_forwards and of_graphs.flop < theirs.flop


def _given(model, n):
    """n examples, and scores in which heads 0 .. 9 lead in the first examples and heads 20 .. 29 in the last."""
    examples = cot.make_examples(n, shots=1, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    every = torch.ones(n, examples.n_steps, dtype=torch.bool)
    given = Given(model, examples, every, (2, 5), 3, None, {})
    choosing = given.halves[0]
    flat = np.random.default_rng(0).normal(size=(n, 2, 32))
    flat[choosing, :, :10] += 50
    flat[np.setdiff1d(np.arange(n), choosing), :, 20:30] += 100
    dims, coords = ("example", "step", "layer", "head"), {"example": [e.index for e in examples], "step": [2, 5]}
    done = {}
    for entry in ENTRIES:
        if entry.name in COMPARED:
            scores = {entry.result.main: (dims, flat.reshape(n, 2, 4, 8))}
            done[entry.name] = entry.result(xr.Dataset(scores, coords=coords), {})
    return dataclasses.replace(given, done=done)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_sets_are_chosen_on_one_half_and_reported_on_the_other(model, monkeypatch, n):
    calls = {}
    for name in ("keep_only", "remove"):
        module = importlib.import_module(f"pycotmech.cot.analyses.{name}")
        monkeypatch.setattr(module, name, lambda *args, _name=name, **kw: calls.update({_name: (args, kw)}))
    given = _given(model, n)
    by_name = {e.name: e for e in ENTRIES}
    by_name["keep_only"].run(given, None), by_name["remove"].run(given, None)
    whole = {e.index for e in given.examples}
    for name in ("keep_only", "remove"):
        args, options = calls[name]
        chosen = args[2]["patch_steps"] if name == "keep_only" else args[2]
        reported = {e.index for e in args[1]}
        assert options["right"].shape == (len(reported), 10) and options["steps"] == (2, 5)
        heads = np.flatnonzero(chosen.mask.ravel())
        assert len(heads) == 10
        if n < 4:
            assert reported == set(chosen.chosen_on) == whole
        else:
            assert len(reported) == n - n // 2 and reported | set(chosen.chosen_on) == whole
            assert not reported & set(chosen.chosen_on) and heads.tolist() == list(range(10))
    ranking = calls["remove"][0][3]
    assert set(ranking.examples) == set(calls["remove"][0][2].chosen_on) and ranking.labelled
    split = named_halves(np.ones(n, bool), "exact", 3)
    assert n < 4 or [given.examples[i].index for i in np.flatnonzero(split == "report")] == sorted(reported)
    assert set(given.sets()["patch_steps"].examples) == whole  # of which head_overlap tells


def test_inductive_steps_are_broken_in_half_of_the_examples_and_the_answer_is_not_run_again(model, monkeypatch):
    module = importlib.import_module("pycotmech.cot.analyses.induction_heads")
    asked = {}
    monkeypatch.setattr(module, "induction_heads", lambda *args, **kw: asked.update(kw, examples=args[1]))
    entry = next(e for e in ENTRIES if e.name == "induction_heads")
    given = _given(model, 10)
    given.right[0, 5] = False
    entry.run(given, None)
    assert [e.index for e in asked["examples"]] == asked["answer"].data["example"].values.tolist() == [1, 2, 3, 4]
    assert asked["right"].shape == (4, 10) and asked["steps"] == (5,)
    entry.run(_given(model, 3), None)
    assert len(asked["examples"]) == 3  # too few to leave any out
    swept = [entry.cost(model.cfg, dataclasses.replace(WORK, examples=n, inductive=2 * n)).token_forwards for n in (4, 8, 32)]
    assert swept[0] == pytest.approx(swept[1]) and swept[2] == pytest.approx(4 * swept[1])


def test_only_examples_that_count_are_halved(model):
    given = _given(model, 6)
    right = torch.zeros(6, 10, dtype=torch.bool)
    right[[0, 1, 3, 4], 5] = True
    right[5, 9] = True  # a step that was not asked for
    four = dataclasses.replace(given, right=right)
    assert sorted(np.concatenate(four.halves).tolist()) == [0, 1, 3, 4] and len(four.halves[0]) == len(four.halves[1]) == 2
    split = named_halves(right[:, [2, 5]].any(1).numpy(), "exact", 3)
    assert np.flatnonzero(split == "select").tolist() == four.halves[0].tolist() and split[2] == split[5] == ""
    assert {e.index for e in four.reporting().examples} == {given.examples[int(i)].index for i in four.halves[1]}
    right[[0, 1, 3], 5] = False
    alone = dataclasses.replace(given, right=right)
    assert alone.halves[0].tolist() == alone.halves[1].tolist() == [4] and alone.choosing == (given.examples[4].index,)


def test_what_is_kept_alone_is_told_of_other_examples(model):
    found = next(e for e in ENTRIES if e.name == "keep_only").run(_given(model, 4), None)
    assert found.about["settings"]["reused"] == 0 and found.data.sizes["example"] == 2
    assert "the sets were chosen on 2 other examples, none of these" in found.findings()
    few = next(e for e in ENTRIES if e.name == "keep_only").run(_given(model, 2), None)
    assert "2 examples were also used to choose the sets" in str(few)


def test_the_plan_adds_up(model):
    device = DEVICES["h100"]
    plan = make(model.cfg, ENTRIES, WORK, device, 1e12, authors=True)
    assert plan.device == "h100" and plan.timed and "h100: 1,000 GFLOP/s" in str(plan)
    for line in plan.lines:
        assert (line.seconds > 0) == (line.ours.token_forwards > 0) and (line.authors_seconds > 0) == (line.authors.flop > 0)
    assert not make(model.cfg, ENTRIES[:2], WORK, device, 1e12).timed
    assert plan.seconds == pytest.approx(sum(line.seconds for line in plan.lines))
    text = str(plan)
    assert all(entry.name in text for entry in ENTRIES)
    total = sum(e.cost(model.cfg, WORK).token_forwards for e in ENTRIES)
    assert f"{total:,.0f}" in next(line for line in text.splitlines() if line.startswith("all "))
    by_hand = CostPlan((Line("a", "E1", Cost(1, 10, 3e12, 2**30), Cost(5, 50, 9e12), 3.0),), 1e12, WORK)
    assert "3.00" in str(by_hand) and "1.0 GiB" in str(by_hand) and "about 3.0 s" in str(by_hand)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_measured_speed_is_of_the_work_that_is_done(model, monkeypatch, layers):
    assert 1e8 < measured_speed(model) < 1e15
    small = pcm.Model(tiny_llama(n_layers=layers), check=False)
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))  # each run takes one second
    cfg = small.cfg
    again = 2.0 * cfg.d_model * cfg.d_head * (cfg.n_heads + 2 * cfg.n_key_value_heads)  # the last layer's queries, as read
    assert measured_speed(small) == pytest.approx(256 * (cfg.n_layers * layer_flop(cfg).linear + again))


def test_times_are_readable():
    assert [shown_time(s) for s in (1.44, 35.4, 250, 11160)] == ["1.4 s", "35 s", "4.2 min", "3.1 h"]


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot")
