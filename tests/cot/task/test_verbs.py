"""Other verbs take the place of "is" and "are", and nothing else moves."""

import re
from dataclasses import replace

import pytest

from pycotmech.cot.task.relations import make_questions
from pycotmech.cot.task.verbs import reworded


@pytest.mark.parametrize("style", ["every", "paper"])
@pytest.mark.parametrize("n", [1, 2])
def test_every_other_token_keeps_its_place(smollm2, style, n):
    questions = make_questions(6, tokenizer=smollm2, style=style)
    names, others = reworded(questions, tokenizer=smollm2, n=n)
    assert names == ("fears", "sees")[:n]
    for question, rows in zip(questions, others, strict=True):
        assert len(rows) == n
        for verb, row in zip((("fears", "fear"), ("sees", "see")), rows):
            said = smollm2.decode(row)
            begin = min(p.first.stop for p in (*question.pairs, *question.across))
            head = smollm2.decode(question.tokens[:begin])
            tail = question.text[len(head) :]
            assert said == head + re.sub(r" is\b", f" {verb[0]}", re.sub(r" are\b", f" {verb[1]}", tail))
            changed = (row != question.tokens).nonzero().flatten().tolist()
            assert changed and not {p for pair in question.pairs for w in pair[1:3] for p in range(w.start, w.stop)} & set(
                changed
            )


def test_words_that_a_small_vocabulary_has(tiny_cot):
    questions = make_questions(3, tokenizer=tiny_cot, bos=True)
    names, others = reworded(questions, tokenizer=tiny_cot, bos=True)
    assert names == ("think", "by") and all(tiny_cot.unk_token_id not in row for rows in others for row in rows)


def test_what_cannot_be_is_said(tiny_cot, sentencepiece_like):
    questions = make_questions(3, tokenizer=tiny_cot, bos=True)
    with pytest.raises(ValueError, match=r"questions\[0\]: its tokens are not those of its text"):
        reworded([replace(q, text="") for q in questions], tokenizer=tiny_cot, bos=True)
    with pytest.raises(ValueError, match=r"questions\[0\]: its tokens are not those of its text"):
        reworded(questions, tokenizer=tiny_cot, bos=False)
