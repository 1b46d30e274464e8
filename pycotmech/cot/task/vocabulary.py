"""The words of the fictional-ontology task.

Entities, the 17 fictional concepts, the 19 false-ontology concepts and the 45 properties are those of PrOntoQA (Saparov &
He 2023) as used by arXiv 2402.18312. The remaining fictional concepts are made here, one onset with one rhyme and "pus",
so that few-shot blocks and test items never need to share a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["entity", "concept", "property"]
Ontology = Literal["fictional", "false"]


@dataclass(frozen=True)
class Word:
    """One word and its written forms. `plural` is empty for words that have none (entities, properties)."""

    kind: Kind
    singular: str
    plural: str = ""

    @property
    def article(self) -> str:
        return "an" if self.singular[0] in "aeiou" else "a"

    def written(self, *, plural: bool = False, capital: bool = False) -> str:
        text = self.plural if plural else self.singular
        return text[0].upper() + text[1:] if capital else text


ENTITY_NAMES = ("Fae", "Rex", "Sally", "Max", "Alex", "Sam", "Polly", "Stella", "Wren")

_NOUNS = """
wumpus yumpus zumpus dumpus rompus numpus tumpus vumpus impus jompus gorpus shumpus lempus sterpus grimpus lorpus brimpus
"""
FICTIONAL_NOUNS = tuple(_NOUNS.split())

# PrOntoQA draws from families of properties that exclude one another; a rule never needs two of one family here.
PROPERTY_FAMILIES = (
    ("blue", "red", "brown", "orange"),
    ("small", "large"),
    ("metallic", "wooden", "luminous", "liquid"),
    ("transparent", "opaque"),
    ("nervous", "happy", "feisty", "shy"),
    ("bright", "dull"),
    ("sweet", "sour", "spicy", "bitter"),
    ("floral", "fruity", "earthy"),
    ("hot", "cold", "temperate"),
    ("kind", "mean", "angry", "amenable", "aggressive"),
    ("melodic", "muffled", "discordant", "loud"),
    ("slow", "moderate", "fast"),
    ("windy", "sunny", "overcast", "rainy", "snowy"),
)

# What each real kind truly is, one level up. The false ontology must contradict it.
TRUE_PARENT = {
    "vertebrate": "animal",
    "mammal": "vertebrate",
    "carnivore": "mammal",
    "feline": "carnivore",
    "cat": "feline",
    "dog": "carnivore",
    "sheep": "mammal",
    "cow": "mammal",
    "snake": "vertebrate",
    "invertebrate": "animal",
    "arthropod": "invertebrate",
    "insect": "arthropod",
    "lepidopteran": "insect",
    "butterfly": "lepidopteran",
    "moth": "lepidopteran",
    "ant": "insect",
    "spider": "arthropod",
    "crustacean": "arthropod",
}
# Not in the tree above, yet true of the world: such a sentence would not be false.
_ALSO_TRUE = {("snake", "carnivore"), ("spider", "carnivore"), ("feline", "mammal")}
_IRREGULAR = {"sheep": "sheep", "butterfly": "butterflies"}

_ONSETS = "b bl br ch d dr f fl fr g gl gr h k kl l m n p pl pr qu r s sh sl st str t th tr tw v w y z"
_RHYMES = "am em im om um ar or ur an en on ol il el"
_REAL_WORDS = {"rumpus", "tempus", "grampus", "pompus", "humpus", "wampus"}


def _made_up_nouns() -> tuple[str, ...]:
    known = set(FICTIONAL_NOUNS) | _REAL_WORDS
    made = (onset + rhyme + "pus" for onset in _ONSETS.split() for rhyme in _RHYMES.split())
    return tuple(noun for noun in made if noun not in known)


MADE_UP_NOUNS = _made_up_nouns()

ENTITIES = tuple(Word("entity", name) for name in ENTITY_NAMES)
PROPERTIES = tuple(Word("property", name) for family in PROPERTY_FAMILIES for name in family)
FICTIONAL = tuple(Word("concept", noun, noun + "es") for noun in FICTIONAL_NOUNS)
MADE_UP = tuple(Word("concept", noun, noun + "es") for noun in MADE_UP_NOUNS)
FALSE = tuple(Word("concept", noun, _IRREGULAR.get(noun, noun + "s")) for noun in ("animal", *TRUE_PARENT))


def truly_is(a: str, b: str) -> bool:
    """Whether every a really is a b, by the taxonomy of the false ontology's words."""
    if (a, b) in _ALSO_TRUE:
        return True
    up: str | None = a
    while up is not None:
        if up == b:
            return True
        up = TRUE_PARENT.get(up)
    return False


def concepts(ontology: Ontology) -> tuple[tuple[Word, ...], tuple[Word, ...]]:
    """The concepts of an ontology: those of the paper, preferred for test items, and the further ones."""
    return (FICTIONAL, MADE_UP) if ontology == "fictional" else (FALSE, ())
