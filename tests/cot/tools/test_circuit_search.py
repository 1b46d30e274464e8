"""The search for a circuit, on functions of sets whose answer is known."""

import numpy as np
import pytest

from pycotmech.cot.tools.circuit_search import but, layer_matched, members, of_heads, search, worst_subset

SHAPE = (3, 4)
ORDER = [(l, h) for l in range(3) for h in range(4)]


def additive(weights, log=None):
    """F of a set: the sum of its heads' weights, on two cells."""

    def values(masks):
        if log is not None:
            log.append(len(masks))
        total = (masks * weights).sum((1, 2))
        return np.stack((total, total), 1)

    return values


def test_what_adds_up_is_found_whatever_the_order():
    weights = np.zeros(SHAPE)
    for head, weight in {(0, 3): 4.0, (1, 1): 5.0, (2, 2): 3.0, (2, 0): 0.3}.items():
        weights[head] = weight
    wanted = {(0, 3), (1, 1), (2, 2)}
    by_weight = sorted(ORDER, key=lambda head: -weights[head])
    for order in (ORDER, ORDER[::-1], by_weight):
        found = search(additive(weights), order, SHAPE, tolerance=0.1, evaluations=200)
        assert set(members(found.kept)) == wanted and found.finished and found.allowed == pytest.approx(1.23)
    exact = search(additive(weights), ORDER, SHAPE, tolerance=0.01, evaluations=200)
    assert set(members(exact.kept)) == {*wanted, (2, 0)}


def test_either_of_two_is_enough_and_one_is_left():
    def values(masks):
        found = 10.0 * (masks[:, 0, 0] & (masks[:, 1, 1] | masks[:, 2, 3]))
        return np.stack((found, found), 1)

    found = search(values, ORDER, SHAPE, tolerance=0.1, evaluations=200)
    heads = set(members(found.kept))
    assert found.finished and (0, 0) in heads and len(heads) == 2 and len(heads & {(1, 1), (2, 3)}) == 1
    # Such a circuit is faithful and not complete: without the backup that it lacks the model fails no more than with it.
    lost = worst_subset(values, found.kept, 1)
    (gone,) = members(lost)
    assert gone in {(1, 1), (2, 3)} & heads
    assert values((found.kept & ~lost)[None]).mean() == 0 and values(~lost[None]).mean() == 10


def test_the_budget_ends_the_search():
    weights = np.ones(SHAPE)
    weights[2] = 0
    log = []
    found = search(additive(weights, log), ORDER[::-1], SHAPE, tolerance=0.01, evaluations=3)
    assert not found.finished and len(members(found.kept)) > 8 and all(found.kept[:2].ravel())
    assert sum(log[1:]) <= 5
    full = search(additive(weights), ORDER[::-1], SHAPE, tolerance=0.01, evaluations=100)
    assert full.finished and members(full.kept) == ORDER[:8]
    nothing = search(additive(np.zeros(SHAPE)), ORDER, SHAPE, tolerance=0.1, evaluations=100)
    assert len(members(nothing.kept)) == 1 and nothing.allowed == 0


def test_random_sets_have_as_many_heads_in_each_layer_and_are_others():
    mask = of_heads([(0, 1), (1, 0), (1, 2), (1, 3)], SHAPE)
    rng = np.random.default_rng(0)
    drawn = [layer_matched(mask, rng) for _ in range(50)]
    assert all((d.sum(1) == [1, 3, 0]).all() and (d != mask).any() for d in drawn)
    assert len({d.tobytes() for d in drawn}) > 5
    whole = np.ones(SHAPE, bool)
    assert layer_matched(whole, rng).all() and not but(whole, ORDER).any()
