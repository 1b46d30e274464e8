"""Which analyses run, in which order, and what the plan says of them."""

import pytest

import pycotmech as pcm
from pycotmech import cot
from pycotmech.cot.analyses.cost import Cost, Workload, row_flop
from pycotmech.paper import CLAIMS, ENTRIES
from pycotmech.paper.entries import chosen
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
