"""E10: heads that look along relations, on planted models and against plain attention patterns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import relation_heads as relating
from pycotmech.cot.task.relations import Question, WordPair, make_questions
from pycotmech.cot.task.verbs import reworded
from pycotmech.cot.tools import word_attention as looking
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from pycotmech.cot.tools.head_probe import head_sets, probed
from pycotmech.stats.significance import sign_flip
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.cot.analyses.relation_cases import said
from tests.reference.close import assert_allclose
from tests.reference.planted import models as planted
from tests.reference.truth import activations


@pytest.fixture(scope="module")
def result(model, examples, every):
    return pcm.cot.relation_heads(
        model, examples, questions=12, right=every, depth=4, least=-1.0, level=0.95, random_sets=2, seed=1
    )


@torch.no_grad()
def test_scores_are_their_definition_on_plain_patterns(model, examples, result):
    questions = make_questions(12, tokenizer=model.tokenizer, examples=examples, seed=1)
    for e in (0, 7):
        acts = activations(model.hf, questions[e].tokens)
        pairs = questions[e].pairs
        for l in range(4):
            looked = np.array([acts["pattern", l][:, p.second.stop - 1, p.first].sum(-1).numpy() for p in pairs])
            even = np.array([(p.first.stop - p.first.start) / p.second.stop for p in pairs])[:, None]
            for relation in (0, 1):
                mine = [i for i, p in enumerate(pairs) if p.label == relation]
                others = [i for i, p in enumerate(pairs) if p.label == 2 and p.matched == relation]
                assert len(mine) == len(others) == 3
                here = result.data.isel(example=e, relation=relation, layer=l)
                want = looked[mine].mean(0) - looked[others].mean(0)
                assert_allclose(here["score"].values, want, atol=1e-5)
                lift = looked / even
                gaps, sums = (np.stack([lift[i] + sign * lift[j] for i in mine for j in others]) for sign in (-1, 1))
                close = (np.abs(gaps) < 1e-3 * sums).mean(0)  # pairs that rounding may order either way
                assert (np.abs(here["auroc"].values - ((gaps > 0) + 0.5 * (gaps == 0)).mean(0)) <= close + 1e-9).all()
                assert close.max() < 0.5 and (close == 0).mean() >= 0.5


@torch.no_grad()
def test_nulls_are_their_definition_on_plain_patterns(model, examples, result):
    """The same words in a text with another verb, as if verbs got there what they get in the question."""
    questions = make_questions(12, tokenizer=model.tokenizer, examples=examples, seed=1)
    names, others = reworded(questions, tokenizer=model.tokenizer, bos=model.prepend_bos)
    assert result.data["verb"].values.tolist() == list(names) and result.verbs == " or ".join(names)
    for e in (0, 7):
        pairs, tokens = questions[e].pairs, questions[e].tokens
        words = (others[e][0] == tokens).nonzero().flatten()
        plain = activations(model.hf, tokens)
        for v in range(2):
            acts = activations(model.hf, others[e][v])
            for l in range(4):
                weights = []
                for p in pairs:
                    row, own = (x["pattern", l][:, p.second.stop - 1] for x in (acts, plain))
                    free, own_free = row[:, words].sum(-1), own[:, words].sum(-1)
                    weights.append((row[:, p.first].sum(-1) / free * own_free).numpy())
                for relation in (0, 1):
                    mine, others_of = (
                        np.stack([w for w, p in zip(weights, pairs) if (p.label, p.matched) == key]).mean(0)
                        for key in ((relation, -1), (2, relation))
                    )
                    here = result.data["null"].isel(example=e, verb=v, relation=relation, layer=l).values
                    assert_allclose(here, mine - others_of, atol=2e-5)
    assert float(np.abs(result.gain.isel(layer=0)).max()) < 1e-5  # no head of the first layer knows what else is said


@torch.no_grad()
def test_words_of_several_pieces_count_by_their_share_of_even_attention(model):
    """A word of three pieces is looked at three times as much by a head that looks everywhere alike."""
    tokens = make_questions(1, tokenizer=model.tokenizer)[0].tokens[:30]
    spans = [slice(2, 3), slice(5, 8), slice(9, 11), slice(14, 15)]
    pairs = tuple(WordPair(label, span, slice(19 + i, 20 + i)) for i, (span, label) in enumerate(zip(spans, (0, 0, 2, 2))))
    seen = looking.look(model, [Question(tokens, pairs)], 4, np.array([0]), None, None)
    for l in range(4):
        pattern = activations(model.hf, tokens)["pattern", l]
        for j, p in enumerate(pairs):
            row = pattern[:, p.second.stop - 1]
            even = torch.full((p.second.stop,), 1 / p.second.stop)[p.first].sum()
            assert_allclose(seen.weight[0][j, l], row[:, p.first].sum(-1), atol=1e-5)
            assert_allclose(seen.lift[0][j, l], row[:, p.first].sum(-1) / even, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("moved", [False, True])
def test_the_planted_head_is_found_and_no_other(moved):
    p = planted.relation(previous=(0, 1), relate=(2, 0), writer=(3, 1), seed=7) if moved else planted.relation()
    found = pcm.cot.relation_heads(p.model, questions=said(32), heads=1, random_sets=3, depth=3)
    assert found.heads("related") == [p.heads["relate"]] and found.heads("negated") == []
    row = found.table().iloc[0]
    assert row["score"] > 0.9 and row["auroc"] > 0.99 and row["p"] < 0.01 and row["n"] == 16
    share = 0.0 if moved else 1.0
    assert float(found.first_half().mean) == share and row["gain"] > 0.9
    assert float(found.stays().mean) == pytest.approx(0, abs=0.05)
    gone, other = found.ablation()["margin"]
    assert gone < -0.02 and gone < 3 * other
    assert "the probe loses more without them than without others" in found.findings()[-1]
    assert "as many random heads of the same layers (each question's median over 3 sets) by" in found.findings()[-2]
    keeps_its_ranges(found)


@pytest.mark.parametrize("options", [{}, dict(previous=(0, 3), back=(2, 1), seed=3)])
def test_a_head_that_looks_back_within_a_sentence_is_not_found(options):
    """It looks from object to subject, as one along the relation does, and as before it counts as looking along it."""
    p = planted.looking_back(**options)
    found = pcm.cot.relation_heads(p.model, questions=said(32), random_sets=1)
    assert bool(found.data["looks"].sel(relation="related")[p.heads["back"]])
    assert found.heads("related") == found.heads("negated") == []
    assert float(found.stays().mean) == pytest.approx(1, abs=0.01)
    assert "100% [100%, 100%] of their score remains; 0 attend more" in found.findings()[0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_found_where_nothing_was_planted(seed):
    p = planted.nothing(seed=seed)
    found = pcm.cot.relation_heads(p.model, questions=said(32, seed=seed))
    assert found.heads("related") == found.heads("negated") == []
    assert len(found.ablation()) == 0 and "nothing was ablated" in found.findings()[-1]
    assert np.isnan(found.first_half().mean)


def test_random_sets_are_as_large_in_the_same_layers(model):
    chosen = [(0, 1), (0, 2), (1, 7), (2, 0)]
    sets = head_sets(chosen, model.cfg, 3, 20, np.random.default_rng(0))
    want = sets.pop("selected")
    assert sorted(map(tuple, want.nonzero().tolist())) == chosen and len(sets) == 20
    for mask in sets.values():
        assert mask.sum(1).tolist() == want.sum(1).tolist() and not (mask & want).any()
    full = head_sets([(0, h) for h in range(8)], model.cfg, 2, 1, np.random.default_rng(0))
    assert full["random 1"].sum() == 8 and full["random 1"][1].all()


def test_choosing_and_reporting_are_kept_apart(result):
    half = result.data["half"].values
    assert (half == "choose").sum() == 6 and (half == "report").sum() == 6
    score, auroc = (result.data[name].values[half == "choose"] for name in ("score", "auroc"))
    null = result.data["null"].values[half == "choose"]
    tested = [auroc - 0.5, score - null[:, 0], score - null[:, 1]]
    p = np.stack([[sign_flip(x[:, r], flips=2000, seed=1) for r in (0, 1)] for x in tested])
    np.testing.assert_array_equal(result.data["p"].values, p.max(0))
    np.testing.assert_array_equal(result.data["looks"].values, p[0] < 0.95)
    np.testing.assert_array_equal(result.data["selected"].values, (p < 0.95).all(0))
    assert 0 < result.data["selected"].sum() < result.data["looks"].sum()
    assert np.isnan(result.data["accuracy"].values[half == "choose"]).all()
    assert np.isfinite(result.data["accuracy"].values[half == "report"]).all()
    assert result.data["run"].values.tolist() == ["whole", "selected", "random 1", "random 2"]
    assert int(result.scores()["n"].max()) == 6


def test_the_probe_learns_from_the_choosing_half_alone():
    """Where that half's labels mean nothing, nothing is told on the other."""
    p, questions, rng = planted.relation(), said(32), np.random.default_rng(0)
    choose, report = np.arange(0, 32, 2), np.arange(1, 32, 2)
    mixed = list(questions)
    for q in choose.tolist():
        pairs = tuple(pair._replace(label=int(rng.integers(3))) for pair in questions[q].pairs)
        mixed[q] = replace(questions[q], pairs=pairs, across=())
    rows = looking.look(p.model, questions, 3, choose, None, None).rows
    for kept, low, high in ((questions, 0.65, 1.0), (mixed, 0.1, 0.5)):
        accuracy, _ = probed(p.model, kept, rows, 3, choose, report, {}, None, 0, None)
        assert np.isnan(accuracy[choose]).all() and low < accuracy[report, 0].mean() <= high


