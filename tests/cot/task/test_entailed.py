"""Questions of words that only entailment relates: what follows from the text, and what twins have in common."""

import re

import numpy as np
import pytest

from pycotmech.cot import make_examples
from pycotmech.cot.task.entailed import ENTAILED, make_entailed
from pycotmech.cot.task.pools import TooFewWords

SENTENCE = re.compile(r"Every (\w+) is an? (\w+)\.")


def follows(text: str) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """The pairs that a text says and those that follow from it, whatever the number of steps: a parser of its own."""
    said = set(SENTENCE.findall(text))
    known = set(said)
    while more := {(a, d) for a, b in known for c, d in said if b == c} - known:
        known |= more
    return said, known


@pytest.mark.parametrize("hops", [3, 4])
def test_pairs_follow_or_not_and_no_sentence_says_so(smollm2, hops):
    for question in make_entailed(12, tokenizer=smollm2, hops=hops, seed=1):
        said, known = follows(question.text)
        assert len(question.pairs) == 8 * (hops - 2) and len(question.stated) == 4
        for pair in question.pairs:
            assert (pair.words in known) == (ENTAILED[pair.label] == "entailed")
            assert pair.words not in said
        for pair in question.stated:
            assert (pair.words in said) == (pair.label == 0) and (pair.words in known) == (pair.label == 0)
        for pair in (*question.pairs, *question.stated):
            for span, word in zip((pair.first, pair.second), pair.words, strict=True):
                assert smollm2.decode(question.tokens[span]).strip() == word


@pytest.mark.parametrize("style", ["every", "paper"])
def test_the_questions_of_a_unit_differ_in_the_class_and_some_subjects_alone(smollm2, style):
    made = make_entailed(20, tokenizer=smollm2, style=style, seed=2)
    assert [q.unit for q in made] == [i // 4 for i in range(20)]
    for i in range(0, 20, 4):
        unit = made[i : i + 4]
        for kind in ("pairs", "stated"):
            found = [getattr(q, kind) for q in unit]
            places = [[(p.words, p.first, p.second) for p in pairs] for pairs in found]
            assert all(p == places[0] for p in places)
            labels = np.array([[p.label for p in pairs] for pairs in found])
            assert (labels.mean(0) == 0.5).all() and (labels.mean(1) == 0.5).all()
        entailed, stated = (np.array([getattr(q, k)[0].label for q in unit]) for k in ("pairs", "stated"))
        assert (entailed == stated).mean() == 0.5  # which sentence the last one continues says nothing of the chain
        assert len({len(q.tokens) for q in unit}) == 1 and len({q.text for q in unit}) == 4
        around = [[q.tokens[p.second.start - 1 : p.second.stop + 1].tolist() for p in q.pairs] for q in unit]
        assert all(a == around[0] for a in around)


def test_the_sentence_of_the_first_word_says_nothing_of_its_place(smollm2):
    """The first word's sentence and that of the next hop come in any order: their places do not tell the chain."""
    made = make_entailed(400, tokenizer=smollm2, seed=3)[::4]
    crossed = 0
    for question in made:
        order = [pair for pair in SENTENCE.findall(question.text)][:4]
        subjects = {a for a, _ in order}
        firsts = [s for s in order if s[0] not in {b for _, b in order}]
        seconds = [s for s in order if s not in firsts]
        assert len(subjects) == 4 and len(firsts) == len(seconds) == 2
        crossed += firsts[0][1] != seconds[0][0]
    assert 0.35 < crossed / len(made) < 0.65


def test_demonstrations_stand_before_and_share_no_word(smollm2):
    examples = make_examples(2, shots=3, tokenizer=smollm2, bos=False, seed=5)
    for question in make_entailed(4, tokenizer=smollm2, examples=examples, shots=3):
        n = len(examples.shared_ids)
        assert question.tokens[:n].tolist() == examples.shared_ids.tolist()
        assert all(p.first.start >= n for p in question.pairs)
        assert not any(w in examples.few_shot for p in question.pairs for w in p.words)


def test_questions_depend_on_the_seed_alone(tiny_cot):
    a, b = (make_entailed(n, tokenizer=tiny_cot, seed=7) for n in (4, 8))
    assert [q.text for q in a] == [q.text for q in b[:4]] and [q.pairs for q in a] == [q.pairs for q in b[:4]]
    assert make_entailed(4, tokenizer=tiny_cot, seed=8)[0].text != a[0].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 6}, "n: got 6; expected a multiple of 4"),
        ({"n": 0}, "n: got 0"),
        ({"hops": 2}, "hops: got 2; expected 3 or more"),
    ],
)
def test_what_cannot_be_is_said(tiny_cot, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_entailed(**{"n": 4, "tokenizer": tiny_cot, **arguments})


def test_too_few_words_are_an_error(tiny_cot):
    with pytest.raises(TooFewWords, match="leaves"):
        make_entailed(4, tokenizer=tiny_cot, ontology="false")
