"""What sets of heads and scores are called."""

from __future__ import annotations

import pytest

from pycotmech.cot.tools.registry import COMPARED
from pycotmech.cot.tools.set_words import SELECTED, score_words, set_words

PAPER = (*COMPARED, "common", "only_main", "only_other", "other", "common_only_main")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            PAPER,
            [
                "heads that restore most",
                "heads that carry the answer",
                "heads that copy",
                "heads in all three sets",
                "heads that restore most, in no other set",
                "heads in the other two sets only",
                "heads in either of the other two sets",
                "heads that restore most, in both or neither of the other sets",
            ],
        ),
        (("a", "only_main", "common"), ["a", "heads in the main set only", "heads in all sets"]),
        (("common", "other"), ["common", "other"]),  # names that a set of the user's own may have
        (("copy_heads 5", "mine 5"), ["heads that copy, step 5", "mine 5"]),
    ],
)
def test_sets_are_called_by_words(names, words):
    assert set_words(names) == words


def test_every_set_and_score_of_the_paper_has_words():
    assert tuple(SELECTED) == COMPARED
    assert score_words("copy_heads copying") == "attention to the answer's word times what the head writes of it"
    assert score_words("mine") == "mine"
