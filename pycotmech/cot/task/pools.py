"""Which words test items may use and which the few-shot block: no word is in both."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pycotmech.cot.task.tokens import Encoder, Form, Profile, classes, forms, profiles, same_start
from pycotmech.cot.task.vocabulary import ENTITIES, PROPERTIES, Kind, Ontology, Word, concepts
from pycotmech.cot.task.wording import QUANTIFIERS, Order, Style

# Below this many words that can replace one another, items draw from all words and may differ in length.
_ENOUGH: dict[str, int] = {"entity": 3, "concept": 8, "property": 12}
# What the few-shot block leaves to the items where it can repeat its own words instead.
_KEEP: dict[str, int] = {"entity": 5, "concept": 8, "property": 12}


class TooFewWords(ValueError):
    """A tokenizer leaves too few words that can be exchanged for one another."""


@dataclass(frozen=True)
class Need:
    """Words of one kind: `item` for a test item with its replacement, `shot` for one demonstration."""

    item: int
    shot: int


@dataclass(frozen=True)
class Pool:
    """Words of one kind. items and shots are disjoint. cuts: token counts by written form; uniform: all items alike."""

    items: tuple[Word, ...]
    shots: tuple[Word, ...]
    cuts: Mapping[Word, Profile]
    forms: tuple[Form, ...]
    uniform: bool


Pools = dict[str, Pool]


def _told_apart(words: Sequence[Word], cuts: Mapping[Word, Profile]) -> int:
    """How many of the words have first tokens that differ from one another (greedily: a lower bound)."""
    kept: list[Word] = []
    for word in words:
        if not any(same_start(cuts[word], cuts[other]) for other in kept):
            kept.append(word)
    return len(kept)


def _pool(
    rng: random.Random,
    encoder: Encoder,
    tiers: Sequence[Sequence[Word]],
    wanted: tuple[Form, ...],
    need: Need,
    shots: int,
    kind: Kind,
    style: Style,
) -> Pool:
    everything = [word for tier in tiers for word in tier]
    cuts = profiles(encoder, everything, wanted, style)
    by_article = style in QUANTIFIERS and kind == "concept"
    enough = max(need.item, _ENOUGH[kind])
    items: list[Word] = []
    groups = classes(everything, cuts, by_article)
    # The paper's own words first; further ones only where the tokenizer leaves too few of those in one class.
    for words in (tiers[0], everything):
        ranked = sorted(classes(words, cuts, by_article), key=lambda group: _told_apart(group, cuts), reverse=True)
        if ranked and _told_apart(ranked[0], cuts) >= enough:
            items = ranked[0]
            break
    uniform = bool(items)
    if not uniform:
        # Smallest classes last: these go to the few-shot block, which needs no counterparts.
        items = [word for group in groups for word in group]
    chosen = set(items)
    rest = [word for word in everything if word in cuts and word not in chosen]
    rng.shuffle(rest)
    want = min(shots, 4) * need.shot if kind == "entity" else shots * need.shot
    missing = max(0, want - len(rest))
    spare = max(0, len(items) - max(need.item, _KEEP[kind]))
    least = max(0, min(shots, 1) * need.shot - len(rest))
    take = max(min(missing, spare), least)
    if take:
        if uniform:
            given = set(rng.sample(items, take)) if take <= len(items) else set(items)
        else:
            given = set(items[-take:])
        rest += [word for word in items if word in given]
        items = [word for word in items if word not in given]
    if _told_apart(items, cuts) < need.item or len(rest) < min(shots, 1) * need.shot:
        raise TooFewWords(
            f"{len(cuts)} of {len(everything)} words of kind {kind!r} can be used with this tokenizer, "
            f"{_told_apart(list(cuts), cuts)} of them with different first tokens; "
            f"a test item needs {need.item} such and a shot {need.shot} others"
        )
    return Pool(tuple(items), tuple(rest), cuts, wanted, uniform)


def pools(
    encoder: Encoder,
    needs: Mapping[str, Need],
    *,
    style: Style,
    ontology: Ontology,
    order: Order,
    shots: int,
    seed: int,
) -> Pools:
    """The words of each kind, split between items and shots. Raises TooFewWords."""
    tiers: dict[Kind, Sequence[Sequence[Word]]] = {
        "entity": (ENTITIES,),
        "concept": concepts(ontology),
        "property": (PROPERTIES,),
    }
    out: Pools = {}
    for kind, words in tiers.items():
        rng = random.Random(f"{seed}/pool/{kind}")
        wanted = forms(kind, style, order, shots, encoder.chat is not None)
        out[kind] = _pool(rng, encoder, words, wanted, needs[kind], shots, kind, style)
    return out
