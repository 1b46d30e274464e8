"""Planted circuits as traces: sentences of four words, one of which (the k-th) holds the concept that the answer is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import pycotmech as pcm
from pycotmech.traces import Trace
from tests.reference.planted.circuit import MATCH, WRITE, Circuit, feature
from tests.reference.planted.words import BOS, CONCEPTS, ID, NAMES, PROPERTIES, ids

WRITER, RECEIVER = (2, 1), (1, 3)
S = 12


@dataclass(frozen=True)
class Planted:
    """A model, traces of it, and for each trace the sentence that holds the concept."""

    model: pcm.Model
    traces: list[Trace]
    where: list[int]


def copies_from_the_chain(n: int, *, seed: int = 0) -> Planted:
    """From "=" the writer looks at the only concept, in sentence k, and writes it; every token attends to it in the receiver,
    which writes what nothing reads. The prompt holds no concept."""
    c = Circuit(n_layers=4, n_heads=4, seed=seed)
    c.score(WRITER, feature("token", [ID["="]]), feature("token", ids(CONCEPTS)), MATCH)
    c.rest(WRITER)
    c.copy(WRITER, "token", "answer", weight=WRITE)
    c.score(RECEIVER, feature("one"), feature("token", ids(CONCEPTS)), MATCH)
    c.rest(RECEIVER)
    c.junk(RECEIVER, weight=0.05)
    return Planted(c.finish(torch.float32, "planted-chain"), *_traces(n, seed, in_prompt=False))


def ignores_its_chain(n: int, *, seed: int = 0) -> Planted:
    """As above, but the writer looks at the concept in the prompt only: the marker head tells every token whether "so", with
    which the reasoning begins, stands before it. The same concept stands in sentence k as well."""
    marker = (0, 3)
    c = Circuit(n_layers=4, n_heads=4, seed=seed)
    c.score(marker, feature("one"), feature("token", [ID["so"]]), MATCH)
    c.rest(marker)
    c.write(marker, feature("token", [ID["so"]]), feature("after_so"))
    c.score(WRITER, feature("token", [ID["="]]), feature("token", ids(CONCEPTS)), MATCH)
    c.score(WRITER, feature("token", [ID["="]]), feature("after_so"), -MATCH)
    c.rest(WRITER)
    c.copy(WRITER, "token", "answer", weight=WRITE)
    return Planted(c.finish(torch.float32, "planted-prompt"), *_traces(n, seed, in_prompt=True))


def _traces(n: int, seed: int, *, in_prompt: bool) -> tuple[list[Trace], list[int]]:
    g = torch.Generator().manual_seed(seed)

    def draw(items: tuple[str, ...], k: int) -> list[int]:
        return [ids(items)[i] for i in torch.randperm(len(items), generator=g)[:k].tolist()]

    concepts = draw(CONCEPTS, n)
    traces, where = [], []
    for i, answer in enumerate(concepts):
        k = int(torch.randint(1, S - 4, (1,), generator=g))
        tokens = [BOS, ID["who"], *draw(NAMES, 1), *([answer] if in_prompt else draw(PROPERTIES, 1)), ID["so"]]
        begin, spans = len(tokens), []
        for j in range(S):
            words = [*draw(NAMES, 1), ID["is"], *([answer] if j == k else draw(PROPERTIES, 1)), ID["."]]
            spans.append((len(tokens), len(tokens) + 4))
            tokens += words
        tokens += [ID["="], answer]
        assert spans[0][0] == begin
        traces.append((tokens, spans, f"planted {i}"))
        where.append(k)
    made = [_of(*t) for t in traces]
    return made, where


def _of(tokens: list[int], spans: list[tuple[int, int]], name: str) -> Trace:
    from pycotmech.traces.trace import Sentence

    ids_ = torch.tensor(tokens)
    sentences = tuple(Sentence(a, b, " ".join(str(t) for t in tokens[a:b])) for a, b in spans)
    return Trace(ids_, sentences, slice(len(tokens) - 1, len(tokens)), name=name)
