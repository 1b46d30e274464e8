"""Makes examples of the fictional-ontology task (PrOntoQA, Saparov & He 2023; arXiv 2402.18312, sections on data)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import torch

from pycotmech._choices import check_choice
from pycotmech.cot.task.chat import Template, check_message, read_chat
from pycotmech.cot.task.examples import Example, Examples, Step, step_kind
from pycotmech.cot.task.pools import Pools, TooFewWords, pools
from pycotmech.cot.task.shape import Shape
from pycotmech.cot.task.tokens import Encoded, Encoder, Form, Lead, before, same_length, same_start
from pycotmech.cot.task.vocabulary import Ontology, Word
from pycotmech.cot.task.wording import (
    DEFAULT_ORDER,
    FRAMES,
    QUANTIFIERS,
    Occurrence,
    Order,
    Premise,
    Rule,
    Style,
    frame,
    render,
    write,
)
from pycotmech.model.arguments import check_integer

Definition = Literal["exact", "paper"]
_TRIES = 500


class _Failed(Exception):
    """A draw that cannot be used, with the reason."""


class _Problem(NamedTuple):
    words: dict[str, Word]
    premises: list[Premise]
    rules: list[Rule]
    query: str


class _Deck:
    """Words for the few-shot block: none twice before all were used once, and never twice in one shot."""

    def __init__(self, rng: random.Random, words: tuple[Word, ...]):
        self.rng, self.words, self.left = rng, list(words), []

    def deal(self, n: int) -> list[Word]:
        if len(self.left) < n:
            self.left = list(self.words)
        self.rng.shuffle(self.left)
        return self.left[:n]

    def discard(self, used: list[Word]) -> None:
        self.left = [word for word in self.left if word not in used]


def _few_shot(shape: Shape, words: Pools, shots: int, seed: int) -> tuple[str, str]:
    """The few-shot block and the last of its shots. Labels alternate, beginning with a random one."""
    rng = random.Random(f"{seed}/shots")
    decks = {kind: _Deck(rng, pool.shots) for kind, pool in words.items()}
    roles = shape.roles()
    first = rng.random() < 0.5
    block: list[str] = []
    for i in range(shots):
        for attempt in range(_TRIES):
            if attempt and attempt % 50 == 0:  # what is left of the decks may not fit together
                for deck in decks.values():
                    deck.left = []
            drawn = {kind: decks[kind].deal(len(keys)) for kind, keys in roles.items()}
            cast = {key: word for kind, keys in roles.items() for key, word in zip(keys, drawn[kind], strict=True)}
            rules, others = shape.rules(rng), shape.others(rng)
            premises = shape.ordered(rng, rules, others)
            if shape.consistent(cast, premises):
                break
        else:
            raise TooFewWords(f"no demonstration could be made from the words left for the shots (shots={shots})")
        for kind, deck in decks.items():
            deck.discard(drawn[kind])
        wrong = rng.choice(shape.false_queries()) if shape.competing else "q"
        item = write(shape.style, cast, premises, rules, "p" if first ^ (i % 2 == 1) else wrong)
        prompt, solution = frame(shape.style, item)
        f = FRAMES[shape.style]
        block.append(render(prompt, cast)[0] + f.joint + render(solution, cast)[0] + f.end)
    return "".join(block), block[-1] if block else ""


def _draw(shape: Shape, words: Pools, rng: random.Random, label: bool) -> _Problem:
    """Words for a test item, all with different first tokens."""
    cast: dict[str, Word] = {}
    for kind, keys in shape.roles().items():
        pool = words[kind]
        taken: list[Word] = []
        for word in rng.sample(pool.items, len(pool.items)):
            if len(taken) == len(keys):
                break
            # "is a" or "is an" must not give the concept away.
            if kind == "concept" and taken and shape.style in QUANTIFIERS and word.article != taken[0].article:
                continue
            if not any(same_start(pool.cuts[word], pool.cuts[w]) for w in taken):
                taken.append(word)
        if len(taken) < len(keys):
            raise _Failed(f"too few words of kind {kind!r} begin with different tokens")
        cast.update(zip(keys, taken, strict=True))
    rules, others = shape.rules(rng), shape.others(rng)
    premises = shape.ordered(rng, rules, others)
    if not shape.consistent(cast, premises):
        raise _Failed("a rule of the false ontology is true of the world")
    query = "p" if label else rng.choice(shape.false_queries())
    if query != "q":
        del cast["q"]
    return _Problem(cast, premises, rules, query)


def _replacement(shape: Shape, words: Pools, rng: random.Random, problem: _Problem, key: str, used: list[Form]) -> Word:
    """A word of the same kind that is cut like the role's word in the forms in use and is nowhere in the item."""
    old = problem.words[key]
    pool = words[old.kind]
    present = [word for word in problem.words.values() if word.kind == old.kind]
    for word in rng.sample(pool.items, len(pool.items)):
        if word in present or not same_length(pool.cuts[word], pool.cuts[old], used):
            continue
        if any(same_start(pool.cuts[word], pool.cuts[other]) for other in present):
            continue
        if shape.style in QUANTIFIERS and old.kind == "concept" and word.article != old.article:
            continue
        if shape.consistent({**problem.words, key: word}, problem.premises):
            return word
    raise _Failed(f"no word can replace {old.singular!r}")


