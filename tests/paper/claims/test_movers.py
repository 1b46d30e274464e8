"""Heads move along relations if they look where another verb would not have them look, and lie where chance would not."""

import numpy as np
import pytest
import xarray as xr
from transformers import AutoTokenizer

import pycotmech as pcm
from pycotmech.cot.analyses.relation_heads import RelationHeads
from pycotmech.paper.claims import movers
from tests.cot.analyses.relation_cases import said
from tests.reference.planted import models as planted
from tests.reference.tiny import tiny_llama

LAYERS, HEADS, N = 8, 6, 32
MANY = tuple((layer, head) for layer in (1, 2, 3) for head in (1, 3))


def verdict(found):
    return movers.CLAIM.verdict({"relation_heads": found})


def found_with(heads, null=0.0, drawn=None):
    """RelationHeads in which these heads have a score of 0.5, of which others verbs leave `null`."""
    score = np.zeros((N, 2, LAYERS, HEADS))
    looks = np.zeros((2, LAYERS, HEADS), bool)
    for head in heads:
        score[:, :, *head] = 0.5
        looks[:, *head] = True
    share = np.mean([l < LAYERS // 2 for l, _ in heads]) if heads else np.nan
    axes = ("example", "relation", "layer", "head")
    data = {
        "score": (axes, score),
        "null": (("example", "verb", *axes[1:]), np.repeat(score[:, None] * null, 2, 1)),
        "looks": (axes[1:], looks),
        "selected": (axes[1:], looks & (null < 0.9)),
        "split": (("split", "relation"), np.full((20, 2), share)),
        "drawn": (("draw", "relation"), np.full((200, 2), share) if drawn is None else np.stack([drawn, drawn], 1)),
        "half": ("example", np.array(["choose", "report"] * (N // 2))),
    }
    coords = {"relation": ["related", "negated"], "verb": ["fears", "sees"]}
    coords |= {"layer": range(LAYERS), "head": range(HEADS)}
    return RelationHeads(xr.Dataset(data, coords=coords), {"settings": {"level": 0.05, "least": 0.05}})


def test_what_other_verbs_leave_decides():
    lower = [(l, h) for l in range(3) for h in range(2)]
    assert verdict(found_with(lower)).word == "borne out"
    upper = verdict(found_with([(l + 4, h) for l, h in lower]))
    assert upper.word == "not borne out" and "0% [0%, 0%] of their gain" in upper.evidence
    none = verdict(found_with(lower, null=1.0))
    assert none.word == "not borne out" and "none attends less with fears or sees as the verb" in none.evidence
    assert none.null == "100% [100%, 100%] of the score of 6 heads remains with fears or sees"
    nothing = verdict(found_with([]))
    assert nothing.word == "not borne out"
    assert nothing.evidence.startswith("no head attends along related words more than along unrelated ones; the score of the")


def test_too_few_questions_for_any_test_deny_nothing():
    found = found_with([])
    few, more, enough = (verdict(RelationHeads(found.data.isel(example=slice(n)), found.about)) for n in (8, 10, 12))
    assert [few.word, more.word, enough.word] == ["not decided", "not decided", "not borne out"]
    assert few.evidence == "with so few questions to choose on no head can have a p-value below 0.062"


@pytest.mark.parametrize(("questions", "word"), [(16, "not decided"), (N, "not borne out")])
def test_a_test_without_power_denies_nothing(questions, word):
    """No head is selected, but on few questions the strongest may well be as strong as one that would be."""
    found = found_with([])
    found.data["score"].values[:, 0, 1, 1] = 0.015 + 0.05 * (-1.0) ** (np.arange(N) // 2)
    part = verdict(RelationHeads(found.data.isel(example=slice(questions)), found.about))
    assert part.word == word and "the score of the strongest, L1H1, is +0.0" in part.evidence, part
    assert ("so that 0.05 or more is not excluded" in part.evidence) == (word == "not decided")


def test_few_heads_lie_in_one_half_by_chance():
    alone = verdict(found_with([(1, 1)]))
    assert alone.word == "not decided" and "as many heads anywhere reach this with p = 0." in alone.evidence
    assert "of the score of 1 head remains" in alone.null and "[0%, 100%] of the gain lies in the first half" in alone.null


def test_a_p_value_is_never_zero(monkeypatch):
    """The heads themselves are one of the placements that reach their share."""
    monkeypatch.setattr(RelationHeads, "anywhere", lambda self, relation: np.zeros(10))
    few = verdict(found_with([(l, h) for l in range(3) for h in range(2)]))
    assert few.word == "not decided" and "as many heads anywhere reach this with p = 0.09" in few.evidence


def test_a_selection_that_changes_decides_nothing():
    lower = [(l, h) for l in range(3) for h in range(2)]
    open_ = verdict(found_with(lower, drawn=np.linspace(0.2, 1, 200)))
    assert open_.word == "not decided" and "the interval contains the threshold 0.5" in open_.evidence


@pytest.mark.parametrize(("first", "word"), [(0, "borne out"), (4, "not borne out")])
def test_planted_heads_are_recovered(first, word):
    relate, *also = [(l + first, h) for l, h in MANY]
    writer = (7, 0)
    made = planted.relation(previous=(0, 0), relate=relate, writer=writer, also=tuple(also), n_layers=8)
    found = pcm.cot.relation_heads(made.model, questions=said(N), random_sets=1)
    assert set(found.heads("related")) == {relate, *also} and found.heads("negated") == []
    assert verdict(found).word == word


def test_a_head_that_looks_back_within_a_sentence_is_no_evidence():
    found = pcm.cot.relation_heads(planted.looking_back().model, questions=said(N), random_sets=1)
    said_of = verdict(found)
    assert said_of.word == "not borne out" and said_of.null.startswith("100% [100%, 100%] of the score of 1 head remains")


@pytest.mark.parametrize(("models", "most"), [(5, 1), pytest.param(40, 3, marks=pytest.mark.slow)])
def test_random_weights_do_not_bear_it_out(tiny_cot_path, models, most):
    tokenizer, words = AutoTokenizer.from_pretrained(tiny_cot_path), []
    for seed in range(models):
        if seed % 4:
            found = pcm.cot.relation_heads(
                planted.nothing(n_layers=4 + seed % 3, seed=seed).model, questions=said(16, seed=seed), random_sets=1
            )
        else:
            hf = tiny_llama(n_layers=4 + seed % 3, n_heads=4, d_vocab=len(tokenizer), n_positions=512, seed=seed)
            model = pcm.Model(hf, tokenizer, name="random", prepend_bos=True)
            found = pcm.cot.relation_heads(model, questions=24, random_sets=1, seed=seed)
        words.append(verdict(found).word)
    assert words.count("borne out") <= most, words
