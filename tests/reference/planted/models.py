"""The planted models, each a function that returns a `Planted`: what was planted where, and prompts it was planted for.

Every function takes `seed` (of what was not planted) and `dtype` (float32 or float64). Layers and heads are fixed defaults
that can be moved, so that no analysis can pass by knowing them; n_heads must divide the width (1, 2, 4, 8).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import LongTensor

import pycotmech as pcm
from tests.reference.planted.circuit import MATCH, SINK, WRITE, Circuit, feature
from tests.reference.planted.words import BOS, CONCEPTS, CONTENT, ID, NAMES, PROPERTIES, WORDS, ids

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt whose next word is known.

    tokens, corrupted: ids [T], BOS in front; equal length, different only at `differs`; the next word is `answer` after
    the one and `wrong` after the other. positions: by role ("last", "answer": the answer's occurrence, ...).
    segments: "question" and "generated"; all but the BOS. pairs: (later, earlier) positions by relation, where planted.
    """

    tokens: LongTensor = field(repr=False)
    corrupted: LongTensor = field(repr=False)
    answer: int
    wrong: int
    positions: dict[str, int]
    segments: dict[str, slice]
    pairs: dict[str, list[tuple[int, int]]] = field(default_factory=dict, repr=False)

    @property
    def differs(self) -> list[int]:
        return (self.tokens != self.corrupted).nonzero().flatten().tolist()

    @property
    def text(self) -> str:
        """Without the BOS, which the model puts in front of strings."""
        return " ".join(WORDS[i] for i in self.tokens.tolist()[1:])


@dataclass(frozen=True, eq=False)
class Planted:
    """A model and what is in it.

    heads: (layer, head) by role; all others are noise. looks: for the roles that look at one place from the last
    position, the role of that place in `Prompt.positions`. layers: other planted layers by role. table: the bigram that
    the weights know, word -> next word.
    """

    name: str
    model: pcm.Model
    heads: dict[str, Head]
    make: Callable[[torch.Generator], Prompt] = field(repr=False)
    looks: dict[str, str] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    table: dict[int, int] = field(default_factory=dict, repr=False)

    def prompts(self, n: int, seed: int = 0) -> list[Prompt]:
        """n prompts of one length, drawn with the seed."""
        generator = torch.Generator().manual_seed(seed)
        return [self.make(generator) for _ in range(n)]

    @property
    def noise_heads(self) -> list[Head]:
        cfg, planted = self.model.cfg, set(self.heads.values())
        return [(l, h) for l in range(cfg.n_layers) for h in range(cfg.n_heads) if (l, h) not in planted]


# ---- (a) induction -------------------------------------------------------------------------------------------------


