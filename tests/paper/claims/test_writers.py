"""Writers lie in the later half, and what is brought there is the answer and not any word."""

import numpy as np
import pytest

from pycotmech.paper.claims.writers import CLAIM
from tests.paper.claims.writers_cases import written


def spread(mean, n=8, by=0.02):
    return mean + by * np.resize([-1.0, 1.0], n)


def test_late_writers_of_the_answer():
    found = CLAIM.verdict(written(spread(3, 40), late=np.resize([1, 1, 1, 0.95], 40), late_logit=spread(0.9, 40)))
    assert found.word == "borne out"
    assert "99% [" in found.evidence and "n = 40" in found.evidence
    assert found.null.startswith("50% of heads lie there; they contribute 50% [")


@pytest.mark.parametrize(
    ("options", "word", "why"),
    [
        (dict(late=spread(0.2)), "not borne out", "not so: 90 % of the writers"),
        (
            dict(late=np.ones(40), late_logit=spread(0.8, 40), late_competitor=spread(0.9, 40)),
            "not borne out",
            "not so: more of",
        ),
        (dict(late=np.ones(8), late_logit=spread(0.9)), "not decided", "open: 90 % of the writers (the interval contains"),
        (
            dict(late=np.ones(40), late_logit=spread(0.8, 40, 0.3), late_competitor=0.8),
            "not decided",
            "open: more of the answer",
        ),
        (dict(late=[1.0]), "not decided", "one example has no interval"),
    ],
)
def test_each_part_can_fail(options, word, why):
    found = CLAIM.verdict(written(3, **options))
    assert found.word == word and why in found.evidence


def test_without_writers_the_logit_alone_can_deny_the_claim():
    even = CLAIM.verdict(written(np.zeros(8), late_logit=spread(0.5), late_competitor=spread(0.6)))
    assert even.word == "not borne out" and "no head writes the answer with probability 0.1 or more" in even.evidence
    late = CLAIM.verdict(written(np.zeros(8), late_logit=spread(0.9)))
    assert late.word == "not decided" and "open: 90 % of the writers (there are none)" in late.evidence and not late.data


def test_a_claim_that_is_open_anyhow_is_not_open_for_want_of_writers():
    """A random model may write the answer in one example of eight, and the logit alone leave the claim open."""
    few = CLAIM.verdict(written([3.0] + [0.0] * 7, late_logit=spread(0.8, 8, 0.3), late_competitor=0.8))
    assert few.word == "not decided" and "90 % of the writers (one example has no interval)" in few.evidence and few.data
