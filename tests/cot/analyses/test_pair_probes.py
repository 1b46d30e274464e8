"""E9: probes on pairs of words, on planted models and on questions of the task."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import pair_probes as probing
from pycotmech.cot.task.relations import make_questions
from pycotmech.cot.tools import probe_tasks
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from pycotmech.cot.tools.probe_tasks import balanced_samples
from pycotmech.cot.tools.probes import macro_f1
from pycotmech.cot.tools.question_runs import Features
from pycotmech.stats import bootstrap
from tests.cot.analyses.interval_cases import keeps_its_ranges, tells
from tests.cot.analyses.relation_cases import apart_by_distance, chained, rooted, said
from tests.reference.close import assert_allclose
from tests.reference.planted import models as planted
from tests.reference.truth import activations

PAPER = {"definition": "paper", "piece": "last"}


@pytest.fixture(scope="module")
def result(model, examples):
    return pcm.cot.pair_probes(model, examples, questions=32, depths=[0, 2, 4])


@torch.no_grad()
def test_features_are_the_residual_streams_of_both_words(model, examples):
    """docs/protocol.md, F1, F2: the vectors at the words' own tokens (a BOS before them), one beside the other."""
    questions = make_questions(3, tokenizer=model.tokenizer, examples=examples, shots=2, seed=1)
    samples = [(q, p) for q in (2, 0) for p in questions[q].pairs]
    for piece in ("last", "first"):
        x = Features(model, questions, samples, [0, 1, 4], piece)
        for i, (q, p) in enumerate(samples):
            acts = activations(model.hf, questions[q].tokens)
            at = [p.first.stop - 1, p.second.stop - 1] if piece == "last" else [p.first.start, p.second.start]
            for word, position in zip(p.words, at, strict=True):
                assert model.tokenizer.decode(questions[q].tokens[position]).strip() == word
            for j, site in enumerate((("resid_pre", 0), ("resid_pre", 1), ("resid_post", 3))):
                want = [acts[site][k] for k in at]
                assert_allclose(x[j][i], torch.cat(want), atol=5e-4, rtol=1e-3)
                for side, vector in zip(x.sides(j), want, strict=True):
                    assert_allclose(side[i], vector, atol=5e-4, rtol=1e-3)


def silenced(p):
    """Heads that were not planted write nothing."""
    D = p.model.cfg.d_head
    for l, h in p.noise_heads:
        p.model.hf.model.layers[l].self_attn.o_proj.weight[:, h * D : (h + 1) * D] = 0
    return p


def test_a_planted_relation_is_read_from_its_layer_on():
    p = silenced(planted.relation(previous=(2, 0), relate=(3, 1), writer=(4, 1), n_layers=5))
    depths = [0, 2, 3, 5]
    found = pcm.cot.pair_probes(p.model, questions=said(48), depths=depths, **PAPER)
    mean = found.accuracy()["mean"]
    for probe in ("linear", "mlp"):
        curve = mean.sel(probe=probe).values
        assert (np.abs(curve[:2] - 1 / 3) < 0.12).all(), curve
        assert (curve[2:] > 0.9).all(), curve
        assert found.best(probe) >= 3
    low = found.accuracy()["low"].sel(probe="linear").values
    assert low[2:].min() > found.accuracy()["high"].sel(probe="linear").values[0]
    assert "at depth" in found.findings()[1]


def test_a_planted_chain_is_read_from_its_layer_on():
    """Words that no sentence relates: the model alone notes at the last word which one its chain has before."""
    found = pcm.cot.pair_probes(rooted(), questions=chained(100))
    curve = found.accuracy()["mean"].sel(probe="bilinear").values
    assert (np.abs(curve[:4] - 0.5) < 0.12).all() and (curve[4:] > 0.7).all(), curve
    assert found.choice() == ("bilinear", 4)
    assert all(gain.low > 0 for gain in found.gains().values())
    assert "encode more of the relation than surface" in found.conclusion()