def _exchange(text: str, places: Iterable[Occurrence], word: Word) -> str:
    """The text with another word at these places, in the same number and case."""
    for place in sorted(places, key=lambda o: o.start, reverse=True):
        written = word.written(plural=place.slot.plural, capital=place.slot.capital)
        text = text[: place.start] + written + text[place.stop :]
    return text


def _first_written_alike(places: list[Occurrence], answer: Occurrence) -> Occurrence:
    """The authors' choice: scanning back from the answer, the nearest word that begins as the answer does."""
    return next(
        place
        for place in reversed(places)
        if place.stop <= answer.start and place.slot.key == answer.slot.key and place.slot.capital == answer.slot.capital
    )


def _lead(text: str, start: int, chat: tuple[int, int] | None) -> Lead:
    """chat: where the user's message and the solution begin, if a chat template is around them."""
    if chat is not None and start in chat:
        return "message" if start == chat[0] else "turn"
    if start == 0:
        return "start"
    return "line" if text[start - 1] == "\n" else "space"


def _aligned(clean: Encoded, other: Encoded, spans: list[slice]) -> bool:
    if len(clean.ids) != len(other.ids):
        return False
    allowed = {position for span in spans for position in range(span.start, span.stop)}
    return all(a == b or i in allowed for i, (a, b) in enumerate(zip(clean.ids, other.ids, strict=True)))