def test_cost_is_predicted(model, examples, every, result):
    size = workload(choose(model, examples, right=every))
    predicted = relating.cost(model.cfg, size, questions=12, depth=4, random_sets=2)
    assert predicted.token_forwards == pytest.approx(result.about["cost"]["token_forwards"], rel=0.15)
    assert relating.authors_cost(model.cfg, size, questions=12).forwards == 12


def test_demonstrations_in_front_change_no_position(model, examples):
    found = pcm.cot.relation_heads(model, examples, questions=8, shots=2, random_sets=1, level=0.9, least=-1.0, depth=4, seed=1)
    assert found.data["attention"].notnull().all() and float(found.data["attention"].max()) <= 1 + 1e-5
    assert len(found.ablation()) == 2


def test_it_shows_and_keeps_itself(result, tmp_path):
    assert {"related", "negated"} >= set(result.table(3)["relation"])
    result.plot(path=tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 5000
    result.save(tmp_path)
    assert str(type(result).load(tmp_path)) == str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": 5}, "questions: got 5"),
        ({"depth": 0}, "depth: got 0"),
        ({"kind": "resample"}, "kind: got 'resample'"),
        ({"heads": 0}, "heads: got 0"),
        ({"level": 1.5}, "level: got 1.5"),
    ],
)
def test_what_cannot_be_is_said(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        pcm.cot.relation_heads(model, **arguments)
