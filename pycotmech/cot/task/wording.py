"""Sentences of the task, as pieces: fixed text and slots for words.

A prompt is kept as pieces until the end, so that a counterfactual is the same pieces with one word exchanged: every
occurrence changes at once, with its case and number, and nothing else can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pycotmech.cot.task.vocabulary import Word

Style = Literal["every", "paper", "each", "all"]
Order = Literal["forward", "backward", "membership_first", "shuffled"]

DEFAULT_ORDER: dict[str, Order] = {
    "every": "membership_first",
    "paper": "backward",
    "each": "membership_first",
    "all": "membership_first",
}
"""All styles but the authors': the order in which the steps use the premises, in which small models bind the first concept
best."""


class Slot(NamedTuple):
    """A place for a word. `key` names the word's role: E, C1..Ch, p, q; those of distractors start with x."""

    key: str
    plural: bool = False
    capital: bool = False


Piece = str | Slot
Pieces = list[Piece]
Words = Mapping[str, Word]


class Occurrence(NamedTuple):
    """A slot after rendering: characters [start, stop) of the text."""

    slot: Slot
    start: int
    stop: int


class Rule(NamedTuple):
    """Every a is b: b is a concept, or the property that ends a chain. `plural` is the number, used by style "paper" alone.
    negated: every a is not b."""

    a: str
    b: str
    plural: bool
    negated: bool = False


class Membership(NamedTuple):
    entity: str
    concept: str


Premise = Rule | Membership


@dataclass(frozen=True)
class Item:
    """One problem with its solution, before words are put in.

    question: the premises. query: "True or false: ...". chain: the solution without its last word. label: that word.
    """

    question: tuple[Piece, ...]
    query: tuple[Piece, ...]
    chain: tuple[Piece, ...]
    label: bool


def render(pieces: Sequence[Piece], words: Words, at: int = 0) -> tuple[str, list[Occurrence]]:
    """The text of the pieces, and where its slots lie when the text begins at character `at`."""
    text, found = [], []
    for piece in pieces:
        if isinstance(piece, Slot):
            written = words[piece.key].written(plural=piece.plural, capital=piece.capital)
            found.append(Occurrence(piece, at, at + len(written)))
            piece = written
        text.append(piece)
        at += len(piece)
    return "".join(text), found


# The text around question and query; `joint` is between the prompt and the first word of the chain.
class Frame(NamedTuple):
    head: str
    tail: str
    joint: str
    end: str


FRAMES: dict[str, Frame] = {
    "every": Frame("", " Answer:", " ", "\n"),
    "paper": Frame("### Input:\n", " Let us think step by step.\n### Response:\n", "", "\n\n"),
    "each": Frame("Facts: ", " Reasoning:", " ", "\n"),
    "all": Frame("", " Solution:", " ", "\n"),
}
QUANTIFIERS: dict[str, str] = {"every": "every", "each": "each", "all": "all"}
"""Styles that say of how many a rule is, and the word for it. They write articles as well; the authors' style does not."""
REASONS: dict[str, str] = {"every": "Since", "each": "Because", "all": "As"}
"""The word before a rule in the solution, where rule and conclusion are one sentence."""


def _is_property(words: Words, key: str) -> bool:
    return words[key].kind == "property"


def _rule(style: Style, words: Words, rule: Rule, *, inner: bool = False) -> Pieces:
    a, b, plural, negated = rule
    no = "not " if negated else ""
    if style == "paper":
        plural_b = plural and not _is_property(words, b)
        return [Slot(a, plural, True), f" are {no}" if plural else f" is {no}", Slot(b, plural_b)]
    quantifier = QUANTIFIERS[style] if inner else QUANTIFIERS[style].capitalize()
    if style == "all":
        return [f"{quantifier} ", Slot(a, True), f" are {no}", Slot(b, not _is_property(words, b))]
    article = "" if _is_property(words, b) else words[b].article + " "
    return [f"{quantifier} ", Slot(a), f" is {no}{article}", Slot(b)]


def _is(style: Style, words: Words, entity: str, what: str) -> Pieces:
    article = "" if style == "paper" or _is_property(words, what) else words[what].article + " "
    return [Slot(entity), f" is {article}", Slot(what)]


def sentence(style: Style, words: Words, premise: Premise) -> Pieces:
    """One premise without its full stop; its slots are the subject and what is said of it."""
    if isinstance(premise, Membership):
        return _is(style, words, premise.entity, premise.concept)
    return _rule(style, words, premise)


def write(style: Style, words: Words, premises: Sequence[Premise], rules: Sequence[Rule], query: str) -> Item:
    """Put a problem into sentences.

    premises: all premises in the order in which they are stated. rules: those of the chain in order of use, the last one
    about the property. query: the key of the property asked about; the label is whether it is the one derived.
    """
    question: Pieces = []
    for premise in premises:
        question += [*([" "] if question else []), *sentence(style, words, premise), "."]
    asked: Pieces = ["True or false: ", *_is(style, words, "E", query), "."]
    chain: Pieces = [*_is(style, words, "E", rules[0].a), "."]
    for rule in rules:
        if style in REASONS:
            chain += [f" {REASONS[style]} ", *_rule(style, words, rule, inner=True), ", "]
        else:
            chain += [" ", *_rule(style, words, rule), ". "]
        chain += [*_is(style, words, "E", rule.b), "."]
    derived = rules[-1].b
    return Item(tuple(question), tuple(asked), tuple([*chain, " "]), words[query] == words[derived])


def frame(style: Style, item: Item) -> tuple[Pieces, Pieces]:
    """The pieces of prompt and solution: prompt + joint + solution is the whole text."""
    f = FRAMES[style]
    return [f.head, *item.question, " ", *item.query, f.tail], [*item.chain, str(item.label)]
