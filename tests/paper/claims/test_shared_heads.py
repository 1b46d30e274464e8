"""Heads are shared if a minority serves all steps, the heads of one step serve the others, and random ones do neither."""

import numpy as np
import pytest
import xarray as xr

from pycotmech.cot.analyses.knock_out_curve import KnockOutCurve
from pycotmech.cot.analyses.set_transfer import SetTransfer
from pycotmech.paper.claims import shared_heads

CLAIM = shared_heads.CLAIM
DRAWS = 20
SPREAD = np.linspace(-0.06, 0.06, DRAWS)
"""Of what random sets keep, about their mean."""
DIMS = ("chosen", "example", "step")


def curve(kept, accuracy, random, draws=DRAWS):
    """KnockOutCurve of one step and ten heads, with `kept` of them left: accuracy in order, and of random sets [example]."""
    n = len(accuracy)
    dims = ("order", "size", "example", "step")
    right = np.ones((1, 2, n, 1))
    right[0, 1, :, 0] = accuracy
    ablated = np.zeros((1, 2, 2, 5), bool)
    ablated.reshape(2, 10)[1, : 10 - kept] = True
    data = {
        "right": (dims, right),
        "removed": (("order", "size"), ablated.sum((-2, -1))),
        "ablated": (("order", "size", "layer", "head"), ablated),
        "half": ("example", np.array(["select", "report"] * (n // 2))),
    }
    if draws:
        drawn = np.clip(np.broadcast_to(random, n) + SPREAD[:draws, None], 0, 1)
        data |= {"random": (("draw", "example", "step"), drawn[..., None]), "random_size": ((), 1)}
    coords = {"order": ["least"], "step": [5], "kind": ("step", ["induction"])}
    about = {"settings": {"accuracy": "right", "target": 0.9, "n_random": draws}}
    return KnockOutCurve(xr.Dataset(data, coords=coords), about)


def moved(accuracy, random, kinds=("decision", "copying"), draws=DRAWS):
    """SetTransfer of two steps: accuracy [example] of a step's heads at the other, 1 at its own; of random sets [example]."""
    n = len(accuracy)
    right = np.ones((2, n, 2))
    right[0, :, 1] = right[1, :, 0] = accuracy
    data = {"right": (DIMS, right)}
    if draws:
        drawn = np.clip(np.broadcast_to(random, n) + SPREAD[:draws, None], 0, 1)
        data |= {
            "random": (("draw", "example", "step"), np.repeat(np.stack([drawn] * 2, -1), 2, 0)),
            "matched": ("draw", [4, 5] * draws),
            "round": ("draw", np.repeat(np.arange(draws), 2)),
        }
    coords = {"chosen": [4, 5], "step": [4, 5], "kind": ("step", list(kinds)), "chosen_kind": ("chosen", list(kinds))}
    return SetTransfer(xr.Dataset(data, coords=coords), {"settings": {"accuracy": "right", "k": 3, "n_random": draws}})


def verdict(of_curve, of_transfer):
    return CLAIM.verdict({"knock_out_curve": of_curve, "set_transfer": of_transfer})


GOOD = [0.9, 0.9, 1, 1] * 20


@pytest.mark.parametrize(
    ("kept", "accuracy", "random", "other", "exchanged", "word", "why"),
    [
        (3, GOOD, 0.4, GOOD, 0.4, "borne out", "3 heads of one step keep 95% ["),
        (8, GOOD, 0.4, GOOD, 0.4, "not borne out", "not so: a minority of the heads"),
        (3, [0.4, 0.4, 0.5, 0.5] * 20, 0.1, GOOD, 0.4, "not borne out", "not so: 80% of the steps"),
        (
            3,
            [0.9, 0.9, 0.95, 0.95] * 20,
            0.97,
            GOOD,
            0.4,
            "not decided",
            "open: more than random heads of the same layers (the interval contains",
        ),
        (3, [0.85] * 80, 1.1, GOOD, 0.4, "not borne out", "not so: more than random heads of the same layers"),
        (3, [1.0] * 8, 0.2, GOOD, 0.4, "not decided", "open: 80% of the steps (the interval contains the threshold 0.8"),
        # A set that serves all steps, though each step has heads of its own:
        (3, GOOD, 0.4, [0.1, 0.2] * 40, 0.1, "not borne out", "not so: 80% of the steps of other kinds by one step's heads"),
        (3, GOOD, 0.4, GOOD, 0.93, "not decided", "open: more of these than random heads of the same layers"),
        (3, GOOD, 0.4, [0.7, 0.9] * 40, 0.2, "not decided", "open: 80% of the steps of other kinds"),
    ],
)
def test_each_part_can_fail(kept, accuracy, random, other, exchanged, word, why):
    found = verdict(curve(kept, accuracy, random), moved(other, exchanged))
    assert found.word == word and why in found.evidence


def test_the_interval_of_the_difference_holds_the_spread_of_random_sets():
    """0.95 against 0.91 on average: the mean of twenty draws is known to 0.02, what a further one keeps is not."""
    found = verdict(curve(3, GOOD, 0.91), moved(GOOD, 0.4))
    assert found.word == "not decided" and "open: more than random heads of the same layers" in found.evidence
    assert (
        "20 random sets with as many heads in each layer keep 91% [76%, 100%], a difference of 4 [-4, 12] percentage points"
        in found.null
    )


def test_nulls_are_said_in_the_same_row():
    found = verdict(curve(3, GOOD, 0.4), moved(GOOD, 0.3))
    assert found.null.startswith("20 random sets with as many heads in each layer keep 40% [")
    assert "; of steps of other kinds, with heads exchanged at random within their layers (20 times) 30% [" in found.null
    assert "of the same layers" not in found.null and "as many heads in each layer" in CLAIM.null


def test_what_was_not_tried_leaves_the_claim_open():
    none = verdict(curve(3, GOOD, 0.4, draws=0), moved(GOOD, 0.4))
    assert none.word == "not decided" and "more than random heads of the same layers (none were tried)" in none.evidence
    assert "nan" not in none.evidence + none.null and none.null.startswith("none were tried; of steps")
    none = verdict(curve(3, GOOD, 0.4), moved(GOOD, 0.4, draws=0))
    assert none.word == "not decided" and "nan" not in none.evidence + none.null
    alike = verdict(curve(3, GOOD, 0.4), moved(GOOD, 0.4, kinds=("copying", "copying")))
    assert alike.word == "not decided" and "(the steps are all of one kind)" in alike.evidence
    assert "nan" not in alike.evidence + alike.null
    assert CLAIM.verdict({"knock_out_curve": curve(3, GOOD, 0.4)}).evidence == "needs set_transfer, which was not run"


def test_one_example_held_out_has_no_brackets():
    alone = verdict(curve(3, [1.0, 1.0], 0.4), moved([1.0], 0.4))
    assert alone.word == "not decided" and "nan" not in alone.evidence + alone.null
    assert alone.evidence.startswith(
        "3 of 10 heads keep 100% of the steps of all kinds right; n = 1 held out; 3 heads of one step"
    )
    assert "open: 80% of the steps (one example has no interval)" in alone.evidence
