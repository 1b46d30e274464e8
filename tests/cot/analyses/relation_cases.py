"""Questions in the vocabulary of the planted models, in which no word and no distance tells a class."""

import torch

from pycotmech.cot.task.relations import Question, WordPair
from tests.reference.planted.words import BOS, CONTENT, ID, WORDS


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
