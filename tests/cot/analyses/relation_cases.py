"""Questions in the vocabulary of the planted models, in which no word and no distance tells a class."""

import torch

import pycotmech as pcm
from pycotmech.cot.task.relations import Question, WordPair
from tests.reference.planted.circuit import MATCH, Circuit, feature
from tests.reference.planted.words import BOS, CONCEPTS, CONTENT, ID, WORDS, ids


def said(n: int, *, seed: int = 0, sentences: int = 8) -> list[Question]:
    """n questions "a is b . c not d . ...": half of the verbs "not". Related and negated: subject and object, 2 apart;
    unrelated: an object and the next subject, 2 apart; across: a subject and the next object. Other verbs: "so" and "="."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        words = [CONTENT[i] for i in torch.randperm(len(CONTENT), generator=g)[: 2 * sentences].tolist()]
        verbs = [ID["is" if i < sentences // 2 else "not"] for i in torch.randperm(sentences, generator=g).tolist()]
        tokens = [BOS]
        for i, verb in enumerate(verbs):
            tokens += [words[2 * i], verb, words[2 * i + 1], ID["."]]

        def pair(label: int, a: int, b: int, tokens=tokens) -> WordPair:
            return WordPair(label, slice(a, a + 1), slice(b, b + 1), (WORDS[tokens[a]], WORDS[tokens[b]]))

        pairs = [pair(int(v == ID["not"]), 4 * i + 1, 4 * i + 3) for i, v in enumerate(verbs)]
        pairs += [pair(2, 4 * i + 3, 4 * i + 5) for i in range(sentences - 1)]
        across = [pair(2, 4 * i + 1, 4 * i + 7) for i in range(sentences - 1)]
        ids = torch.tensor(tokens)
        verb = (ids == ID["is"]) | (ids == ID["not"])
        others = tuple(ids.masked_fill(verb, ID[other]) for other in ("so", "="))
        out.append(Question(ids, tuple(pairs), tuple(across), others=others))
    return out


def chained(n: int, *, seed: int = 0) -> list[Question]:
    """n questions in fours, of two chains "a is so m . m is so b . b is so c ." each: the first four sentences in random
    order, then the last two; the subjects b are exchanged or not, and so are the m. Pairs: the m's as objects, and the c's."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for unit in range(n // 4):
        words = [ids(CONCEPTS)[i] for i in torch.randperm(8, generator=g).tolist()]
        a, m, b, c = words[:2], words[2:4], words[4:6], words[6:]
        order = torch.randperm(4, generator=g).tolist()
        for middle, last in ((0, 0), (0, 1), (1, 0), (1, 1)):
            lower = [(a[0], m[0]), (a[1], m[1]), (m[middle], b[0]), (m[1 - middle], b[1])]
            said = [*(lower[i] for i in order), (b[last], c[0]), (b[1 - last], c[1])]
            tokens = [BOS, *(t for x, y in said for t in (x, ID["is"], ID["so"], y, ID["."]))]
            pairs = []
            for t in (0, 1):
                at = 5 * said.index((a[t], m[t])) + 4
                for top in (0, 1):
                    end = 5 * (4 + top) + 4
                    label, names = int((t ^ middle ^ last) != top), (WORDS[m[t]], WORDS[c[top]])
                    pairs.append(WordPair(label, slice(at, at + 1), slice(end, end + 1), names))
            out.append(Question(torch.tensor(tokens), tuple(pairs), unit=unit))
    return out


def rooted(*, n_layers: int = 6) -> pcm.Model:
    """A model that notes at every c the m of its chain, after layer 3: each object notes its subject, the subject of a later
    sentence looks up what was noted where it was an object, and its object copies that."""
    c = Circuit(n_layers=n_layers, n_heads=4)
    previous, relate, look, pass_on = (0, 1), (1, 2), (2, 0), (3, 3)
    c.offset(previous, 1)
    c.copy(previous, "token", "previous")
    c.offset(relate, 3, query=feature("previous", [ID["so"]]))
    c.rest(relate)
    c.copy(relate, "token", "subject")
    c.match(look, "token", "token")
    c.score(look, feature("one"), feature("subject"), MATCH / 2)
    c.rest(look, 1.25 * MATCH)
    c.copy(look, "subject", "answer")
    c.offset(pass_on, 3, query=feature("previous", [ID["so"]]))
    c.rest(pass_on)
    c.copy(pass_on, "answer", "prior")
    return c.finish(torch.float32, "planted-root")


def apart_by_distance(n: int, *, classes: int = 2, seed: int = 0) -> list[Question]:
    """n questions of words in random order. Pairs: two words 3, 9, ... places apart, whose class is the distance."""
    g = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(n):
        words = [CONTENT[i] for i in torch.randperm(len(CONTENT), generator=g)[:24].tolist()]
        tokens = [BOS, *words]

        def pair(label: int, a: int, b: int, tokens=tokens) -> WordPair:
            return WordPair(label, slice(a, a + 1), slice(b, b + 1), (WORDS[tokens[a]], WORDS[tokens[b]]))

        pairs = [pair(label, 1 + i, 4 + 6 * label + i) for label in range(classes) for i in range(2)]
        across = [pair(classes - 1, 1 + i, 4 + 6 * (classes - 1) + i) for i in (3, 4)] if classes > 2 else []
        out.append(Question(torch.tensor(tokens), tuple(pairs), tuple(across)))
    return out