class _Maker:
    def __init__(self, shape: Shape, encoder: Encoder, shots: int, seed: int, definition: Definition):
        self.shape, self.encoder, self.seed, self.definition = shape, encoder, seed, definition
        self.pools = pools(
            encoder,
            shape.needs(),
            style=shape.style,
            ontology=shape.ontology,
            order=shape.order,
            shots=shots,
            seed=seed,
        )
        self.few_shot, self.anchor = _few_shot(shape, self.pools, shots, seed)
        if encoder.chat is not None:
            self.few_shot = encoder.chat.front + self.few_shot
        self.shared: list[int] | None = None
        self.seen: set[str] = set()

    def example(self, index: int) -> Example:
        rng = random.Random(f"{self.seed}/item/{index}")
        # Two neighbours have one True and one False, in random order: balanced without looking ahead.
        label = (random.Random(f"{self.seed}/label/{index // 2}").random() < 0.5) ^ (index % 2 == 1)
        why = ""
        for _ in range(_TRIES):
            try:
                return self.attempt(index, rng, label)
            except _Failed as failure:
                why = str(failure)
        raise TooFewWords(f"no example {index} could be made in {_TRIES} draws; the last failed because {why}")

    def attempt(self, index: int, rng: random.Random, label: bool) -> Example:
        shape, encoder = self.shape, self.encoder
        problem = _draw(shape, self.pools, rng, label)
        cast = problem.words
        item = write(shape.style, cast, problem.premises, problem.rules, problem.query)
        prompt_pieces, solution_pieces = frame(shape.style, item)
        prompt, places = render(prompt_pieces, cast, len(self.few_shot))
        prompt = self.few_shot + prompt
        joint, chat, turns = FRAMES[shape.style].joint, encoder.chat, None
        if chat is not None:  # no white space between the message and the template's text: some templates drop it
            prompt, joint = prompt.rstrip() + chat.opening, chat.joint
            turns = (len(chat.front), len(prompt) + len(joint))
        chain_at = len(prompt) + len(joint)
        chain, answers = render(solution_pieces, cast, chain_at)
        text = prompt + joint + chain
        places = places + answers
        question, query = render(item.question, cast)[0], render(item.query, cast)[0]
        if f"{question} {query}" in self.seen:
            raise _Failed("the question was used before: ask for fewer examples")

        new: dict[str, Word] = {}
        for key in dict.fromkeys(o.slot.key for o in answers):
            used = [Form(_lead(text, o.start, turns), o.slot.plural, o.slot.capital) for o in places if o.slot.key == key]
            new[key] = _replacement(shape, self.pools, rng, problem, key, used)
        renamed = {key: _exchange(text, (o for o in places if o.slot.key == key), w) for key, w in new.items()}
        if self.definition == "exact":
            changed = [renamed[o.slot.key] for o in answers]
            where = [[o for o in places if o.slot.key == a.slot.key] for a in answers]
        else:
            where = [[_first_written_alike(places, a)] for a in answers]
            changed = [_exchange(text, w, new[a.slot.key]) for w, a in zip(where, answers, strict=True)]

        texts = list(dict.fromkeys([text, *renamed.values(), *changed]))
        encoded = dict(zip(texts, encoder.many(texts), strict=True))
        clean = encoded[text]
        if encoder.unknown is not None and encoder.unknown in clean.ids[clean.begin :]:
            unknown = clean.ids.index(encoder.unknown, clean.begin) - clean.shift
            word = text[clean.starts[unknown] : clean.stops[unknown]]
            raise TooFewWords(f"the tokenizer does not know {word!r}, which style {shape.style!r} needs")
        spans = {o: clean.word(o.start, o.stop) for o in places}
        if not all(clean.isolated(o.start, o.stop) for o in places):
            raise _Failed("the tokenizer merges a word with its neighbours")
        for other, at in [*((renamed[k], [o for o in places if o.slot.key == k]) for k in new), *zip(changed, where)]:
            if not _aligned(clean, encoded[other], [spans[o] for o in at]):
                raise _Failed("the tokenizer cuts a replaced word differently inside the prompt")
        first = clean.at_or_after(len(self.few_shot))
        if self.shared is None:
            self.shared = clean.ids[:first]
        elif clean.ids[:first] != self.shared:
            raise _Failed("the tokenizer merges the end of the few-shot block with what follows")

        standalone = self.standalone(text, answers)
        generated = spans[answers[0]].start
        ids = {t: torch.tensor(e.ids) for t, e in encoded.items()}
        steps = []
        for i, answer in enumerate(answers):
            span, key = spans[answer], answer.slot.key
            # The corrupted text differs in length by characters; the token position is the same.
            other = encoded[changed[i]]
            cut = other.stops[span.start - 1 - other.shift] if span.start > other.shift else 0
            differs = tuple(p for p in range(first, span.start) if clean.ids[p] != other.ids[p])
            wrong = encoded[renamed[key]].ids[span]
            end = before(text, answer.start)
            steps.append(
                Step(
                    index=i,
                    kind=step_kind(i),
                    prefix_text=text[chain_at:end] if end > chain_at else "",
                    text=text[:end],
                    corrupted_text=changed[i][:cut],
                    clean=ids[text][: span.start],  # type: ignore[arg-type]
                    corrupted=ids[changed[i]][: span.start],  # type: ignore[arg-type]
                    answer=clean.ids[span.start],
                    wrong=wrong[0],
                    answer_tokens=tuple(clean.ids[span]),
                    wrong_tokens=tuple(wrong),
                    answer_word=text[answer.start : answer.stop],
                    wrong_word=new[key].written(plural=answer.slot.plural, capital=answer.slot.capital),
                    replaced=(cast[key].singular, new[key].singular),
                    differs=differs,
                    occurrences=tuple(spans[o] for o in places if o.slot.key == key and o.stop <= answer.start),
                    segments=_segments(clean.begin, first, generated, span.start),
                    answer_span=span,
                    standalone=standalone[i],
                )
            )
        self.seen.add(f"{question} {query}")
        return Example(
            index=index,
            question=question,
            query=query,
            chain=chain,
            label=item.label,
            words={key: word.singular for key, word in cast.items()},
            steps=tuple(steps),
            prompt=prompt,
            full_text=text,
            full_ids=ids[text],  # type: ignore[arg-type]
            label_span=clean.word(len(text) - len(str(item.label)), len(text)),
            segments=_segments(clean.begin, first, generated, len(clean.ids)),
        )

    def standalone(self, text: str, answers: list[Occurrence]) -> list[bool]:
        """Whether the text before each answer, tokenised alone, gives the ids it has in the full text.

        Whether a tokenizer merges across a cut does not depend on the text hundreds of characters before, so the last
        shot is context enough.
        """
        skip = len(self.few_shot) - len(self.anchor)
        tail = text[skip:]
        joint, *parts = self.encoder.many([tail, *(text[skip : before(text, a.start)] for a in answers)])
        ends = [joint.word(a.start - skip, a.stop - skip).start for a in answers]
        return [part.ids == joint.ids[:end] for part, end in zip(parts, ends, strict=True)]


