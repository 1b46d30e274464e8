"""What copying the premises in order gets right: everything where they stand in the order of use, about chance where not."""

import numpy as np
import pytest

from pycotmech.cot import make_examples
from pycotmech.cot.task.copying import copied_in_order


@pytest.mark.parametrize(("style", "order"), [("every", None), ("paper", "membership_first"), ("each", None), ("all", None)])
@pytest.mark.parametrize("hops", [1, 2, 4])
def test_all_of_the_easy_task_is_copied_in_order(smollm2, style, order, hops):
    found = copied_in_order(make_examples(4, tokenizer=smollm2, style=style, order=order, hops=hops, shots=1))
    assert found.share == 1.0 and found.right.shape == (4, hops + 1)
    assert found.steps == (0, *range(2, 4 * hops + 2, 4)) and found.chance == pytest.approx(1 / (hops + 1))


def test_about_chance_where_premises_are_shuffled(tiny_cot):
    found = copied_in_order(make_examples(150, tokenizer=tiny_cot, shots=0, order="shuffled"))
    assert found.share == pytest.approx(1 / 3, abs=0.07) and found.chance == pytest.approx(1 / 3)


def test_premises_of_others_get_in_the_way(tiny_cot):
    easy, distracted, competing = (
        copied_in_order(make_examples(60, tokenizer=tiny_cot, shots=0, **kw)).share
        for kw in ({}, dict(distractors=2), dict(competing=1))
    )
    assert 1.0 == easy > distracted > competing > 0.2


def test_by_hand(tiny_cot):
    """The authors' order: the property rule first. The policy names its subject at step 0, and after the membership nothing."""
    examples = make_examples(3, tokenizer=tiny_cot, shots=0, order="backward")
    np.testing.assert_array_equal(copied_in_order(examples).right, np.zeros((3, 3), bool))
    forward = make_examples(3, tokenizer=tiny_cot, shots=0, order="forward")  # rules, then the membership
    np.testing.assert_array_equal(copied_in_order(forward).right, [[False, False, True]] * 3)
    with pytest.raises(ValueError, match="examples: got none"):
        copied_in_order([])
