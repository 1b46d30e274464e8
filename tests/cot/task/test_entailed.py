"""Questions of words that only entailment relates: what follows from the text, and what twins have in common."""

import re

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


@pytest.mark.parametrize(("hops", "chains"), [(3, 2), (3, 3), (4, 2)])
def test_pairs_follow_or_not_and_no_sentence_says_so(smollm2, hops, chains):
    for question in make_entailed(12, tokenizer=smollm2, hops=hops, chains=chains, seed=1):
        said, known = follows(question.text)
        assert len(question.pairs) == 2 * chains * 2 * (hops - 2) and len(question.stated) == 2 * chains
        for pair in question.pairs:
            assert (pair.words in known) == (ENTAILED[pair.label] == "entailed")
            assert pair.words not in said
        for pair in question.stated:
            assert (pair.words in said) == (pair.label == 0) and (pair.words in known) == (pair.label == 0)
        for pair in (*question.pairs, *question.stated):
            for span, word in zip((pair.first, pair.second), pair.words, strict=True):
                assert smollm2.decode(question.tokens[span]).strip() == word


@pytest.mark.parametrize("style", ["every", "paper"])
def test_twins_differ_in_the_class_and_the_last_subjects_alone(smollm2, style):
    made = make_entailed(20, tokenizer=smollm2, style=style, seed=2)
    for a, b in zip(made[::2], made[1::2], strict=True):
        assert a.unit == b.unit
        for kind in ("pairs", "stated"):
            ours, theirs = getattr(a, kind), getattr(b, kind)
            assert [(p.words, p.first, p.second) for p in ours] == [(p.words, p.first, p.second) for p in theirs]
            assert [p.label for p in ours] == [1 - p.label for p in theirs]
            assert sum(p.label for p in ours) * 2 == len(ours)
        differ = (a.tokens != b.tokens).nonzero().flatten().tolist() if len(a.tokens) == len(b.tokens) else None
        first, last = max(p.first.stop for p in a.stated), max(p.second.start for p in a.pairs)
        assert differ and first <= min(differ) and max(differ) < last
    assert len({q.unit for q in made}) == 10


def test_the_sentence_of_the_first_word_says_nothing_of_its_place(smollm2):
    """The first word's sentence and that of the next hop come in any order: their places do not tell the chain."""
    made = make_entailed(400, tokenizer=smollm2, seed=3)[::2]
    crossed = 0
    for question in made:
        order = [pair for pair in SENTENCE.findall(question.text)][:4]
        subjects = {a for a, _ in order}
        firsts = [s for s in order if s[0] not in {b for _, b in order}]
        seconds = [s for s in order if s not in firsts]
        assert len(subjects) == 4 and len(firsts) == len(seconds) == 2
        crossed += firsts[0][1] != seconds[0][0]
    assert 0.4 < crossed / len(made) < 0.6


def test_demonstrations_stand_before_and_share_no_word(smollm2):
    examples = make_examples(2, shots=3, tokenizer=smollm2, bos=False, seed=5)
    for question in make_entailed(4, tokenizer=smollm2, examples=examples, shots=3):
        n = len(examples.shared_ids)
        assert question.tokens[:n].tolist() == examples.shared_ids.tolist()
        assert all(p.first.start >= n for p in question.pairs)
        assert not any(w in examples.few_shot for p in question.pairs for w in p.words)


def test_questions_depend_on_the_seed_alone(tiny_cot):
    a, b = (make_entailed(n, tokenizer=tiny_cot, seed=7) for n in (4, 6))
    assert [q.text for q in a] == [q.text for q in b[:4]] and [q.pairs for q in a] == [q.pairs for q in b[:4]]
    assert make_entailed(2, tokenizer=tiny_cot, seed=8)[0].text != a[0].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 3}, "n: got 3; expected an even number"),
        ({"n": 0}, "n: got 0"),
        ({"hops": 2}, "hops: got 2; expected an integer of at least 3"),
        ({"chains": 1}, "chains: got 1"),
    ],
)
def test_what_cannot_be_is_said(tiny_cot, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_entailed(**{"n": 2, "tokenizer": tiny_cot, **arguments})


def test_too_few_words_are_an_error(tiny_cot):
    with pytest.raises(TooFewWords, match="leaves"):
        make_entailed(2, tokenizer=tiny_cot, ontology="false")
