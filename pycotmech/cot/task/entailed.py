"""Questions in which words are related only by entailment, together with questions in which the same words are unrelated.

Of "Every M is a B. Every A is an M. Every X is a Y. Every Y is a Z. Every B is a C. Every Z is a W." it follows that every A
and every M is a C, which no sentence says; A and W are not related. If the subjects of the last two sentences are exchanged, A
is related to W and not to C. The same holds if the subjects of "Every M is a B" and "Every Y is a Z" are exchanged. If both
are, A is a C again. These four questions have the same words at the same places, so that only the chain distinguishes the
classes.

The first word of a pair stands at least two sentences before the second in the chain. At C, a model may mark where its subject
B occurred before, which takes no more than looking for the same word. This tells which sentence the last one continues, but
not which sentence that one continues: the four questions have all combinations.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

from pycotmech.cot.task.pools import TooFewWords
from pycotmech.cot.task.relations import Question, WordPair, stated, surroundings, usable_words
from pycotmech.cot.task.tokens import classes, forms, profiles
from pycotmech.cot.task.vocabulary import Ontology, Word, truly_is
from pycotmech.cot.task.wording import Rule, Style
from pycotmech.model.arguments import check_integer

if TYPE_CHECKING:
    from pycotmech.cot.task.examples import Examples

ENTAILED = ("entailed", "unrelated")
VARIANTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""The questions of a unit: whether the subjects of the last sentences but one are exchanged, and those of the last ones."""
ROLES = ("subject", "object")
_TRIES = 200


def make_entailed(
    n: int,
    *,
    tokenizer: Any,
    examples: Examples | None = None,
    shots: int = 0,
    ontology: Ontology = "fictional",
    style: Style = "every",
    hops: int = 3,
    seed: int = 0,
    bos: bool | None = None,
) -> list[Question]:
    """Makes n questions of two chains each, in units of four: questions 0 to 3, 4 to 7, ... (n is a multiple of 4).

    A chain has hops + 1 concepts (at least 4) and a sentence for each hop. The last sentences of both chains come last, since
    nothing is entailed before them; the other sentences are in random order, and so are the last ones. The questions of a unit
    differ in which subjects are exchanged (`VARIANTS`). The exchanged words have equally many tokens and the same article, so
    that no position changes.

    The `pairs` of a question join the subject or object of any of a chain's sentences except its last two with the last word of
    either chain, in the classes `ENTAILED`. Each pair occurs in all questions of its unit, in two of them in each class.
    `stated` pairs join the object of the last sentence but one with the last word; one sentence relates them, or none.

    tokenizer, examples, shots, ontology, style, bos: as for `make_questions`.
    Raises TypeError or ValueError naming the argument, TooFewWords (a ValueError) if the tokenizer leaves too few concepts.
    """
    n, shots, hops = check_integer(n, "n", 4), check_integer(shots, "shots", 0), check_integer(hops, "hops", 3)
    if n % len(VARIANTS):
        raise ValueError(f"n: got {n}; expected a multiple of {len(VARIANTS)}, since the questions come in fours")
    encoder, front, ontology, style = surroundings(tokenizer, examples, shots, ontology, style, seed, bos)
    known = usable_words(encoder, ontology, style, front, needed=2 * (hops + 1)).concepts
    cuts = profiles(encoder, known, forms("concept", style, "shuffled", 1), style)
    alike = [group for group in classes(known, cuts, by_article=True) if len(group) > 1]
    if sum(len(group) // 2 for group in alike) < 2:
        raise TooFewWords(
            f"tokenizer: of the concepts of ontology {ontology!r}, style {style!r}, too few have equally many tokens; expected "
            "two pairs of them that can be exchanged"
        )
    rng = random.Random(f"{seed}/entailed")
    out: list[Question] = []
    for unit in range(n // len(VARIANTS)):
        words, lower, upper = _drawn(rng, known, alike, ontology, hops)
        for variant in VARIANTS:
            rules = [_exchanged(rule, hops, variant) for rule in (*lower, *upper)]
            text, ids, placed = stated(rules, words, encoder, front, style)
            place = {(s.premise.a, "subject"): s.subject for s in placed if isinstance(s.premise, Rule)}
            place |= {(s.premise.b, "object"): s.object for s in placed if isinstance(s.premise, Rule)}

            pairs: list[WordPair] = []
            direct: list[WordPair] = []
            for t, top in itertools.product((0, 1), repeat=2):
                last = f"C{top}.{hops}"
                apart, near = (int((t ^ moved) != top) for moved in (variant[0] ^ variant[1], variant[1]))
                firsts = [(f"C{t}.{level + (role == 'object')}", role) for level in range(hops - 2) for role in ROLES]
                for found, label, keys in ((pairs, apart, firsts), (direct, near, [(f"C{t}.{hops - 1}", "object")])):
                    for key, role in keys:
                        names = words[key].singular, words[last].singular
                        found.append(WordPair(label, place[key, role], place[last, "object"], names))
            out.append(Question(ids, tuple(pairs), text=text, stated=tuple(direct), unit=unit))
    return out


def _exchanged(rule: Rule, hops: int, variant: tuple[int, int]) -> Rule:
    """Returns the rule, with its subject from the other chain if this variant exchanges the subjects of its level."""
    chain, level = (int(part) for part in rule.b.removeprefix("C").split("."))
    moved = {hops - 1: variant[0], hops: variant[1]}.get(level, 0)
    return rule._replace(a=f"C{chain ^ moved}.{level - 1}")


def _drawn(
    rng: random.Random, known: tuple[Word, ...], alike: list[list[Word]], ontology: Ontology, hops: int
) -> tuple[dict[str, Word], list[Rule], list[Rule]]:
    """Draws words by role, the sentences before the last ones, and the last ones, with nothing exchanged."""
    for _ in range(_TRIES):
        words: dict[str, Word] = {}
        for level in (hops - 1, hops - 2):
            left = [[w for w in group if w not in words.values()] for group in alike]
            left = [group for group in left if len(group) > 1]
            pair = rng.sample(rng.choices(left, [len(group) for group in left])[0], 2)
            words |= {f"C{t}.{level}": pair[t] for t in (0, 1)}
        others = rng.sample([w for w in known if w not in words.values()], 2 * (hops - 1))
        words |= {f"C{t}.{k}": others.pop() for t in (0, 1) for k in (*range(hops - 2), hops)}
        rules = [Rule(f"C{t}.{k}", f"C{t}.{k + 1}", rng.random() < 0.5) for t in (0, 1) for k in range(hops)]
        upper = [rule for rule in rules if rule.b.endswith(f".{hops}")]
        lower = [rule for rule in rules if rule not in upper]
        rng.shuffle(lower)
        rng.shuffle(upper)
        every = [_exchanged(rule, hops, variant) for rule in rules for variant in VARIANTS]
        if ontology != "false" or not any(truly_is(words[r.a].singular, words[r.b].singular) for r in every):
            break
    return words, lower, upper
