"""Fictional-ontology problems as text, for the two training scripts in this folder.

The task is PrOntoQA's (Saparov & He, 2023) in the two-hop form of arXiv 2402.18312, in two wordings:

paper   Tumpuses are bright. Lempus is tumpus. Max is lempus. True or false: Max is bright.
        -> Max is lempus. Lempus is tumpus. Max is tumpus. Tumpuses are bright. Max is bright. True
every   Every tumpus is bright. Every lempus is a tumpus. Max is a lempus. True or false: Max is bright.
        -> Max is a lempus. Since every lempus is a tumpus, Max is a tumpus. Since every tumpus is bright, Max is
        bright. True
"""

# ruff: noqa: SIM905 (word lists are easier to read as one line of words)

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Wording = Literal["paper", "every"]

PRONTOQA_NOUNS = (
    "wumpus yumpus zumpus dumpus rompus numpus tumpus vumpus impus jompus gorpus shumpus lempus sterpus grimpus lorpus brimpus"
).split()
NAMES = "Fae Rex Sally Max Alex Sam Polly Stella Wren".split()
PROPERTIES = (
    "blue red brown orange small large metallic wooden luminous liquid transparent opaque nervous happy feisty shy "
    "bright dull sweet sour spicy bitter floral fruity earthy hot cold temperate kind mean angry amenable aggressive "
    "melodic muffled discordant loud slow moderate fast windy sunny overcast rainy snowy"
).split()

# The text before a problem, between it and its answer, and after the answer.
WRAPPERS = {
    "inline": ("", " Answer: ", "\n"),
    "authors": ("### Input:\n", " Let us think step by step.\n### Response:\n", "\n\n"),
    "question": ("Question: ", "\nAnswer: ", "\n\n"),
}

_ONSETS = "b bl br ch d dr f fl fr g gl gr h k kl l m n p pl pr qu r s sh sl st str t th tr tw v w y z".split()
_MIDDLES = "am em im om um ar or ur an en on ol il el".split()


def nouns(n: int) -> list[str]:
    """PrOntoQA's 17 nouns first, then made-up ones of the same make; the same n always gives the same list."""
    rng, found = random.Random(1234), list(PRONTOQA_NOUNS)
    while len(found) < n:
        word = rng.choice(_ONSETS) + rng.choice(_MIDDLES) + "pus"
        if word not in found:
            found.append(word)
    return found[:n]


@dataclass(frozen=True)
class Problem:
    prompt: str  # ends where the answer begins
    answer: str  # ends with True or False
    end: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer + self.end


def make_problem(
    rng: random.Random,
    words: list[str],
    *,
    wording: Wording = "every",
    wrapper: str = "inline",
    hops: int = 2,
    distractors: int = 0,
    property_distractors: bool = True,
    shuffle: bool = False,
    allowed: Callable[[str, str], bool] = lambda a, b: True,
) -> Problem:
    """One problem with nouns, name and properties drawn anew.

    hops: 0 (read the property off), 1 or 2. distractors: premises about other nouns (hops 1 and 2), each a link, or in
    half of the cases a property where `property_distractors`. shuffle: premises in random order, not backwards.
    allowed: which links (A, B) may be drawn.
    """
    while True:
        chosen = rng.sample(words, 2 + 2 * distractors)
        first, second = chosen[:2]
        if allowed(first, second):
            break
    name, properties = rng.choice(NAMES), rng.sample(PROPERTIES, 2 + distractors)
    holds, label = properties[0], rng.random() < 0.5
    asked = holds if label else properties[1]

    article = "a " if wording == "every" else ""
    has = _property(rng, wording, second, holds)
    link = _link(rng, wording, first, second)
    is_first, is_second = f"{name} is {article}{first}.", f"{name} is {article}{second}."
    conclusion = f"{name} is {holds}."

    def because(premise: str, then: str) -> str:
        if wording == "paper":
            return f"{premise} {then}"
        return f"Since {premise[0].lower()}{premise[1:-1]}, {then}"

    if hops == 2:
        premises = [has, link, is_first]
        steps = [is_first, because(link, is_second), because(has, conclusion)]
    elif hops == 1:
        premises, steps = [has, is_second], [is_second, because(has, conclusion)]
    else:
        others = rng.sample([other for other in NAMES if other != name], 2)
        rivals = [p for p in PROPERTIES if p != holds]
        premises = [conclusion, *(f"{other} is {rng.choice(rivals)}." for other in others)]
        steps = [conclusion]
    if hops:
        for i in range(distractors):
            a, b = chosen[2 + 2 * i : 4 + 2 * i]
            # By turns in the "every" wording, where a property is a word shorter: all problems of a batch are as long.
            as_property = i % 2 == 0 if wording == "every" else rng.random() < 0.5
            extra = _property(rng, wording, a, properties[2 + i]) if as_property and property_distractors else None
            premises.insert(rng.randrange(len(premises) + 1), extra or _link(rng, wording, a, b))
    if shuffle or not hops:
        rng.shuffle(premises)
    before, between, end = WRAPPERS[wrapper]
    question = f"True or false: {name} is {asked}."
    return Problem(f"{before}{' '.join(premises)} {question}{between}", f"{' '.join(steps)} {label}", end)


def make_drill(rng: random.Random, words: list[str], *, wrapper: str, premises: bool) -> Problem:
    """The last step alone: is the property that was just stated the one that was asked about?

    premises: whether the fact and another one come first, as in a whole problem.
    """
    name, other = rng.choice(NAMES), rng.choice(NAMES)
    holds, wrong, third = rng.sample(PROPERTIES, 3)
    label = rng.random() < 0.5
    asked, facts = holds if label else wrong, ""
    if premises:
        bystander = other if other != name else rng.choice(words).capitalize()
        pair = [f"{name} is {holds}.", f"{bystander} is {third}."]
        rng.shuffle(pair)
        facts = " ".join(pair) + " "
        if not label and rng.random() >= 0.7:
            asked = third
    before, between, end = WRAPPERS[wrapper]
    prompt = f"{before}{facts}True or false: {name} is {asked}.{between}{name} is {holds}. "
    return Problem(prompt, str(label), end)


def _link(rng: random.Random, wording: Wording, a: str, b: str) -> str:
    if wording == "every":
        return f"Every {a} is a {b}."
    return f"{a.capitalize()} is {b}." if rng.random() < 0.5 else f"{a.capitalize()}es are {b}es."


def _property(rng: random.Random, wording: Wording, a: str, p: str) -> str:
    if wording == "every":
        return f"Every {a} is {p}."
    return f"{a.capitalize()} is {p}." if rng.random() < 0.5 else f"{a.capitalize()}es are {p}."