def test_where_attention_writes_nothing_there_is_chance():
    p = planted.nothing(silent=True)
    found = pcm.cot.pair_probes(p.model, questions=said(48), depths=[0, 1, 4], **PAPER)
    assert (np.abs(found.accuracy()["mean"].values - 1 / 3) < 0.12).all()
    assert "no gain remains above surface" in found.conclusion()
    alone = pcm.cot.pair_probes(p.model, questions=chained(40))
    assert_allclose(alone.accuracy()["mean"], np.full((5, 1), 0.5), atol=1e-9)


def test_questions_of_a_unit_leave_surface_and_embedding_at_chance(result):
    for name in ("surface", "embedding"):
        assert_allclose(result.baselines()[name], np.full(3, 0.5), atol=1e-12)
    assert "surface 0.500 in each unit" in str(result)


def test_shuffled_labels_leave_chance():
    """docs/protocol.md, Checks."""
    p = planted.relation()
    mean = np.zeros((2, 1))
    for seed in range(4):  # three clear classes get three random names: by chance, some of them the right ones
        options = {**PAPER, "depths": [0, 4], "probe": "linear", "shuffled": True, "seed": seed}
        mean += pcm.cot.pair_probes(p.model, questions=said(48), **options).accuracy()["mean"].values / 4
    assert (np.abs(mean - 1 / 3) < 0.14).all()
    chain = pcm.cot.pair_probes(rooted(), questions=chained(100), depths=[4], shuffled=True)
    assert abs(float(chain.accuracy()["mean"].sel(depth=4, probe="bilinear")) - 0.5) < 0.15


def test_distance_tells_classes_that_differ_in_it_without_a_model():
    """The surface is a baseline as strong as the probe: where labels are distances, it is right and no gain remains."""
    model = planted.nothing().model
    found = pcm.cot.pair_probes(model, questions=apart_by_distance(48))
    assert found.data["surface"].mean() > 0.99
    assert found.gains()["embedding"].low > 0.2, "the probe reads the distance, which the words alone do not tell"
    assert "no gain remains above surface" in found.conclusion()


def test_what_is_held_out_are_training_questions_and_nothing_is_fitted_on_the_test(monkeypatch):
    """Penalty and stopping are chosen on questions that share none with those fitted; the surface hears nothing of the test."""
    p, questions, seen = planted.nothing(), said(30), []
    real = probe_tasks.fit_linear
    monkeypatch.setattr(probe_tasks, "fit_linear", lambda x, y, held, classes: seen.append(held) or real(x, y, held, classes))
    found = pcm.cot.pair_probes(p.model, questions=questions, depths=[0], probe="linear", **PAPER)
    part = found.data["part"].values
    train = balanced_samples([q.pairs for q in questions], np.flatnonzero(part != "test"), 0, 3)
    expected = np.array([part[q] == "held" for q, _ in train])
    assert len(seen) == 2 and all((held == expected).all() for held in seen) and 0 < expected.mean() < 0.4
    assert float(found.data["surface"].mean()) > 0.95  # the tokens around distinguish these pairs
    blind = pcm.cot.pair_probes(p.model, questions=questions, depths=[0], probe="linear", shuffled=True, **PAPER)
    assert float(blind.data["surface"].mean()) < 0.6


def test_no_unit_is_in_two_parts_and_classes_are_equal(result):
    """docs/protocol.md, F3, F4."""
    part, unit = result.data["part"].values, result.data["unit"].values
    assert all((part[i::4] == part[::4]).all() and (unit[i::4] == unit[::4]).all() for i in range(4))
    assert set(result.data["example"].values) == set(unit[part == "test"])
    assert (part == "test").sum() == 12 and 0 < (part == "held").sum() < 12
    by_class = result.data["confusion"].sum(("example", "predicted")).isel(depth=0, probe=0).values
    assert len(set(by_class)) == 1 and by_class[0] > 10
    questions = make_questions(8, tokenizer=pcm.Model.from_pretrained("tiny-cot").tokenizer)
    samples = balanced_samples([q.pairs for q in questions], np.arange(8), 0, 3)
    assert len({repr(sample) for sample in samples}) == len(samples)  # nothing twice