def _segments(begin: int, question: int, generated: int, end: int) -> dict[str, slice]:
    return {
        "few_shot": slice(begin, question),
        "question": slice(question, generated),
        "generated": slice(generated, end),
    }


def make_examples(
    n: int,
    *,
    tokenizer: Any,
    hops: int = 2,
    shots: int = 8,
    ontology: Ontology = "fictional",
    style: Style = "every",
    order: Order | None = None,
    distractors: int = 0,
    competing: int = 0,
    seed: int = 0,
    bos: bool | None = None,
    definition: Definition = "exact",
    template: Template | None = None,
    think: bool = False,
) -> Examples:
    """Make n examples of the fictional-ontology task, each with 4 * hops + 2 steps and a counterfactual for every step.

    tokenizer: a fast Hugging Face tokenizer.
    hops: rules in the chain, the last of them about the property.
    shots: demonstrations before each problem; one block per call, shared by all examples, balanced between True and False.
    ontology: "fictional" (made-up concepts) or "false" (real kinds, related wrongly).
    style: "every": "Every lempus is a tumpus. ... Answer: Max is a lempus. Since every lempus is a tumpus, Max is a
        tumpus. ..."; one line per shot. "paper": the wording of arXiv 2402.18312, "Lempuses are tumpuses. ... Let us
        think step by step.", number varying by sentence, in "### Input:" and "### Response:" frames. "each": "Facts: ...
        Each lempus is a tumpus. ... Reasoning: Max is a lempus. Because each lempus is a tumpus, ...". "all": "All lempuses
        are tumpuses. ... Solution: Max is a lempus. As all lempuses are tumpuses, Max is a tumpus. ..."
    order: of the premises, in shots and item alike. "forward": rules in order of use, then the membership. "backward":
        rules in reverse order of use, then the membership (the paper's data). "membership_first": the membership, then
        rules in order of use; SmolLM2-135M binds the first concept far better so. "shuffled". None: membership first,
        backward for style "paper".
    distractors: premises about other words, in shots and item alike, forming a chain that competes with the real one:
        its property rule, then its other rules, then its membership, then a second such chain.
    competing: whole chains about other entities, in shots and item alike, each as long as the real one and ending in a
        property of its own. Their sentences stand anywhere between those of the real chain, in the same order ("shuffled":
        in any). A query whose answer is False asks for the end of one of them, so that following it gives the wrong answer.
    bos: whether prompts begin with a BOS. None: as `tokenizer("x")` does, or as the chat template does if there is one.
    definition: "exact": the corrupted prompt exchanges every occurrence of the step's answer word outside the shots, so
        that it is consistent and another answer follows from it. "paper": it exchanges one word, the nearest before
        the answer that begins like it, as the authors did; the premises may then contradict one another, and `wrong` is
        the replacement. Both keep type, number, case and token count.
    template: "chat" puts the prompt into the tokenizer's chat template (`apply_chat_template`): shots and problem are one
        user's message, in the wording of the style, and the solution is the beginning of the assistant's turn. Shots are no
        turns of their own, since templates of reasoning models drop the reasoning of earlier turns. None: plain text.
    think: whether the solution stands in a `<think>` block, opened before its first word and not closed (template="chat").

    Words of items and shots are disjoint (concepts, properties and entities). All words of one kind in an item begin with
    different tokens. In style "every" and "each" all examples of a call have one length where the tokenizer leaves enough words
    of equal length. Labels are balanced. Example i depends on the seed and on the examples before it, not on n.

    Errors: TypeError or ValueError naming the argument. ValueError if the tokenizer leaves too few words that can replace
    one another; the message names settings that would do. Cost: about 6 tokenisations of the whole text per example ("paper":
    about 15), no forward pass.
    """
    n, hops, shots = check_integer(n, "n", 1), check_integer(hops, "hops", 1), check_integer(shots, "shots", 0)
    distractors, competing = check_integer(distractors, "distractors", 0), check_integer(competing, "competing", 0)
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed: got {seed!r} of type {type(seed).__name__}; expected an integer")
    seed = int(seed)
    check_choice("ontology", ontology, get_args(Ontology))
    check_choice("style", style, get_args(Style))
    check_choice("definition", definition, get_args(Definition))
    if order is None:
        order = DEFAULT_ORDER[style]
    check_choice("order", order, get_args(Order))
    encoder = _encoder(tokenizer, bos, template, think)
    shape = Shape(hops, distractors, ontology, style, order, competing)
    try:
        maker = _Maker(shape, encoder, shots, seed, definition)
        examples = tuple(maker.example(i) for i in range(n))
    except TooFewWords as few:
        setting = f"style={style!r}, ontology={ontology!r}, shots={shots}, hops={hops}, distractors={distractors}"
        setting += f", competing={competing}" if competing else ""
        raise TooFewWords(f"tokenizer: {few} ({setting}). {_what_would_do(shape, encoder, shots, seed, definition)}") from None
    if encoder.chat is not None:
        for example in examples:
            message = example.prompt.removeprefix(encoder.chat.front).removesuffix(encoder.chat.opening)
            check_message(tokenizer, encoder.chat, think, message)
    return Examples(
        items=examples,
        hops=hops,
        shots=shots,
        ontology=ontology,
        style=style,
        order=order,
        distractors=distractors,
        seed=seed,
        definition=definition,
        bos=encoder.bos,
        few_shot=maker.few_shot,
        shared_ids=torch.tensor(maker.shared, dtype=torch.long),  # type: ignore[arg-type]
        competing=competing,
        template=template,
        think=think,
    )


