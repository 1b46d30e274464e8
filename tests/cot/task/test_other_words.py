"""The other words of a question: which there are, where they stand, which token they would have in the answer's place."""

import pytest

import pycotmech as pcm
from pycotmech.cot.task.other_words import OtherWord, OtherWords, beside
from pycotmech.cot.task.tokens import Encoder
from pycotmech.cot.task.vocabulary import ENTITIES, PROPERTIES

NAMES = {w.singular for w in ENTITIES}
QUALITIES = {w.singular for w in PROPERTIES}


def kind(word):
    return "entity" if word in NAMES else "property" if word in QUALITIES else "concept"


@pytest.fixture(scope="module", params=[{}, {"style": "paper"}, {"distractors": 3}, {"hops": 3}], ids=str)
def made(request, smollm2):
    return pcm.cot.make_examples(2, shots=2, tokenizer=smollm2, bos=False, seed=4, **request.param)


def test_all_words_of_the_question_but_the_answer_are_found_where_they_stand(made, smollm2):
    found = OtherWords(made, smollm2)
    for example in made:
        for step in example.steps:
            others = found.of(example, step)
            text = step.text[len(made.few_shot) :].lower()
            stand = {w for w in example.words.values() if w.lower() in text}
            assert {o.word for o in others} == stand - {step.replaced[0]}
            for other in others:
                assert other.competes == (kind(other.word) == kind(step.replaced[0]))
                assert len(other.spans) == text.count(other.word.lower())
                for span in other.spans:
                    assert made.shared_ids.numel() <= span.start and span.stop <= len(step.clean)
                    assert smollm2.decode(step.clean[span]).strip().lower().startswith(other.word.lower())


def test_a_competitor_has_the_token_it_would_have_in_the_answers_place(made, smollm2):
    found, encoder = OtherWords(made, smollm2), Encoder(smollm2, False)
    for example in made:
        for step in example.steps:
            for other in (o for o in found.of(example, step) if o.competes):
                tail = example.full_text[len(step.text) :]
                start = len(step.text) + tail.index(step.answer_word)
                plural = step.answer_word.lower() != step.replaced[0].lower()
                written = other.word + ("es" if plural else "")
                written = written.capitalize() if step.answer_word[0].isupper() else written
                changed = encoder(example.full_text[:start] + written + example.full_text[start + len(step.answer_word) :])
                assert changed.ids[: len(step.clean)] == step.clean.tolist()
                assert changed.ids[len(step.clean)] == other.token != step.answer


def test_easy_questions_have_no_other_entity_and_distractors_bring_one(smollm2):
    for distractors, expected in ((0, 0), (3, 1)):
        made = pcm.cot.make_examples(1, shots=1, tokenizer=smollm2, bos=False, distractors=distractors)
        found = OtherWords(made, smollm2)
        assert [sum(o.competes for o in found.of(made[0], made[0].steps[s])) for s in (0, 4, 8)] == [expected] * 3


def test_without_the_examples_tokenizer_nothing_is_found(made, smollm2):
    tiny = pcm.Model.from_pretrained("tiny-cot").tokenizer
    for tokenizer in (None, tiny):
        assert OtherWords(made, tokenizer).of(made[0], made[0].steps[5]) == ()


def test_places_beside_are_the_nearest_ones_of_the_same_kind_first_and_each_once():
    rival = OtherWord("rival", 7, (slice(2, 3), slice(20, 21)))
    name = OtherWord("name", None, (slice(9, 10), slice(12, 13)))
    assert beside([slice(10, 11), slice(11, 12)], [rival, name], range(0, 15)) == [slice(2, 3), slice(12, 13)]
    assert beside([slice(10, 11)], [rival, name], range(5, 15)) == [slice(9, 10)]
    assert beside([slice(18, 19)], [name], range(15, 30)) == []
