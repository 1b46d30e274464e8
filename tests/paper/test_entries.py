"""Which analyses run, in which order, and what the plan says of them."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech import cot
from pycotmech.cot.analyses import knock_out
from pycotmech.cot.analyses.cost import Cost, Workload, row_flop
from pycotmech.paper import CLAIMS, ENTRIES, entries
from pycotmech.paper.entries import Given, chosen
from pycotmech.paper.plan import Line, Plan, make, measured_speed, shown_time

WORK = Workload(examples=8, cells=78, length=650.0, suffix=44.0, shared=613, longest=670.0, inductive=16)


def test_what_an_entry_needs_comes_before_it():
    before: set[str] = set()
    for entry in ENTRIES:
        assert set(entry.needs) <= before, entry.name
        before.add(entry.name)
        assert hasattr(cot, entry.name)
        assert entry.load.name == entry.name
    assert {e.source for e in ENTRIES} == {f"E{i}" for i in range(1, 13)}
    assert {name for claim in CLAIMS for name in claim.needs} <= before


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (("functional_rift",), ["functional_rift"]),
        (("e5",), ["patch_steps", "knock_out_curve"]),
        (("E2",), ["patch_steps", "induction_heads"]),
        (("remove", "E3"), ["patch_steps", "decision_heads", "copy_heads", "remove"]),
        (("answer_sources",), ["information_flow", "answer_sources"]),
    ],
)
def test_named_entries_bring_what_they_need(only, names):
    assert [e.name for e in chosen(only)] == names


@pytest.mark.parametrize("only", [("patch",), ("E99",), ()])
def test_unknown_names_are_refused(only):
    with pytest.raises(ValueError, match="only: got"):
        chosen(only)


def test_every_cost_is_below_the_authors(model):
    for entry in ENTRIES:
        ours, authors = entry.cost(model.cfg, WORK), entry.authors(model.cfg, WORK)
        assert ours.flop >= 0 and ours.forwards >= 0 and ours.memory >= 0, entry.name
        if entry.name not in ("pair_probes", "relation_heads", "head_overlap"):
            assert ours.token_forwards < authors.token_forwards, entry.name


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
    for name, (variable, _) in entries._SCORES.items():
        done[name] = entries.Analysis(xr.Dataset({variable: (dims, flat.reshape(n, 2, 4, 8))}, coords=coords), {})
    return dataclasses.replace(given, done=done)


@pytest.mark.parametrize("n", [3, 4, 7])
def test_sets_are_chosen_on_one_half_and_reported_on_the_other(model, monkeypatch, n):
    calls = {}
    for name in ("keep_only", "remove"):
        monkeypatch.setattr(cot, name, lambda *args, _name=name, **kw: calls.update({_name: (args, kw)}))
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
    split = knock_out._halves(n, "exact", 3)
    assert n < 4 or [given.examples[i].index for i in np.flatnonzero(split == "report")] == sorted(reported)
    assert set(given.sets()["patch_steps"].examples) == whole  # of which head_overlap tells


def test_what_is_kept_alone_is_told_of_other_examples(model):
    found = next(e for e in ENTRIES if e.name == "keep_only").run(_given(model, 4), None)
    assert found.about["settings"]["reused"] == 0 and found.data.sizes["example"] == 2
    assert "the sets were chosen on 2 other examples, none of these" in found.findings()
    few = next(e for e in ENTRIES if e.name == "keep_only").run(_given(model, 2), None)
    assert "2 examples were also used to choose the sets" in str(few)


def test_the_plan_adds_up(model):
    plan = make(model, ENTRIES, WORK)
    assert plan.seconds == pytest.approx(sum(line.seconds for line in plan.lines))
    text = str(plan)
    assert all(entry.name in text for entry in ENTRIES)
    total = sum(e.cost(model.cfg, WORK).token_forwards for e in ENTRIES)
    assert f"{total:,.0f}" in next(line for line in text.splitlines() if line.startswith("all "))
    by_hand = Plan((Line("a", "E1", Cost(1, 10, 3e12, 2**30), Cost(5, 50, 9e12), 3.0),), 1e12, WORK)
    assert "3.00" in str(by_hand) and "1.0 GiB" in str(by_hand) and "about 3.0 s" in str(by_hand)


def test_the_measured_speed_is_of_this_model(model):
    speed = measured_speed(model)
    assert 1e8 < speed < 1e15 and row_flop(model.cfg) > 0


def test_times_are_readable():
    assert [shown_time(s) for s in (1.44, 35.4, 250, 11160)] == ["1.4 s", "35 s", "4.2 min", "3.1 h"]


@pytest.fixture(scope="module")
def model():
    return pcm.Model.from_pretrained("tiny-cot")