def _encoder(tokenizer: Any, bos: bool | None, template: Template | None, think: bool) -> Encoder:
    """The tokenizer with the chat template that is asked for, whose own decision about BOS counts."""
    if think not in (True, False):
        raise TypeError(f"think must be True or False, got {think!r}")
    if template is None:
        if think:
            raise ValueError("think: got True without a template; expected template='chat', whose turn the block is in")
        return Encoder(tokenizer, bos)
    check_choice("template", template, get_args(Template))
    Encoder(tokenizer, bos)  # checks both
    chat = read_chat(tokenizer, think)
    if chat.bos and bos is False:
        raise ValueError("bos: got False, but the tokenizer's chat template writes a BOS; expected None or True")
    return Encoder(tokenizer, chat.bos or bool(bos), chat)


def _what_would_do(shape: Shape, encoder: Encoder, shots: int, seed: int, definition: Definition) -> str:
    """Settings near those asked for with which a first example can be made."""
    good = []
    for style in get_args(Style):
        for ontology in get_args(Ontology):
            for fewer in sorted({shots, shots // 2, min(shots, 2), 0}, reverse=True):
                near = replace(shape, ontology=ontology, style=style)
                try:
                    _Maker(near, encoder, fewer, seed, definition).example(0)
                except TooFewWords:
                    continue
                good.append(f"style={style!r}, ontology={ontology!r}, shots={fewer}")
                break
    if good:
        return "With this tokenizer, these work: " + "; ".join(good) + "."
    return "No style and ontology works with this tokenizer at any number of shots; try fewer hops or premises of others."