def test_numbers_are_those_of_the_counts(result):
    at = {"probe": "bilinear", "depth": 4}
    confusion = result.data["confusion"].sel(at).sum("example").values
    assert float(result.accuracy()["mean"].sel(at)) == pytest.approx(np.trace(confusion) / confusion.sum())
    f1 = [2 * confusion[c, c] / (confusion[c].sum() + confusion[:, c].sum()) for c in range(2)]
    assert float(result.f1()["mean"].sel(at)) == pytest.approx(np.mean(f1))
    assert float(result.f1()["low"].sel(at)) < np.mean(f1) < float(result.f1()["high"].sel(at))
    probe, depth = result.choice()
    assert depth == 2  # of 0, 2 and 4 of four layers, the only one of the lower two thirds after a layer
    here = result.data["confusion"].sel(probe=probe, depth=depth).values
    gain = np.trace(here, axis1=-2, axis2=-1) / here.sum((-2, -1)) - result.data["surface"].values
    assert float(result.gains()["surface"].mean) == pytest.approx(gain.mean())


def test_the_papers_classes_are_told_by_their_surface(model):
    """The three classes need no model, and the result says what they cannot show."""
    for unrelated in ("next", "matched"):
        found = pcm.cot.pair_probes(model, questions=36, unrelated=unrelated, depths=[0, 4], probe="linear", definition="paper")
        assert float(found.data["surface"].mean()) > 0.95
        assert "no accuracy on them shows that a model encodes the relation" in str(found)


def test_cost_is_predicted(model, examples, every, result):
    size = workload(choose(model, examples, right=every))
    predicted = probing.cost(model.cfg, size, questions=32)
    assert predicted.token_forwards == pytest.approx(result.about["cost"]["token_forwards"], rel=0.15)
    theirs = probing.authors_cost(model.cfg, size, questions=32, shots=2)
    assert theirs.forwards == 32 and theirs.token_forwards > predicted.token_forwards


def test_it_shows_and_keeps_itself(result, tmp_path):
    assert len(result.table()) == 3 and result.table()["n"].eq(3).all()
    keeps_its_ranges(result)
    row, at = result.table().iloc[2], {"probe": result.table()["probe"][2], "depth": result.table()["depth"][2]}
    for name in ("random", "stated"):
        tells(row, name, result.data[name].sel(at).values, (0, 1))
    counts = result.data["confusion"].sel(at).transpose("example", "label", "predicted").values
    f1 = [macro_f1(np.tensordot(w, counts, 1)) for w in bootstrap.resampled(3, draws=500)]
    mean, ends = macro_f1(counts.sum(0)), np.percentile(f1, [2.5, 97.5])
    expected = np.clip(mean + bootstrap.factor(3) * (ends - mean), 0, 1)
    assert [row.macro_f1, row.macro_f1_low, row.macro_f1_high] == pytest.approx([mean, *expected])
    assert "How two words are related" in str(result)
    result.plot(path=tmp_path / "probes.png")
    assert (tmp_path / "probes.png").stat().st_size > 5000
    result.save(tmp_path)
    assert str(type(result).load(tmp_path)) == str(result)


def test_the_papers_pairs(model, every, examples):
    found = pcm.cot.pair_probes(model, examples, questions=6, definition="paper", right=every, depths=[0], probe="linear")
    assert found.about["settings"]["piece"] == "first" and found.about["settings"]["unrelated"] == "next"
    assert found.data["label"].values.tolist() == ["related", "negated", "unrelated"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": 3}, "questions: got 3"),
        ({"depths": [9]}, r"depths: got \[9\]"),
        ({"probe": "svm"}, "probe: got 'svm'"),
        ({"piece": "middle"}, "piece: got 'middle'"),
        ({"definition": "theirs"}, "definition: got 'theirs'"),
        ({"unrelated": "next"}, "unrelated: got 'next'"),
        ({"components": 0}, "components: got 0"),
    ],
)
def test_what_cannot_be_is_said(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        pcm.cot.pair_probes(model, **arguments)
    with pytest.raises(TypeError, match="examples: got list"):
        pcm.cot.pair_probes(model, [])
