"""Parallel pathways write the answer and not every word, and the answer needs none of them by itself: each part can fail."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.paper.claims.pathways import CLAIM
from tests.paper.claims.writers_cases import written
from tests.reference import planted
from tests.reference.tiny import tiny_llama

MANY = np.resize([3.0, 4.0, 2.0, 5.0], 40)


def test_several_writers_none_of_which_is_needed():
    found = CLAIM.verdict(written(MANY))
    assert found.word == "borne out" and found.evidence.startswith(
        "holds at 3 of 3 steps and fails at 0; no other word could take the answer's place at steps 0, which do not count; "
        "step 1: 3.5 ["
    )
    np.testing.assert_array_equal(found.values, MANY)
    assert (
        "step 5: 0.0 [0.0, 0.0] writers of the other word; the answer survives the loss of as many other heads: 100%"
        in found.null
    )


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (dict(writers=1), "more than one writer"),
        (dict(competitors=MANY + np.resize([1, 0.5], 40)), "more than of another word"),
        (dict(one=-1), "the answer survives the loss of any one"),
        (dict(together=1), "but not of all"),
        (dict(matched=-1, together=np.resize([1, -1, -1, -1], 40)), "other heads"),
    ],
)
def test_each_part_can_fail(options, part):
    found = CLAIM.verdict(written(**{"writers": MANY, **options}))
    assert found.word == "not borne out" and "holds at 0 of 3 steps and fails at 3" in found.evidence
    assert part in found.evidence.split("not borne out: ")[1]


def test_a_step_without_a_competitor_cannot_carry_the_claim():
    number = np.ones((40, 4))
    number[:, 0] = 9  # the pooled mean is 3 writers
    found = CLAIM.verdict(written(number))
    assert found.word == "not borne out" and "fails at 3" in found.evidence


def test_more_than_half_of_the_steps_must_hold():
    number = np.repeat(MANY[:, None], 4, 1)
    number[:, 1] = 1
    assert CLAIM.verdict(written(number)).word == "borne out"  # 2 of 3
    number[:, 2] = 1
    assert CLAIM.verdict(written(number)).word == "not borne out"


def test_few_examples_and_no_competitor_leave_it_open():
    assert CLAIM.verdict(written([3.0])).word == "not decided"
    assert CLAIM.verdict(written(np.full(4, 3.0))).word == "not decided"
    one = written(MANY)["answer_writers"]
    alone = type(one)(one.data.isel(step=[0]), {})
    assert CLAIM.verdict({"answer_writers": alone}).word == "not decided"


def test_few_examples_that_agree_decide_no_step_of_several():
    """Six of six have a probability of 0.03: enough for a single step, not for one of three."""
    assert CLAIM.verdict(written(np.full(6, 3.0), one=1, together=-1)).word == "not decided"
    assert CLAIM.verdict(written(np.full(12, 3.0))).word == "borne out"


# ---- planted -------------------------------------------------------------------------------------------------------


def of_planted(n=12, **options):
    made = planted.parallel(**options)
    found = pcm.cot.answer_writers(made.model, planted.examples(made, n, others=True), right=torch.ones(n, 1, dtype=torch.bool))
    return found, CLAIM.verdict({"answer_writers": found})


def test_two_writers_each_of_which_is_enough_are_parallel():
    found, verdict = of_planted(other="passed by")
    assert verdict.word == "borne out"
    at = found.data.sel(threshold=0.1)
    assert (at["writers"] == 2).all() and (at["competitor_writers"] == 0).all() and (found.data["competitors"] == 1).all()
    assert float(at["margin_one"].min()) > 3 and float(at["margin_together"].max()) < 0 < float(at["margin_matched"].min())


def test_one_writer_is_not_parallel_for_the_answer_dies_with_it():
    found, verdict = of_planted(other="passed by", writers=["question"])
    assert verdict.word == "not borne out" and "more than one writer" in verdict.evidence
    assert "the answer survives the loss of any one" in verdict.evidence
    at = found.data.sel(threshold=0.1)
    assert (at["writers"] == 1).all() and float(at["margin_one"].max()) < 0
    np.testing.assert_array_equal(at["margin_one"], at["margin_together"])


def test_heads_that_write_every_concept_of_the_prompt_are_not_parallel():
    """The counterfactual's word, which stands in no prompt, is written by none of them: that could not fail."""
    found, verdict = of_planted(other="written")
    assert verdict.word == "not borne out" and "more than of another word" in verdict.evidence
    at = found.data.sel(threshold=0.1)
    assert (at["writers"] == 2).all() and (at["competitor_writers"] == 2).all()
    for layer, head in ((1, 0), (3, 2)):
        assert float(found.data["control"].sel(layer=layer, head=head).max()) < 0.01


# ---- nothing to find -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "most"), [(5, 1), pytest.param(40, 2, marks=pytest.mark.slow)])
def test_at_most_two_of_forty_random_models_bear_it_out(models, most):
    tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
    words = []
    for seed in range(models):
        hf = tiny_llama(n_layers=4 + seed % 3, n_heads=4, d_vocab=248, n_positions=512, seed=seed)
        model = pcm.Model(hf, tokenizer, prepend_bos=True, check=False)
        examples = pcm.cot.make_examples(6, shots=1, tokenizer=tokenizer, bos=True, seed=seed)
        right = torch.ones(6, examples.n_steps, dtype=torch.bool)
        found = pcm.cot.answer_writers(model, examples, right=right, steps=[1, 3, 5, 6, 7])
        verdict = CLAIM.verdict({"answer_writers": found})
        words.append(verdict.word)
        assert verdict.null
    assert words.count("borne out") <= most
