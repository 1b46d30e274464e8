"""Grading by teacher forcing, on predictors whose every mistake is known."""

import pytest
import torch

from pycotmech.cot import Graded, graded, make_examples, select


@pytest.fixture(scope="module")
def examples(smollm2):
    return make_examples(6, tokenizer=smollm2, shots=1)


def gold(ids):
    """Predicts what follows; the last position, of which nothing is known, gets -1."""
    return torch.cat([ids[1:], ids.new_tensor([-1])])


def wrong_at(examples, mistakes):
    """Gold, but for these (example, position) in the full text."""
    by_text = {tuple(e.full_ids.tolist()): i for i, e in enumerate(examples)}

    def predict(ids):
        out = gold(ids)
        for example, position in mistakes:
            if by_text.get(tuple(ids.tolist())) == example:
                out[position - 1] = -7
        return out

    return predict


def test_gold_is_right_everywhere(examples):
    result = graded(examples, gold)
    assert result.right.shape == (6, 10) and result.right.all() and result.label_right.all()
    assert result.share.tolist() == [1.0] * 10 and result.all_right.all()
    assert graded(examples, gold, side="corrupted").right.all()


def test_a_mistake_counts_for_its_word_only(examples):
    """First and last token of words, the label, and tokens that belong to no word of a step."""
    spans = [[step.answer_span for step in e.steps] for e in examples]
    long = [(e, s) for e in range(6) for s in range(10) if spans[e][s].stop - spans[e][s].start > 1]
    assert long
    (e0, s0), (e1, s1) = long[0], long[-1]
    mistakes = [
        (e0, spans[e0][s0].stop - 1),
        (e1, spans[e1][s1].start),
        (4, spans[4][9].start),
        (2, examples[2].label_span.start),
        (3, spans[3][0].stop),
        (3, spans[3][0].start - 1),
    ]
    result = graded(examples, wrong_at(examples, mistakes))
    expected = torch.ones(6, 10, dtype=torch.bool)
    expected[e0, s0] = expected[e1, s1] = expected[4, 9] = False
    assert torch.equal(result.right, expected)
    assert result.label_right.tolist() == [True, True, False, True, True, True]
    assert result.share[9].item() == expected[:, 9].double().mean().item()
    assert torch.equal(result.all_right, expected.all(1))


def test_predicting_the_position_itself_is_not_right(examples):
    """An off-by-one in the reading position would pass with this predictor."""
    assert not graded(examples, lambda ids: ids.clone()).right.any()


def test_corrupted_grades_the_other_word(examples):
    """A predictor that follows the premises of the prompt it sees: right on both sides; one that always gives the clean
    solution: right on none of the corrupted prompts."""
    result = graded(examples[:2], gold, side="corrupted")
    assert result.side == "corrupted" and result.label_right is None and result.right.all()

    answers = [step for e in examples[:2] for step in e.steps]
    calls = iter(answers)

    def clean_solution(ids):
        step = next(calls)
        assert torch.equal(ids[: len(step.clean)], step.corrupted)
        out = gold(ids)
        out[step.answer_span.start - 1 : step.answer_span.stop - 1] = torch.tensor(step.answer_tokens)
        return out

    assert not graded(examples[:2], clean_solution, side="corrupted").right.any()


def test_table_and_text(examples):
    result = graded(examples, wrong_at(examples, [(1, examples[1].steps[5].answer_span.start)]))
    table = result.to_dataframe()
    assert table["right"].tolist() == [6, 6, 6, 6, 6, 5, 6, 6, 6, 6]
    assert table["share"][5] == pytest.approx(5 / 6) and table["kind"].tolist() == list(examples.kinds)
    by_kind = result.by_kind()
    assert by_kind == {"decision": 1.0, "copying": 1.0, "induction": pytest.approx(11 / 12)}
    text = str(result)
    assert "   5  induction   83.3%" in text and "True or False   100.0%" in text and "n = 6" in text


def test_select(examples):
    mistakes = [(1, examples[1].steps[5].answer_span.start), (4, examples[4].steps[0].answer_span.start)]
    result = graded(examples, wrong_at(examples, mistakes))
    assert [e.index for e in select(examples, result, step=5)] == [0, 2, 3, 4, 5]
    assert [e.index for e in select(examples, result)] == [0, 2, 3, 5]
    assert [e.index for e in select(examples, result.right, n=2)] == [0, 2]
    assert select(examples, result, n=0).few_shot == examples.few_shot
    assert len(select(examples, torch.zeros(6, 10, dtype=torch.bool), step=3)) == 0


def test_errors(examples, smollm2):
    with pytest.raises(ValueError, match="examples must not be empty"):
        graded(examples[:0], gold)
    with pytest.raises(ValueError, match="side: got 'both'; expected one of clean, corrupted"):
        graded(examples, gold, side="both")
    with pytest.raises(TypeError, match="predict must return a tensor, got list"):
        graded(examples, lambda ids: ids.tolist())
    for bad in (lambda ids: ids[1:], lambda ids: ids.float(), lambda ids: ids > 0):
        with pytest.raises(ValueError, match="predict must return the arg-max next token"):
            graded(examples, bad)
    with pytest.raises(TypeError, match="right must be Graded or a bool tensor"):
        select(examples, torch.ones(6, 10))
    with pytest.raises(ValueError, match=r"right must be \[6, 10\] for these examples, got \(6, 9\)"):
        select(examples, torch.ones(6, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match="step must be in"):
        select(examples, torch.ones(6, 10, dtype=torch.bool), step=10)
    with pytest.raises(ValueError, match="n must not be negative"):
        select(examples, torch.ones(6, 10, dtype=torch.bool), n=-1)
    with pytest.raises(ValueError, match="one number of steps"):
        other = make_examples(1, tokenizer=smollm2, hops=1, shots=1)
        graded([examples[0], other[0]], gold)


def test_real_model_solves_its_task(tiny_cot, tiny_cot_path):
    """tiny-cot was trained on this task: with its BOS, nearly all steps are right; the generator's format is the model's."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_cot_path).eval()

    @torch.no_grad()
    def predict(ids):
        return model(ids[None]).logits[0].argmax(-1)

    for style in ("every", "paper"):
        examples = make_examples(12, tokenizer=tiny_cot, bos=True, style=style, shots=0)
        result = graded(examples, predict)
        assert isinstance(result, Graded) and result.share.min() >= 0.8, str(result)
        # It answers the counterfactual with the counterfactual's word: the corrupted premises are what it follows.
        corrupted = graded(examples[:2], predict, side="corrupted")
        assert corrupted.share.mean() >= 0.9, str(corrupted)
