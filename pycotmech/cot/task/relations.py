"""Questions whose sentences relate words, and the pairs of words in them: related, negatively related, unrelated.

"Every lempus is a tumpus." relates lempus and tumpus, "Every lempus is not a tumpus." does so negatively, and two concepts
of different trees have nothing to do with one another. An unrelated pair is taken at the distance of a related one, so that
the distance between two words does not distinguish the classes.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import LongTensor

from pycotmech._choices import check_choice
from pycotmech.cot.task.make import make_examples
from pycotmech.cot.task.pools import TooFewWords
from pycotmech.cot.task.tokens import Encoder, forms, profiles
from pycotmech.cot.task.vocabulary import ENTITIES, PROPERTIES, Ontology, Word, concepts, truly_is
from pycotmech.cot.task.wording import FRAMES, Membership, Pieces, Premise, Rule, Style, render, sentence
from pycotmech.model.arguments import check_integer

if TYPE_CHECKING:
    from pycotmech.cot.task.examples import Examples

CLASSES = ("related", "negated", "unrelated")
_ORDERS = 24
_TRIES = 200

Unrelated = Literal["matched", "roles", "both", "next"]


class WordPair(NamedTuple):
    """Two words of a text, the first before the second.

    label: number in CLASSES. first, second: the positions of their tokens. words: as in the vocabulary; "not tumpus" is
    never a word here. matched: of an unrelated pair, the label of the pair at whose distance it was taken (-1: of none).
    """

    label: int
    first: slice
    second: slice
    words: tuple[str, str] = ("", "")
    matched: int = -1

    @property
    def distance(self) -> int:
        """Tokens from the last piece of the first word to the last piece of the second."""
        return self.second.stop - self.first.stop


@dataclass(frozen=True, eq=False)
class Question:
    """A text with its pairs. tokens: ids [T], including the text before the sentences.

    across: pairs that are not related either, of a sentence's subject and a later sentence's object: in their roles they
        look like related pairs.
    others: the tokens with other verbs, which relate nothing (`cot.task.verbs`); empty where none were made.
    stated: pairs of `make_entailed` that one sentence relates, or none, at the places of the others.
    unit: the number that a question shares with those of the same words, which are split and resampled together; -1: none.
    """

    tokens: LongTensor = field(repr=False)
    pairs: tuple[WordPair, ...] = field(repr=False)
    across: tuple[WordPair, ...] = field(default=(), repr=False)
    text: str = ""
    others: tuple[LongTensor, ...] = field(default=(), repr=False)
    stated: tuple[WordPair, ...] = field(default=(), repr=False)
    unit: int = -1


@dataclass(frozen=True)
class PlacedPremise:
    """A premise in its text: the positions of subject and object."""

    premise: Premise
    subject: slice
    object: slice


class Surroundings(NamedTuple):
    """What the questions of one call share. front: the text before them."""

    encoder: Encoder
    front: str
    ontology: Ontology
    style: Style


def make_questions(
    n: int,
    *,
    tokenizer: Any,
    examples: Examples | None = None,
    shots: int = 0,
    ontology: Ontology = "fictional",
    style: Style = "every",
    trees: int = 3,
    size: int = 3,
    properties: bool = False,
    unrelated: Unrelated = "matched",
    seed: int = 0,
    bos: bool | None = None,
) -> list[Question]:
    """Make n questions of several small ontologies each, their sentences shuffled.

    Each of `trees` trees has `size` concepts, each but the root below one that came before it; half of these relations are
    negative, at random. Each tree says a property of one concept (positively or negatively, at random), and one entity is
    said to be in one. Concepts are the paper's, drawn anew for each question, so that no word gives its class away.

    tokenizer: a fast Hugging Face tokenizer. examples: whose style, ontology, BOS and demonstrations to use (the last where
        `shots` is their number); None: the arguments. shots: demonstrations before it, as `make_examples` makes them; their
        concepts are not used after them.
    properties: whether pairs of a concept and its property count too; they are closer together than concepts are and are of
        another kind, so that distance and word alone say much about the class. False: pairs of concepts only.
    unrelated: "matched": for each related or negatively related pair one pair of concepts of different trees at the nearest
        distance that is left, so that classes differ in distance as little as the texts allow. "roles": the same, but of a
        sentence's subject and a later sentence's object, as related pairs are; they are further apart. "both": one
        half each. "next" (the paper's): for each word of the ontologies the next one after it that is in no tree with it.
    Raises TypeError or ValueError naming the argument, TooFewWords (a ValueError) if the tokenizer leaves too few concepts.
    """
    n, shots = check_integer(n, "n", 1), check_integer(shots, "shots", 0)
    trees, size = check_integer(trees, "trees", 2), check_integer(size, "size", 2)
    check_choice("unrelated", unrelated, get_args(Unrelated))
    encoder, front, ontology, style = surroundings(tokenizer, examples, shots, ontology, style, seed, bos)
    known = usable_words(encoder, ontology, style, front, needed=trees * size)
    rng = random.Random(f"{seed}/relations")
    return [_question(rng, encoder, known, front, style, ontology, trees, size, properties, unrelated) for _ in range(n)]


def ask(
    premises: Sequence[Premise],
    words: Mapping[str, Word],
    *,
    tokenizer: Any,
    front: str = "",
    style: Style = "every",
    properties: bool = False,
    unrelated: Unrelated = "matched",
    seed: int = 0,
    bos: bool | Encoder | None = None,
) -> Question:
    """The question that states these premises in this order, and its pairs; words: of each role in the premises.

    front: text before it, such as a few-shot block. properties, unrelated: as for `make_questions`.
    """
    encoder = bos if isinstance(bos, Encoder) else Encoder(tokenizer, bos)
    text, ids, placed = stated(premises, words, encoder, front, style)
    pairs, across = _pairs(random.Random(f"{seed}/pairs"), placed, words, ids, properties, unrelated)
    return Question(ids, pairs, across, text)  # type: ignore[arg-type]


def stated(
    premises: Sequence[Premise], words: Mapping[str, Word], encoder: Encoder, front: str, style: Style
) -> tuple[str, LongTensor, list[PlacedPremise]]:
    """The text that states these premises in this order, its tokens [T], and where each premise stands."""
    pieces: Pieces = [FRAMES[style].head]
    for i, premise in enumerate(premises):
        pieces += [*([" "] if i else []), *sentence(style, words, premise), "."]
    text, places = render(pieces, words, len(front))
    text = front + text
    encoded = encoder(text)
    if not all(encoded.isolated(o.start, o.stop) for o in places):
        raise ValueError("tokenizer: merges a word of the question with its neighbours; expected tokens that end with words")
    spans = [encoded.word(o.start, o.stop) for o in places]
    placed = [PlacedPremise(p, a, b) for p, a, b in zip(premises, spans[::2], spans[1::2], strict=True)]
    return text, torch.tensor(encoded.ids), placed  # type: ignore[return-value]


# ---- words and premises --------------------------------------------------------------------------------------------


def surroundings(
    tokenizer: Any, examples: Examples | None, shots: int, ontology: Ontology, style: Style, seed: int, bos: bool | None
) -> Surroundings:
    """Style, ontology, BOS and demonstrations of the examples if there are any, otherwise those given."""
    if examples is not None:
        style, ontology, bos = examples.style, examples.ontology, examples.bos  # type: ignore[assignment]
    encoder = Encoder(tokenizer, bos)
    front = ""
    if shots:
        if examples is None or examples.shots != shots:
            same = (
                {k: getattr(examples, k) for k in ("hops", "order", "distractors", "competing")} if examples is not None else {}
            )
            examples = make_examples(
                1, tokenizer=tokenizer, shots=shots, ontology=ontology, style=style, seed=seed, bos=encoder.bos, **same
            )
        front = examples.few_shot
    return Surroundings(encoder, front, ontology, style)


@dataclass(frozen=True)
class Known:
    """Words that can be used."""

    concepts: tuple[Word, ...]
    properties: tuple[Word, ...]
    entities: tuple[Word, ...]


def usable_words(encoder: Encoder, ontology: Ontology, style: Style, front: str, needed: int) -> Known:
    """Words that the tokenizer keeps apart from their neighbours and that the text before does not use."""
    heard = front.lower()

    def usable(kind: str, words: Sequence[Word]) -> tuple[Word, ...]:
        kept = profiles(encoder, words, forms(kind, style, "shuffled", 1), style)
        return tuple(w for w in words if w in kept and (kind != "concept" or w.singular not in heard))

    first, further = concepts(ontology)
    found = usable("concept", first)
    if len(found) < needed:
        found += usable("concept", further)
    rest = usable("property", PROPERTIES), usable("entity", ENTITIES)
    for kind, words, least in (("concept", found, needed), ("property", rest[0], 3), ("entity", rest[1], 1)):
        if len(words) < least:
            raise TooFewWords(
                f"tokenizer: leaves {len(words)} words of kind {kind!r} for questions in ontology {ontology!r}, style "
                f"{style!r}; expected at least {least}: fewer trees, smaller ones, or fewer shots would do"
            )
    return Known(found, *rest)


def _question(
    rng: random.Random,
    encoder: Encoder,
    known: Known,
    front: str,
    style: Style,
    ontology: Ontology,
    trees: int,
    size: int,
    properties: bool,
    unrelated: Unrelated,
) -> Question:
    for _ in range(_TRIES):
        nouns = rng.sample(known.concepts, trees * size)
        words = {f"C{i // size}.{i % size}": noun for i, noun in enumerate(nouns)}
        edges = [(t, k, rng.randrange(k)) for t in range(trees) for k in range(1, size)]
        negative = set(rng.sample(range(len(edges)), len(edges) // 2 + (len(edges) % 2 and rng.random() < 0.5)))
        rules = [Rule(f"C{t}.{k}", f"C{t}.{up}", rng.random() < 0.5, i in negative) for i, (t, k, up) in enumerate(edges)]
        if ontology != "false" or not any(truly_is(words[r.a].singular, words[r.b].singular) for r in rules):
            break
    for t, noun in enumerate(rng.sample(known.properties, min(trees, len(known.properties)))):
        words[f"p{t}"] = noun
        rules.append(Rule(f"C{t}.{rng.randrange(size)}", f"p{t}", rng.random() < 0.5, rng.random() < 0.5))
    words["E"] = rng.choice(known.entities)
    stated: list[Premise] = [*rules, Membership("E", f"C{rng.randrange(trees)}.{rng.randrange(size)}")]
    # Of some random orders the one in which a sentence most often ends in a concept and the next begins with one of
    # another tree: only there are unrelated concepts as close together as related ones.
    stated = max((rng.sample(stated, len(stated)) for _ in range(_ORDERS)), key=lambda order: _meetings(order))
    return ask(
        stated, words, tokenizer=None, front=front, style=style, properties=properties, unrelated=unrelated,
        seed=rng.getrandbits(32), bos=encoder,
    )  # fmt: skip


def _tree(key: str) -> str:
    return key.split(".")[0]


def _meetings(order: Sequence[Premise]) -> int:
    ends = [(_tree(p.a), _tree(p.b)) if isinstance(p, Rule) else ("E", _tree(p.concept)) for p in order]
    return sum(b[0] == "C" == a[0] and a != b for (_, b), (a, _) in itertools.pairwise(ends))


# ---- pairs ---------------------------------------------------------------------------------------------------------


def _parts(premises: Sequence[Premise]) -> dict[str, int]:
    """The connected part of the ontologies that each role is in; negative relations connect too."""
    part: dict[str, int] = {}
    for premise in premises:
        if isinstance(premise, Rule):
            ends = [k + "/not" if premise.negated and k == premise.b and k[0] == "p" else k for k in (premise.a, premise.b)]
            old = {part.get(k, -1) for k in ends} - {-1}
            new = min(old, default=len(part))
            part |= {k: new for k in ends} | {k: new for k, v in part.items() if v in old}
    return part


def _pairs(
    rng: random.Random,
    placed: Sequence[PlacedPremise],
    words: Mapping[str, Word],
    ids: torch.Tensor,
    properties: bool,
    unrelated: Unrelated,
) -> tuple[tuple[WordPair, ...], tuple[WordPair, ...]]:
    part = _parts([s.premise for s in placed])
    places: list[tuple[int, str, str, slice]] = []  # sentence, role, "a" or "b", positions
    found: list[WordPair] = []
    for i, s in enumerate(placed):
        if isinstance(s.premise, Membership):
            if s.premise.concept in part:
                places.append((i, s.premise.concept, "b", s.object))
            continue
        a, b, _, negated = s.premise
        node = b + "/not" if negated and b[0] == "p" else b
        is_property = words[b].kind == "property"
        places.append((i, a, "a", s.subject))
        if not is_property or properties:
            places.append((i, node, "b", s.object))
            found.append(WordPair(int(negated), s.subject, s.object, (words[a].singular, words[b].singular)))

    def pair(x: tuple, y: tuple, matched: int = -1) -> WordPair:
        names = tuple(words[k.removesuffix("/not")].singular for k in (x[1], y[1]))
        return WordPair(2, x[3], y[3], names, matched)  # type: ignore[arg-type]

    def alike(p: WordPair) -> bool:
        return ids[p.first].tolist() == ids[p.second].tolist()

    apart = [
        (x, y)
        for i, x in enumerate(places)
        for y in places[i + 1 :]
        if x[0] < y[0] and part[x[1]] != part[y[1]] and not alike(pair(x, y))
    ]
    found = [p for p in found if not alike(p)]
    across = [pair(x, y) for x, y in apart if x[2] == "a" and y[2] == "b"]
    nearest = {p.first.start: p for p in sorted(across, key=lambda p: -p.distance)}
    if unrelated == "next":
        following: dict[int, WordPair] = {}
        for x, y in apart:
            following.setdefault(x[3].start, pair(x, y))
        chosen = list(following.values())
    else:
        chosen = []
        left = rng.sample(apart, len(apart))
        for i, p in enumerate(rng.sample(found, len(found))):
            alike_in_role = unrelated == "roles" or (unrelated == "both" and i % 2 == 1)
            usable = [xy for xy in left if not alike_in_role or (xy[0][2], xy[1][2]) == ("a", "b")]
            if usable:
                best = min(usable, key=lambda xy: abs(pair(*xy).distance - p.distance))
                left.remove(best)
                chosen.append(pair(*best, p.label))
    taken = {(p.first.start, p.second.start) for p in chosen}
    return (*found, *chosen), tuple(p for p in nearest.values() if (p.first.start, p.second.start) not in taken)
