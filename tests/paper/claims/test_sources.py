"""Both places are sources beyond the words beside the answer's, step by step, where the word stands in both."""

import numpy as np
import pytest
import torch
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses.answer_sources import PLACES, AnswerSources
from pycotmech.cot.tools.activations import SEGMENTS
from pycotmech.paper.claims.sources import CLAIM
from tests.reference import planted
from tests.reference.tiny import tiny_llama


def taken(pathways, control=(0, 0, 0, 4), *, occurs=((0, 2, 2),), n=12, shake=True):
    """`answer_sources` of steps 0, 1, ...: pathways and control by place, the same at each step or [step][place]; occurs
    [step][segment]. shake: whether every other example has twice as many pathways."""
    steps = len(occurs)

    def grid(x):
        x = np.broadcast_to(np.asarray(x, float), (steps, 4))
        return np.stack([x * (2 if shake and i % 2 else 1) for i in range(n)])

    dims = ("example", "step", "place")
    data = {"pathways": (dims, grid(pathways)), "control_pathways": (dims, grid(control))}
    data["occurrences"] = (("example", "step", "segment"), np.broadcast_to(np.asarray(occurs, float), (n, steps, 3)).copy())
    coords = {"step": np.arange(steps), "place": list(PLACES), "segment": list(SEGMENTS)}
    return {"answer_sources": AnswerSources(xr.Dataset(data, coords=coords), {})}


def test_both_places_are_sources_of_planted_numbers():
    found = CLAIM.verdict(taken((0, 2, 2, 0)))
    assert found.word == "borne out"
    assert found.evidence.startswith(
        "both places are sources at 1 of the 1 steps where the word stands in both; at 0 they are not; no pathway leads "
        "to the few-shot block, by construction: its words are others; step 0: "
    )
    assert found.null.startswith("step 0: question 0% [0%, ")
    assert found.threshold == 0 and np.allclose(found.values, 0.5)


@pytest.mark.parametrize(
    ("pathways", "control", "part"),
    [
        ((0, 4, 0, 0), (0, 0, 0, 4), "generated"),
        ((0, 0, 4, 0), (0, 0, 0, 4), "question"),
        ((0, 2, 2, 0), (0, 2, 0, 2), "question"),  # as many lead to the words beside it
        ((0, 2, 2, 0), (0, 1, 3, 0), "generated"),
    ],
)
def test_each_place_can_fail(pathways, control, part):
    found = CLAIM.verdict(taken(pathways, control))
    assert found.word == "not borne out" and part in found.evidence.split("not borne out: ")[1]


def test_steps_count_where_the_word_stands_in_both_places():
    """Pooled, half of the pathways lead to either place; but each step has the word in one of them only."""
    apart = taken(((0, 4, 0, 0), (0, 0, 4, 0)), occurs=((0, 2, 0), (0, 0, 2)))
    assert CLAIM.verdict(apart).word == "not decided" and "at no step" in CLAIM.verdict(apart).evidence
    one = taken(((0, 4, 0, 0), (0, 2, 2, 0)), occurs=((0, 2, 0), (0, 2, 2)))
    assert CLAIM.verdict(one).word == "borne out" and "1 of the 1 steps" in CLAIM.verdict(one).evidence


def test_most_steps_must_hold():
    three = ((0, 2, 2, 0), (0, 2, 2, 0), (0, 4, 0, 0))
    assert CLAIM.verdict(taken(three, occurs=((0, 2, 2),) * 3)).word == "borne out"
    assert CLAIM.verdict(taken(three[1:], occurs=((0, 2, 2),) * 2)).word == "not borne out"


def test_no_pathway_and_one_example_leave_it_open():
    assert CLAIM.verdict(taken((0, 0, 0, 0), (0, 0, 0, 0))).word == "not decided"
    assert CLAIM.verdict(taken((0, 2, 2, 0), n=1)).word == "not decided"


def test_few_examples_that_agree_decide_no_step_of_several():
    """Six of six have a probability of 0.03: enough for a single step, not for one of two."""
    two = dict(occurs=((0, 2, 2),) * 2, shake=False)
    assert CLAIM.verdict(taken((0, 2, 2, 0), n=6, shake=False)).word == "borne out"
    assert CLAIM.verdict(taken((0, 2, 2, 0), n=6, **two)).word == "not decided"
    assert CLAIM.verdict(taken((0, 2, 2, 0), n=7, **two)).word == "borne out"


def test_planted_sources_are_found_and_a_word_passed_by_is_not_one():
    made = planted.parallel(other="passed by")
    found = pcm.cot.answer_sources(made.model, planted.examples(made, 12, others=True))
    verdict = CLAIM.verdict({"answer_sources": found})
    assert verdict.word == "borne out"
    assert float(found.data["control_pathways"].sel(place=list(SEGMENTS)).sum()) == 0
    one = planted.parallel(other="passed by", writers=["question"])
    alone = pcm.cot.answer_sources(one.model, planted.examples(one, 12, others=True))
    assert CLAIM.verdict({"answer_sources": alone}).word == "not borne out"
    assert "percentage points" in " ".join(alone.findings())


@pytest.mark.slow  # a minute
def test_at_most_two_of_forty_random_models_bear_it_out():
    tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
    words = []
    for seed in range(40):
        hf = tiny_llama(n_layers=4 + seed % 3, n_heads=4, d_vocab=248, n_positions=512, seed=seed)
        model = pcm.Model(hf, tokenizer, prepend_bos=True, check=False)
        examples = pcm.cot.make_examples(6, shots=1, tokenizer=tokenizer, bos=True, seed=seed)
        right = torch.ones(6, examples.n_steps, dtype=torch.bool)
        found = pcm.cot.answer_sources(model, examples, right=right, steps=[4, 5, 6])
        words.append(CLAIM.verdict({"answer_sources": found}).word)
    assert words.count("borne out") <= 2