def induction(
    *,
    previous: Head = (0, 1),
    writer: Head = (1, 2),
    n_layers: int = 3,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """ "... A B ... A" -> B: a previous-token head writes A at B; a later one looks from A to where A came before."""
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    _previous_token(c, previous)
    _induction(c, writer, WRITE)
    return Planted(
        "induction",
        c.finish(dtype, "planted-induction"),
        {"previous": previous, "writer": writer},
        _repeated_word,
        looks={"writer": "answer"},
    )


def _previous_token(c: Circuit, head: Head) -> None:
    c.offset(head, 1)
    c.copy(head, "token", "previous")


def _induction(c: Circuit, head: Head, weight: float) -> None:
    c.match(head, "token", "previous")
    c.rest(head)
    c.copy(head, "token", "answer", weight=weight)


def _repeated_word(g: torch.Generator, length: int = 20) -> Prompt:
    """Different words, "... A B ... C D ...", then A; corrupted, A and C change places, so that D follows A."""
    words = _draw(CONTENT, length, g)
    a, c = sorted(_draw(list(range(0, length - 1, 2)), 2, g))
    if torch.rand((), generator=g) < 0.5:
        a, c = c, a
    tokens = [BOS, *words, words[a]]
    corrupted = tokens.copy()
    corrupted[a + 1], corrupted[c + 1] = tokens[c + 1], tokens[a + 1]
    positions = {"last": length + 1, "earlier": a + 1, "answer": a + 2}
    return _prompt(tokens, corrupted, words[a + 1], words[c + 1], positions, generated=length + 1)


# ---- (b) a copy head -----------------------------------------------------------------------------------------------


def copying(
    *,
    writer: Head = (1, 1),
    decoy: Head = (1, 3),
    n_layers: int = 3,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """ "... X ... =" -> X, the only concept: one head looks at it and writes it.

    The decoy looks at the same place and writes what nothing reads: attention alone does not tell them apart.
    """
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    for head in (writer, decoy):
        c.score(head, feature("token", [ID["="]]), feature("token", ids(CONCEPTS)), MATCH)
        c.rest(head)
    c.copy(writer, "token", "answer", weight=WRITE)
    c.junk(decoy, weight=WRITE / 2)
    heads = {"writer": writer, "decoy": decoy}
    looks = {"writer": "answer", "decoy": "answer"}
    return Planted("copying", c.finish(dtype, "planted-copying"), heads, _one_concept, looks=looks)


def _one_concept(g: torch.Generator, length: int = 14) -> Prompt:
    """Names and properties with one concept among them, then "="."""
    words = _draw(ids((*NAMES, *PROPERTIES)), length, g)
    answer, wrong = _draw(ids(CONCEPTS), 2, g)
    at = int(torch.randint(length, (1,), generator=g))
    tokens = [BOS, *words[:at], answer, *words[at:], ID["="]]
    corrupted = [wrong if t == answer else t for t in tokens]
    return _prompt(tokens, corrupted, answer, wrong, {"last": length + 2, "answer": at + 1}, generated=length + 2)


# ---- (c) what was known against what stands in the prompt ----------------------------------------------------------


def bigram(
    *,
    table: int | None = 1,
    previous: Head = (0, 2),
    writer: Head = (4, 1),
    n_layers: int = 6,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """An early MLP knows what follows each word; a later head copies what followed it in the prompt, and is louder.

    table: the layer of that MLP; None: the embedding and the unembedding know it, as of pretrained models they do.

    On repeated prompts the lens shows the known next word behind layers table .. writer - 1, the prompt's from the
    writer's layer on: layers["rift"] is the first at which the prompt wins.
    """
    if table is not None and not table < writer[0]:
        raise ValueError("table: its layer must lie below the writer's")
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    g = torch.Generator().manual_seed(seed + 1)
    order = _draw(CONTENT, len(CONTENT), g)
    successor = dict(zip(order, order[1:] + order[:1], strict=True))
    if table is None:
        c.readout(successor)
    else:
        c.table(table, "token", "prior", successor)
    _previous_token(c, previous)
    _induction(c, writer, 1.0)
    return Planted(
        "bigram",
        c.finish(dtype, "planted-bigram"),
        {"previous": previous, "writer": writer},
        lambda generator: _cycle(generator, successor),
        looks={"writer": "answer"},
        layers={"rift": writer[0]} | ({} if table is None else {"table": table}),
        table=successor,
    )


def _cycle(g: torch.Generator, known: dict[int, int], length: int = 10) -> Prompt:
    """Different words, none followed by what is known to follow it, and half of them once more.

    Corrupted: the word that comes last changes places with another in the first round, whose successor then follows.
    """
    while True:
        words = _draw(CONTENT, length, g)
        if not {known[a] for a in words} & set(words):
            break
    a, c = length // 2 - 1, length - 2
    tokens = [BOS, *words, *words[: a + 1]]
    corrupted = tokens.copy()
    corrupted[a + 1], corrupted[c + 1] = tokens[c + 1], tokens[a + 1]
    positions = {"last": len(tokens) - 1, "earlier": a + 1, "answer": a + 2}
    return _prompt(tokens, corrupted, words[a + 1], words[c + 1], positions, generated=length + 1)


# ---- (d) parallel writers ------------------------------------------------------------------------------------------


def parallel(
    *,
    marker: Head = (0, 3),
    question: Head = (1, 0),
    generated: Head = (3, 2),
    n_layers: int = 4,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    writers: Sequence[str] = ("question", "generated"),
    other: Literal["", "passed by", "written"] = "",
) -> Planted:
    """ "... X ... so ... X ... =" -> X, written twice: by one head from the question, by a higher one from the text after "so".

    Either is enough. The marker head tells every position whether "so" stands before it.
    writers: which of the two are there. other: whether another concept stands beside X in each part. It is passed by; or both
    heads write the same four concepts whatever the prompt is, and X and the other are two of these.
    """
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    c.score(marker, feature("one"), feature("token", [ID["so"]]), MATCH)
    c.rest(marker)
    c.write(marker, feature("token", [ID["so"]]), feature("after_so"))
    looked_at = CONCEPTS[::2] if other == "passed by" else CONCEPTS
    ask, concept = feature("token", [ID["="]]), feature("token", ids(looked_at))
    heads = {"question": question, "generated": generated}
    heads = {name: heads[name] for name in writers}
    for name, head in heads.items():
        if other == "written":
            c.rest(head)
            c.write(head, feature("token", [BOS]), feature("answer", ids(CONCEPTS[:4])), weight=WRITE)
            continue
        c.score(head, ask, concept, MATCH)
        c.score(head, ask, feature("after_so"), MATCH if name == "generated" else -MATCH)
        c.copy(head, "token", "answer", weight=WRITE)
        # Of the second above a concept before "so" or any word behind it; below a concept behind it.
        c.rest(head, 1.5 * MATCH if name == "generated" else SINK)
    return Planted(
        "parallel",
        c.finish(dtype, "planted-parallel"),
        {"marker": marker, **heads},
        lambda g: _question_and_text(g, other=other),
        looks={name: f"answer_{name}" for name in heads},
    )


def _question_and_text(g: torch.Generator, length: int = 8, other: str = "") -> Prompt:
    """Names and properties, a concept, "so", others, the same concept, "="; with `other` another concept at the beginning of
    each part."""
    words = _draw(ids((*NAMES, *PROPERTIES)), 2 * length, g)
    answer, wrong, beside = _draw(ids(CONCEPTS), 3, g)
    if other == "passed by":
        (answer, wrong), (beside,) = _draw(ids(CONCEPTS[::2]), 2, g), _draw(ids(CONCEPTS[1::2]), 1, g)
    if other == "written":
        (answer, beside), (wrong,) = _draw(ids(CONCEPTS[:4]), 2, g), _draw(ids(CONCEPTS[4:]), 1, g)
    first, second = (int(i) for i in torch.randint(length, (2,), generator=g))
    head, tail = words[:length], words[length:]
    if other:
        head[0] = tail[0] = beside
        first, second = max(first, 1), max(second, 1)
    tokens = [BOS, *head[:first], answer, *head[first:], ID["so"], *tail[:second], answer, *tail[second:], ID["="]]
    corrupted = [wrong if t == answer else t for t in tokens]
    so = length + 2
    places = {"last": len(tokens) - 1, "answer_question": first + 1, "so": so, "answer_generated": so + 1 + second}
    return _prompt(tokens, corrupted, answer, wrong, {**places, "answer": places["answer_generated"]}, generated=so)


# ---- (e) along "A is B" --------------------------------------------------------------------------------------------


def relation(
    *,
    previous: Head = (0, 0),
    relate: Head = (1, 2),
    writer: Head = (2, 1),
    also: tuple[Head, ...] = (),
    n_layers: int = 4,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """ "A is B . C not D . ... who B" -> A: in B's place a head looks at A, if they are related by "is", and notes it there.

    From "A not B" it looks away, at the first token. The writer looks from the last B to the B that has a subject noted.
    also: heads that look as `relate` does and write what nothing reads.
    """
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    _previous_token(c, previous)
    for head in (relate, *also):
        _back_after(c, head, "is")
    for head in also:
        c.junk(head, weight=WRITE / 2)
    c.copy(relate, "token", "subject")
    c.match(writer, "token", "token")
    c.score(writer, feature("one"), feature("subject"), MATCH / 2)
    c.rest(writer, 3 * MATCH)
    c.score(writer, feature("previous", [ID["who"]]), feature("token", [BOS]), -2.5 * MATCH)
    c.copy(writer, "subject", "answer", weight=WRITE)
    return Planted(
        "relation",
        c.finish(dtype, "planted-relation"),
        {"previous": previous, "relate": relate, "writer": writer, **{f"also {i}": head for i, head in enumerate(also)}},
        _sentences,
        looks={"writer": "object"},
    )


def looking_back(
    *,
    previous: Head = (0, 0),
    back: Head = (1, 2),
    n_layers: int = 4,
    n_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Planted:
    """Sentences as for `relation`: from an object a head looks at the subject of its sentence, whatever the verb is."""
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    _previous_token(c, previous)
    _back_after(c, back, "is", "not", "so", "=")
    c.junk(back, weight=WRITE / 2)
    return Planted("looking_back", c.finish(dtype, "planted-looking-back"), {"previous": previous, "back": back}, _sentences)


def _back_after(c: Circuit, head: Head, *verbs: str) -> None:
    """After one of these words a head looks two positions back; elsewhere it rests."""
    c.offset(head, 2, query=feature("previous", [ID[verb] for verb in verbs]))
    c.rest(head)


def _sentences(g: torch.Generator, related: int = 4, negated: int = 2) -> Prompt:
    """Sentences in random order, and the question who is the object of one with "is"."""
    n = related + negated
    subjects, objects = _draw(ids(NAMES), n + 1, g), _draw(ids((*CONCEPTS, *PROPERTIES)), n, g)
    *subjects, other = subjects
    verbs = [("is", "not")[i >= related] for i in _draw(list(range(n)), n, g)]
    tokens = [BOS]
    for a, verb, b in zip(subjects, verbs, objects, strict=True):
        tokens += [a, ID[verb], b, ID["."]]
    asked = _draw([i for i in range(n) if verbs[i] == "is"], 1, g)[0]
    end = len(tokens)
    tokens += [ID["who"], objects[asked]]
    corrupted = [other if i == 4 * asked + 1 else t for i, t in enumerate(tokens)]
    pairs = {
        "related": [(4 * i + 3, 4 * i + 1) for i in range(n) if verbs[i] == "is"],
        "negated": [(4 * i + 3, 4 * i + 1) for i in range(n) if verbs[i] == "not"],
        "unrelated": [(4 * i + 3, 4 * j + 1) for i in range(n) for j in range(i)],
    }
    positions = {"last": end + 1, "answer": 4 * asked + 1, "object": 4 * asked + 3}
    return _prompt(tokens, corrupted, subjects[asked], other, positions, generated=end, pairs=pairs)


# ---- (f) by layer, words of the prompt or none of them -------------------------------------------------------------


def abiding(
    *, first: int = 3, n_layers: int = 6, n_heads: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Planted:
    """Prompts as for `copying`: all heads below layer `first` write "who", which stands in no prompt, softly; all heads from
    it on copy the concept. layers["rise"] is `first`."""
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    heads = {}
    for layer in range(n_layers):
        for h in range(n_heads):
            head = heads[f"{'copy' if layer >= first else 'other'} {layer}.{h}"] = (layer, h)
            c.rest(head)
            if layer < first:
                c.write(head, feature("token", [BOS]), feature("prior", [ID["who"]]), weight=0.05)
            else:
                c.score(head, feature("token", [ID["="]]), feature("token", ids(CONCEPTS)), MATCH)
                c.copy(head, "token", "answer", weight=WRITE / 2)
    return Planted("abiding", c.finish(dtype, "planted-abiding"), heads, _one_concept, layers={"rise": first})


# ---- (g) nothing ---------------------------------------------------------------------------------------------------


def nothing(
    *, silent: bool = False, n_layers: int = 4, n_heads: int = 4, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Planted:
    """The same shape, and only noise; silent: attention writes nothing at all. Prompts as for `parallel`."""
    c = Circuit(n_layers=n_layers, n_heads=n_heads, seed=seed)
    model = c.finish(dtype, "planted-nothing")
    if silent:
        for layer in model.hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return Planted("nothing", model, {}, _question_and_text)


# ---- drawing -------------------------------------------------------------------------------------------------------


def _draw(items: list[int], n: int, g: torch.Generator) -> list[int]:
    """n different items, in random order."""
    return [items[i] for i in torch.randperm(len(items), generator=g)[:n].tolist()]


def _prompt(tokens, corrupted, answer, wrong, positions, *, generated: int, pairs=None) -> Prompt:
    segments = {"question": slice(1, generated), "generated": slice(generated, len(tokens))}
    return Prompt(torch.tensor(tokens), torch.tensor(corrupted), answer, wrong, positions, segments, pairs or {})  # type: ignore[arg-type]
