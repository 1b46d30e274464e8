"""E12: which layers may be corrupted without changing what is generated."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import decision_horizon as module
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import workload
from tests.cot.analyses.interval_cases import keeps_its_ranges, tells
from tests.reference.truth import hooked, logits_of, z_of


@pytest.fixture(scope="module")
def result(model, examples, every):
    return pcm.cot.decision_horizon(model, examples, right=every)


def generate(hf, a, b, layer, new):
    """Both prompts as a whole for every token; z of the layer in all heads is the other question's."""
    text = []
    for _ in range(new):
        handles = []
        if layer is not None:
            z = z_of(hf, b)[layer].flatten(-2)[None]
            handles = [hf.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(lambda _m, args, z=z: (z,))]
        with hooked(*handles):
            text.append(logits_of(hf, a, keep=1)[0].argmax()[None])
        a, b = torch.cat((a, text[-1])), torch.cat((b, text[-1]))
    return torch.cat(text)


def test_texts_are_those_of_the_obvious_way(model, examples, result):
    for e, h in ((0, 0), (2, 2)):
        example = examples[e]
        begin = next(
            b
            for b in module.beginnings(choose(model, examples, right=torch.ones(3, 10, dtype=bool)), model.tokenizer)
            if (b.e, b.sentences) == (e, h)
        )
        a, b = example.full_ids[: begin.length], module.other_question(example)[: begin.length]
        gold = example.full_ids[begin.length :]
        clean = generate(model.hf, a, b, None, len(gold))
        here = result.data.isel(example=e).sel(sentences=h)
        assert float(here["clean_gold"]) == float((clean == gold).all())
        for l in range(4) if h else (2,):  # without a sentence to begin with there is most to write
            text = generate(model.hf, a, b, l, len(gold))
            same = (text == clean).long()
            assert float(here["same"][l]) == float(same.all())
            assert float(here["agreement"][l]) == pytest.approx(float(same.cumprod(0).double().mean()))
            words = model.tokenizer.decode(text).split()
            whole = model.tokenizer.decode(gold)
            assert float(here["words"][l]) == pytest.approx(np.mean([w in whole for w in words]))
        swapped = generate(model.hf, b, b, None, len(gold))
        assert float(here["swapped"]) == pytest.approx(float((swapped == clean).long().cumprod(0).double().mean()))


@pytest.mark.parametrize("style", ["every", "paper"])
def test_the_workload_counts_the_beginnings(model, style):
    made = pcm.cot.make_examples(3, shots=1, style=style, tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4)
    right = torch.ones(3, 10, dtype=torch.bool)
    right[1, [0, 6]] = False
    cells = choose(model, made, right=right)
    begun, size = module.beginnings(cells, model.tokenizer), workload(cells)
    assert size.beginnings == len(begun) == {"every": 7, "paper": 13}[style]
    assert size.left == pytest.approx(np.mean([len(b.example.full_ids) - b.length for b in begun]))


def test_the_other_question_is_consistent(examples):
    for example in examples:
        other = module.other_question(example)
        question = example.segments["question"]
        changed = (other != example.full_ids).nonzero().flatten().tolist()
        assert changed and all(question.start <= p < question.stop for p in changed)
        # Every place of one word is replaced by one word, and different words by different ones.
        pairs = {(int(example.full_ids[p]), int(other[p])) for p in changed}
        assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
        left = {int(t) for t in example.full_ids[question.start : question.stop]} - {a for a, _ in pairs}
        assert not {b for _, b in pairs} & left


def test_the_same_question_changes_nothing(model, examples, every, monkeypatch):
    """docs/protocol.md, Checks: noise = clean gives identical text at every layer."""
    monkeypatch.setattr(module, "other_question", lambda example: example.full_ids)
    found = pcm.cot.decision_horizon(model, examples, right=every)
    assert (found.data["same"] == 1).all() and (found.data["swapped"] == 1).all()
    assert found.horizon() == {0: 0, 1: 0, 2: 0}


def test_memory_cuts_change_nothing(model, examples, every, result):
    small = pcm.cot.decision_horizon(model, examples, right=every, memory_gb=0.01)
    np.testing.assert_array_equal(small.data["agreement"].values, result.data["agreement"].values)


def test_the_authors_measure():
    assert module.substring_share("Max is a cat", "Max is a lempus.") == 0.75
    assert module.substring_share("a a a", "a") == 1.0 and module.substring_share("", "a") == 0.0


def test_horizon_is_the_last_layer_that_matters(result):
    data = result.data.copy(deep=True)
    data["same"][:] = np.array([1.0, 0.0, 1.0, 1.0])
    assert type(result)(data, result.about).horizon() == {0: 2, 1: 2, 2: 2}
    data["same"][:] = np.array([1.0, 1.0, 1.0, 0.5])
    assert type(result)(data, result.about).horizon(share=0.9) == {0: None, 1: None, 2: None}
    assert type(result)(data, result.about).horizon(share=0.5) == {0: 0, 1: 0, 2: 0}


def test_layers_are_chosen_on_one_half_and_reported_on_the_other(result):
    data = result.data.isel(example=[0, 1, 2, 0, 1, 2]).assign_coords(example=range(6)).copy(deep=True)
    made = type(result)(data, result.about)
    parts = made.apart(np.ones(6, bool))
    data["same"][:] = np.array([1.0, 0.5, 1.0, 1.0])
    data["same"].loc[{"example": parts.reporting.data["example"].values}] = np.array([0.0, 0.5, 1.0, 0.0])
    line = made.findings()[0]
    assert "n = 3 held out: corrupted in any one layer from 2 of 4 on, 50% [13%, 87%]" in line
    assert "layer 1 does most harm (50% [13%, 87%] stay the same)" in line


def test_it_shows_itself_and_its_cost(model, examples, every, result, tmp_path):
    assert len(result.table()) == 12 and "after 0 sentences, n = 2 held out" in str(result)
    keeps_its_ranges(result)
    data = result.data.copy(deep=True)
    data["agreement"][:, 1, 2], data["gold"][:, 1, 2], data["words"][:, 1, 2] = [0.2, 0.9, 1.0], [0, 1, 1], [0.5, 0.6, 0.9]
    row = type(result)(data, result.about).table().set_index(["sentences", "layer"]).loc[(int(data["sentences"][1]), 2)]
    for name in ("agreement", "gold", "words"):
        tells(row, name, data[name].values[:, 1, 2], (0, 1))
    result.plot(path=tmp_path / "horizon.png")
    assert (tmp_path / "horizon.png").stat().st_size > 10_000
    predicted = module.cost(model.cfg, workload(choose(model, examples, right=every)))
    assert predicted.token_forwards == pytest.approx(result.about["cost"]["token_forwards"], rel=0.15)
    with pytest.raises(ValueError, match="max_new: got 0"):
        pcm.cot.decision_horizon(model, examples, max_new=0)
    with pytest.raises(ValueError, match=r"steps: none of \[9\]"):
        pcm.cot.decision_horizon(model, examples, steps=[9], right=every)


def test_examples_that_replace_one_word_are_refused(model, every, monkeypatch):
    single = pcm.cot.make_examples(
        3, shots=1, style="paper", definition="paper", tokenizer=model.tokenizer, bos=model.prepend_bos, seed=4
    )
    monkeypatch.setattr(module, "choose", lambda *a, **k: pytest.fail("something was run"))
    with pytest.raises(ValueError, match=r"examples: made with definition='paper'.* the other question is put together"):
        pcm.cot.decision_horizon(model, single, right=every)
