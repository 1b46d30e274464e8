"""Questions in which words are related by entailment only, each beside a twin in which the same words are not.

Of "Every M is a B. Every A is an M. Every X is a Y. Every Y is a Z. Every B is a C. Every Z is a W." it follows that every A
and every M is a C, which no sentence says; A and W are not related. Its twin exchanges the subjects of the last two sentences
and nothing else: now A is related to W, and not to C. The words of a pair, their roles, their places, the tokens around them
and all of the text before the exchange are the same in both, so that nothing but the chain distinguishes the classes.

The first word of a pair is read at least two sentences down the chain from the second. A model may note at C where its
subject B was said before, which takes no more than looking for the same word. With words of that sentence, a probe that knows
where they stand could follow the chain by itself; with words of the one before, which stands anywhere, it cannot.
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

if TYPE_CHECKING:
    from pycotmech.cot.task.examples import Examples

ENTAILED = ("entailed", "unrelated")
_TRIES = 200


def make_entailed(
    n: int,
    *,
    tokenizer: Any,
    examples: Examples | None = None,
    shots: int = 0,
    ontology: Ontology = "fictional",
    style: Style = "every",
    chains: int = 2,
    hops: int = 3,
    seed: int = 0,
    bos: bool | None = None,
) -> list[Question]:
    """Make n questions of several chains each, in twins: questions 0 and 1, 2 and 3, ... (n is even) are of one `unit`.

    A chain has hops + 1 concepts (at least 4) and a sentence for each hop. The last sentences of all chains come last, since
    before them nothing follows; the sentences before them, and they themselves, are in random order. In the twin the last
    sentences have their subjects exchanged in a circle; these have equally many tokens and one article, so that nothing moves.

    pairs: subject or object of one of a chain's sentences but its last two, and the last word of a chain, in `ENTAILED`
        classes: of one chain, or of two chains that are one in the twin. Each stands in both twins, once in each class.
        stated: likewise the object of the last sentence but one, and the last word, which one sentence relates or none.
    tokenizer, examples, shots, ontology, style, bos: as for `make_questions`.
    Raises TypeError or ValueError naming the argument, TooFewWords (a ValueError) if the tokenizer leaves too few concepts.
    """
    for name, value, least in (("n", n, 2), ("shots", shots, 0), ("chains", chains, 2), ("hops", hops, 3)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: got {value!r}; expected an integer of at least {least}")
    if n % 2:
        raise ValueError(f"n: got {n}; expected an even number, since questions come in twins")
    encoder, front, ontology, style = surroundings(tokenizer, examples, shots, ontology, style, seed, bos)
    known = usable_words(encoder, ontology, style, front, needed=chains * (hops + 1)).concepts
    cuts = profiles(encoder, known, forms("concept", style, "shuffled", 1), style)
    alike = [g for g in classes(known, cuts, by_article=True) if len(g) >= chains]
    if not alike:
        raise TooFewWords(
            f"tokenizer: no {chains} concepts of ontology {ontology!r}, style {style!r} have equal lengths; expected some "
            "that can be exchanged: fewer chains would do"
        )
    rng = random.Random(f"{seed}/entailed")
    out: list[Question] = []
    for unit in range(n // 2):
        words, lower, upper, twin = _drawn(rng, known, alike, ontology, chains, hops)
        for k, last in enumerate((upper, twin)):
            text, ids, said = stated((*lower, *last), words, encoder, front, style)
            place = {(s.premise.a, "subject"): s.subject for s in said if isinstance(s.premise, Rule)}
            place |= {(s.premise.b, "object"): s.object for s in said if isinstance(s.premise, Rule)}
            found: dict[str, list[WordPair]] = {"apart": [], "stated": []}
            for t, shift in itertools.product(range(chains), (0, 1)):  # of one chain in the first twin, in the second
                top = f"C{(t + shift) % chains}.{hops}"
                for kind, level, role in _first_words(hops):
                    key = f"C{t}.{level}"
                    names = words[key].singular, words[top].singular
                    found[kind].append(WordPair(int(shift != k), place[key, role], place[top, "object"], names))
            out.append(Question(ids, tuple(found["apart"]), text=text, stated=tuple(found["stated"]), unit=unit))
    return out


def _first_words(hops: int) -> list[tuple[str, int, str]]:
    """The first words of pairs: what for, level in the chain, role in the sentence."""
    return [
        *(("apart", level, "subject") for level in range(hops - 2)),
        *(("apart", level + 1, "object") for level in range(hops - 2)),
        ("stated", hops - 1, "object"),
    ]


Words = dict[str, Word]


def _drawn(
    rng: random.Random, known: tuple[Word, ...], alike: list[list[Word]], ontology: Ontology, chains: int, hops: int
) -> tuple[Words, list[Rule], list[Rule], list[Rule]]:
    """Words by role, the sentences before the last ones, the last ones, and those of the twin."""
    for _ in range(_TRIES):
        exchanged = rng.sample(rng.choices(alike, [len(g) for g in alike])[0], chains)
        others = rng.sample([w for w in known if w not in exchanged], chains * hops)
        words = {f"C{t}.{hops - 1}": exchanged[t] for t in range(chains)}
        levels = [k for k in range(hops + 1) if k != hops - 1]
        words |= {f"C{t}.{k}": others.pop() for t in range(chains) for k in levels}
        lower = [Rule(f"C{t}.{k}", f"C{t}.{k + 1}", rng.random() < 0.5) for t in range(chains) for k in range(hops - 1)]
        plural = [rng.random() < 0.5 for _ in range(chains)]
        order = rng.sample(range(chains), chains)
        rng.shuffle(lower)
        upper, twin = (
            [Rule(f"C{(t - shift) % chains}.{hops - 1}", f"C{t}.{hops}", plural[t]) for t in order] for shift in (0, 1)
        )
        rules = (*lower, *upper, *twin)
        if ontology != "false" or not any(truly_is(words[r.a].singular, words[r.b].singular) for r in rules):
            break
    return words, lower, upper, twin
