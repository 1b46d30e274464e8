"""Finds the other words of a question: those that occur in the prompt and could stand in the answer's place.

A head that writes any word of the prompt writes the answer too. Another word of the same prompt shows the difference. The
counterfactual's word does not, because it does not occur in the prompt, and few heads write what they cannot see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from pycotmech.cot.task.tokens import Encoded, Encoder
from pycotmech.cot.task.vocabulary import ENTITIES, PROPERTIES, Word, concepts

if TYPE_CHECKING:
    from pycotmech.cot.task.examples import Example, Examples, Step


@dataclass(frozen=True)
class OtherWord:
    """A word of the question that is not the answer of a step.

    word: as in the vocabulary. token: the first token that it would have in the answer's place, in the answer's number and
    case; None if it is of another kind than the answer (entity, concept, property) and so could not stand there.
    spans: where it stands in the step's clean prompt after the demonstrations: slices of positions, at least one.
    """

    word: str
    token: int | None
    spans: tuple[slice, ...]

    @property
    def competes(self) -> bool:
        """Whether it could stand in the answer's place: it is of the same kind."""
        return self.token is not None


class OtherWords:
    """Finds the other words of examples. Without a tokenizer, or with one that is not the examples' own, it finds none."""

    def __init__(self, examples: Examples, tokenizer) -> None:
        self.few_shot = len(examples.few_shot)
        self.encoder = None if tokenizer is None else Encoder(tokenizer, examples.bos)
        self._texts: dict[int, Encoded | None] = {}

    def of(self, example: Example, step: Step) -> tuple[OtherWord, ...]:
        """Returns the words of the question, except the answer, that occur in the step's clean prompt, in the order of their
        roles (`Example.words`).

        An easy question of two hops has one other concept for each concept, another property if the query asks for a wrong one,
        and no other entity; distractors add these. Cost: one tokenisation of the text for each example, and of its last
        sentences for each competing word.
        """
        text = self._text(example)
        if text is None or self.encoder is None:
            return ()
        answer = _words().get(step.replaced[0])
        found = []
        for name in dict.fromkeys(example.words.values()):
            word = _words().get(name)
            if word is None or name == step.replaced[0]:
                continue
            spans = self._spans(text, word, len(step.text))
            if spans:
                token = self._token(example, step, answer, word) if answer is not None else None
                found.append(OtherWord(name, token, spans))
        return tuple(found)

    def _text(self, example: Example) -> Encoded | None:
        if example.index not in self._texts:
            encoded = None if self.encoder is None else self.encoder(example.full_text)
            same = encoded is not None and encoded.ids == example.full_ids.tolist()
            self._texts[example.index] = encoded if same else None
        return self._texts[example.index]

    def _spans(self, text: Encoded, word: Word, end: int) -> tuple[slice, ...]:
        forms = "|".join(re.escape(form) for form in (word.plural, word.singular) if form)
        places = re.compile(rf"\b(?:{forms})\b", re.IGNORECASE).finditer(text.text, self.few_shot, end)
        return tuple(text.word(m.start(), m.end()) for m in places)

    def _token(self, example: Example, step: Step, answer: Word, word: Word) -> int | None:
        """Returns the first token of a word in the answer's place; None if it cannot stand there or has the answer's token."""
        written = _as(answer, step.answer_word, word)
        if written is None or self.encoder is None:
            return None
        text, begin = example.full_text, len(step.text)
        start = text.index(step.answer_word, begin)
        cut = max(text.rfind("\n", 0, begin), text.rfind(".", 0, begin)) + 1  # what is before changes no token of the word
        encoded = self.encoder(text[cut:start] + written + text[start + len(step.answer_word) :][:1])
        token = encoded.ids[encoded.word(start - cut, start - cut + len(written)).start]
        return token if token != step.answer else None


def beside(words: Sequence[slice], others: Sequence[OtherWord], among: range) -> list[slice]:
    """Returns, for each place of an answer's word in order, the nearest place of another word among these positions.

    Words that compete are taken first, then any other word. Each place is taken once, so there may be fewer places than words;
    ties go to the earlier place.
    """
    out: list[slice] = []
    for span in words:
        for candidates in ([o for o in others if o.competes], others):
            places = [
                s for o in candidates for s in o.spans if among.start <= s.start and s.stop <= among.stop and s not in out
            ]
            if places:
                out.append(min(places, key=lambda s: (abs(s.start - span.start), s.start)))
                break
    return out


@cache
def _words() -> dict[str, Word]:
    both = [*concepts("fictional"), *concepts("false")]
    return {w.singular: w for w in [*ENTITIES, *PROPERTIES, *(w for part in both for w in part)]}


def _as(answer: Word, answer_word: str, word: Word) -> str | None:
    """Returns a word in the answer's number and case; None if it is of another kind or has no such form."""
    if word.kind != answer.kind:
        return None
    for plural in (False, True):
        if plural and not (answer.plural and word.plural):
            continue
        for capital in (False, True):
            if answer.written(plural=plural, capital=capital) == answer_word:
                return word.written(plural=plural, capital=capital)
    return None
