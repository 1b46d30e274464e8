"""A trace: a prompt, the reasoning that follows it, cut into sentences, and the answer, as one sequence of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pycotmech._choices import unknown_choice
from pycotmech.display import Described, Facts
from pycotmech.model.prompts import Tokens
from pycotmech.traces import checked, generating, reading
from pycotmech.traces.splitting import Splitter, covering, located, split

if TYPE_CHECKING:
    from pycotmech.model import Model

Unit = Literal["characters", "tokens"]
Span = tuple[int, int]
_SHOWN = 12
"""Sentences that are shown."""


@dataclass(frozen=True)
class Sentence(Described):
    """A sentence of the reasoning: its tokens start .. stop - 1, its text, and its category if one is given."""

    start: int
    stop: int
    text: str = ""
    category: str | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    def described(self) -> Facts:
        more = {"category": self.category} if self.category else {}
        return Facts(self.text or "A sentence", {"tokens": f"{self.start} to {self.stop - 1}", **more})


@dataclass(frozen=True, eq=False)
class Trace(Described):
    """A prompt, the reasoning after it and the answer.

    tokens [T] on the CPU. sentences: S of them, in order, which follow one another and cover the reasoning.
    answer: the range of the answer's tokens; None if the trace has none. text: what the tokens say, if it is known.
    seed: of the generation, if the model generated it. notes: what a reader of results should know.

    The tokens from the end of the reasoning to the answer are the cue (`.cue`): "</think> The answer is", for instance.
    """

    tokens: Tensor = field(repr=False)
    sentences: tuple[Sentence, ...] = field(repr=False)
    answer: slice | None
    text: str = field(default="", repr=False)
    name: str = ""
    model_name: str = ""
    seed: int | None = None
    notes: tuple[str, ...] = ()
    n_prompt: int | None = field(default=None, repr=False)
    """How many characters of `text` are the prompt, where it was made from texts."""
    answer_text: str = ""

    def __len__(self) -> int:
        """How many tokens it has."""
        return len(self.tokens)

    @property
    def n_sentences(self) -> int:
        return len(self.sentences)

    @property
    def prompt(self) -> slice:
        """The tokens before the reasoning."""
        return slice(0, self.sentences[0].start)

    @property
    def reasoning(self) -> slice:
        """The tokens of all sentences."""
        return slice(self.sentences[0].start, self.sentences[-1].stop)

    @property
    def cue(self) -> Tensor:
        """The tokens between the reasoning and the answer. Raises ValueError for a trace without an answer."""
        return self.tokens[self.reasoning.stop : self.answered.start]

    @property
    def answered(self) -> slice:
        """The range of the answer. Raises ValueError for a trace without one."""
        if self.answer is None:
            raise ValueError(f"trace: {self.title} has no answer; expected one made with answer=")
        return self.answer

    @property
    def answer_tokens(self) -> Tensor:
        return self.tokens[self.answered]

    @property
    def title(self) -> str:
        """Its name, or how large it is."""
        return self.name or f"a trace of {len(self)} tokens and {self.n_sentences} sentences"

    def spans(self) -> NDArray[np.int64]:
        """[S, 2]: the first token of each sentence, and the first after it."""
        return np.array([(s.start, s.stop) for s in self.sentences], dtype=np.int64)

    def labels(self) -> Tensor:
        """int32 [T]: the number of the sentence that a token is in; -1 in the prompt and after the reasoning."""
        out = torch.full((len(self.tokens),), -1, dtype=torch.int32)
        for i, s in enumerate(self.sentences):
            out[s.start : s.stop] = i
        return out

    def described(self) -> Facts:
        facts = {"model": self.model_name, "notes": "; ".join(self.notes), "answer": self.answer_text}
        shown = {f"sentence {i}": s.text or f"tokens {s.start} to {s.stop - 1}" for i, s in enumerate(self.sentences[:_SHOWN])}
        more = [("", f"… and {self.n_sentences - _SHOWN} more")] if self.n_sentences > _SHOWN else []
        return Facts(
            str(self),
            [*((name, value) for name, value in facts.items() if value), *shown.items(), *more],
            go_on=(
                ("pcm.traces.suppress(model, trace)", "what each sentence causes"),
                ("pcm.traces.receiver_heads(model, [trace])", "heads that look back at some sentences"),
            ),
        )

    def __str__(self) -> str:
        answer = "no answer" if self.answer is None else f"the answer at {self.answer.start}..{self.answer.stop - 1}"
        head = f"Trace {self.name}".rstrip()
        return f"{head}: {self.prompt.stop} tokens of prompt, {self.n_sentences} sentences to {self.reasoning.stop}, {answer}"

    # ---- how it is made ----------------------------------------------------------------------------------------------

    @classmethod
    def from_tokens(
        cls,
        model: Model,
        tokens: Tokens,
        *,
        sentences: Sequence[Span],
        answer: Span | None = None,
        categories: Sequence[str | None] | None = None,
        name: str = "",
        seed: int | None = None,
    ) -> Trace:
        """A trace whose boundaries are known in tokens. Needs no tokenizer.

        tokens: ids [T], or a text. sentences: (start, stop) of each, which follow one another without gaps. answer: (start,
        stop), after the reasoning. categories: one for each sentence.
        Raises ValueError naming the argument.
        """
        ids = model.to_tokens(tokens)
        spans = checked.spans(checked.pairs(sentences), len(ids))
        where = None if answer is None else checked.answer(answer, spans[-1][1], len(ids))
        kinds = checked.categories(categories, len(spans))
        decode = (lambda a, b: "") if model.tokenizer is None else (lambda a, b: model.tokenizer.decode(ids[a:b]))
        made = tuple(Sentence(a, b, decode(a, b), kind) for (a, b), kind in zip(spans, kinds, strict=True))
        text = tokens if isinstance(tokens, str) else ""
        return cls(ids, made, where, text, name, model.name, seed)

    @classmethod
    def from_text(
        cls,
        model: Model,
        prompt: str,
        completion: str,
        *,
        answer: str | None = None,
        sentences: Sequence[str] | Sequence[Span] | None = None,
        unit: Unit = "characters",
        categories: Sequence[str | None] | None = None,
        splitter: Splitter = "sentencex",
        bos: bool | None = None,
        name: str = "",
        seed: int | None = None,
    ) -> Trace:
        """A trace from a prompt and what a model wrote after it, with or without <think> ... </think>.

        completion: the reasoning, and then the answer. With </think> in it the reasoning ends there; without, it ends where
            the sentence begins in which the answer stands for the last time.
        answer: as it stands in the completion, after the reasoning. None: what \\boxed{}, "####" or "answer is" give there.
        sentences: own boundaries. The sentences as texts, or their (start, stop) ranges: of characters of prompt +
            completion, or of tokens (`unit`). A range goes on to the beginning of the next one. None: by the `splitter`.
        splitter: "sentencex" (the extra `traces`), "published" (the rule of Thought Anchors), or a function.
        bos: whether a BOS is put before a text that begins with none; None: as the model's prompts have it.
        categories: one for each sentence. name, seed: kept with the trace.

        A token belongs to the sentence in which its first character that is no white space stands. Sentences that get no token
        of their own are joined to the one before.
        Raises ValueError naming the argument: a model whose tokenizer gives no offsets, reasoning without an end, an answer
        that is not there, boundaries that do not fit. Cost: the tokenizer's; nothing is run.
        """
        ids, offsets, text = reading.encoded(model, prompt, completion, bos)
        parts = reading.parse(prompt, completion, answer, splitter)
        begin, end = parts.reasoning
        kinds: Sequence[str | None]
        if sentences is not None and unit == "tokens":
            spans = checked.spans(checked.pairs(sentences), len(ids))
            kinds = checked.categories(categories, len(spans))
        elif unit not in ("characters", "tokens"):
            raise ValueError(unknown_choice("unit", unit, ("characters", "tokens")))
        else:
            ranges = _ranges(text, begin, end, sentences, splitter)
            if not ranges:
                raise ValueError("completion: the reasoning is empty; expected sentences before the answer")
            given = checked.categories(categories, len(ranges))
            spans, kept = reading.token_spans(text, offsets, ranges)
            if sentences is not None and len(kept) < len(ranges):
                lost = next(i for i in range(len(ranges)) if i not in kept)
                raise ValueError(f"sentences[{lost}]: no token begins in {text[slice(*ranges[lost])][:40]!r}")
            kinds = [given[i] for i in kept]
        where = None
        if parts.answer is not None:
            first, last = reading.tokens_of(offsets, *parts.answer)
            where = checked.answer((max(first, spans[-1][1]), last), spans[-1][1], len(ids), first)
        made = tuple(
            Sentence(a, b, text[offsets[a][0] : offsets[b - 1][1]], kind) for (a, b), kind in zip(spans, kinds, strict=True)
        )
        said = "" if parts.answer is None else text[slice(*parts.answer)]
        return cls(ids, made, where, text, name, model.name, seed, n_prompt=len(prompt), answer_text=said)

    @classmethod
    def from_messages(
        cls,
        model: Model,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> Trace:
        """A trace from a conversation, whose last message is the model's: the others, by the tokenizer's chat template, are the
        prompt.

        messages: {"role", "content"}; the last may have its reasoning apart, as "reasoning_content" or "reasoning".
        tools: descriptions of the functions that the model could call, for the template. options: as in `from_text`; by default
            the template decides about BOS, so that the tokens are those that the model saw.
        Raises ValueError naming `messages` where there is no chat template, where it refuses them, or where the last message
        is not the assistant's.
        """
        prompt, completion = reading.of_messages(model, messages, tools)
        return cls.from_text(model, prompt, completion, **{"bos": False, **options})

    @classmethod
    def from_jsonl(
        cls,
        model: Model,
        path: str | PathLike,
        *,
        splitter: Splitter = "sentencex",
        skip: Callable[[int, str], None] | None = None,
    ) -> list[Trace]:
        """All traces of a JSON Lines file.

        Each line has "prompt" and "completion"; or "messages", and perhaps "tools"; or "tokens", "sentences" and perhaps
        "answer", all in tokens. It may have "answer", "sentences", "unit", "categories", "name" and "seed", as in `from_text`,
        and "splitter". A trace without a name gets the number of its line.
        skip: called with the number of a line of which no trace can be made, and why; the line is left out then. None: such
            lines are an error.
        Raises ValueError naming the file, the first line of which no trace can be made, what is wrong with it, and how many
        further lines there are like that; with `skip` only where no line is left.
        """
        out: list[Trace] = []
        wrong: list[tuple[int, str]] = []

        def note(number: int, why: str) -> None:
            wrong.append((number, why))
            if skip is not None:
                skip(number, why)

        for number, record in reading.records(path, note):
            try:
                out.append(cls._of_record(model, record, splitter, f"{number}"))
            except (ValueError, TypeError) as error:
                note(number, str(error))
        if not out and not wrong:
            raise ValueError(f"{path} holds no trace; expected one JSON object a line")
        if wrong and (skip is None or not out):
            (number, why), more, n = wrong[0], [str(n) for n, _ in wrong[1:]], len(out) + len(wrong)
            shown = f"{', '.join(more[:_SHOWN])}{' and others' if len(more) > _SHOWN else ''}"
            also = f" (no trace can be made of {len(more)} more of its {n} lines either: {shown})" if more else ""
            raise ValueError(f"{path}, line {number}: {why}{also}")
        return out

    @classmethod
    def _of_record(cls, model: Model, record: Mapping[str, Any], splitter: Splitter, name: str) -> Trace:
        seed = checked.integer_or_none(record.get("seed"), "seed")
        known = {"name": str(record.get("name") or name), "seed": seed, "categories": record.get("categories")}
        if "tokens" in record:
            if "sentences" not in record:
                raise ValueError("sentences: missing; a trace given in tokens has them as [[start, stop], ...]")
            return cls.from_tokens(
                model, record["tokens"], sentences=record["sentences"], answer=record.get("answer"), **known
            )  # fmt: skip
        options = {key: record[key] for key in ("answer", "sentences", "unit") if record.get(key) is not None}
        options |= known | {"splitter": record.get("splitter", splitter)}
        if "messages" in record:
            return cls.from_messages(model, record["messages"], tools=record.get("tools"), **options)
        missing = [key for key in ("prompt", "completion") if not isinstance(record.get(key), str)]
        if missing:
            raise ValueError(f"{missing[0]}: missing, or no text; expected prompt and completion, or messages, or tokens")
        return cls.from_text(model, record["prompt"], record["completion"], **options)

    @classmethod
    def generate(
        cls,
        model: Model,
        prompt: str,
        *,
        seed: int = 0,
        max_new: int = 512,
        temperature: float = 0.6,
        top_p: float = 0.95,
        cue: str | None = generating.CUE,
        answer_tokens: int = 8,
        stop: str | None = None,
        answer: str | None = None,
        splitter: Splitter = "sentencex",
        name: str = "",
    ) -> Trace:
        """Samples a completion and makes a trace of it.

        seed: of the sampling, which touches no other random numbers. temperature: 0 takes the likeliest tokens. temperature and
            top_p are those of Thought Anchors by default. max_new: tokens at most.
        stop: a text at which the completion ends; None: the model's own end.
        answer: as in `from_text`. If no answer is found, `cue` is written after the reasoning (after </think>, if it was begun
            and not ended, that too), and the answer is the likeliest text after it, `answer_tokens` tokens at most, up to the
            end of a sentence or line. cue None: a trace without an answer.

        The trace holds the tokens of the text, which may be others than were sampled where a text can be cut in several ways.
        Raises ValueError naming the argument. Cost: the generation, by the Hugging Face model.
        """
        completion, found = generating.completed(
            model, prompt, seed=seed, max_new=max_new, temperature=temperature, top_p=top_p, cue=cue,
            answer_tokens=answer_tokens, stop=stop, answer=answer,
        )  # fmt: skip
        return cls.from_text(model, prompt, completion, answer=found, splitter=splitter, name=name, seed=seed)

    # ---- how it is kept ----------------------------------------------------------------------------------------------

    def to_record(self) -> dict[str, Any]:
        """What `from_jsonl` reads: texts if they are known, otherwise tokens."""
        kinds = [s.category for s in self.sentences]
        more: dict[str, Any] = {"name": self.name, "seed": self.seed, "model": self.model_name}
        more["categories"] = kinds if any(kind is not None for kind in kinds) else None
        if self.n_prompt is None:
            spans = self.spans().tolist()
            answer = None if self.answer is None else [self.answer.start, self.answer.stop]
            found = {"tokens": self.tokens.tolist(), "sentences": spans, "answer": answer, **more}
        else:
            prompt, completion = self.text[: self.n_prompt], self.text[self.n_prompt :]
            found = {"prompt": prompt, "completion": completion, "answer": self.answer_text or None, **more}
            found |= {"sentences": [s.text for s in self.sentences]}
        return {key: value for key, value in found.items() if value is not None}

    def with_cue(self, model: Model, cue: str | Sequence[int] | Tensor) -> Trace:
        """The same trace with another cue between the reasoning and the answer, whose tokens stay as they are.

        cue: a text (without a BOS token), or token ids. A trace whose answer follows the reasoning at once can so be asked for
            it.
        Raises ValueError naming `cue`, or for a trace without an answer.
        """
        at, answer = self.reasoning.stop, self.answer_tokens
        ids = reading.cue_ids(model, cue)
        tokens = model.to_tokens(torch.cat((self.tokens[:at], ids, answer)), argument="cue")
        where = slice(len(tokens) - len(answer), len(tokens))
        return replace(self, tokens=tokens, answer=where, text="", n_prompt=None)

    def named(self, name: str) -> Trace:
        """The same trace with another name."""
        return replace(self, name=name)


def _ranges(text: str, begin: int, end: int, sentences: Sequence[Any] | None, splitter: Splitter) -> list[tuple[int, int]]:
    """The sentences of the reasoning text[begin:end] as ranges of characters of the text that cover it."""
    reasoning = text[begin:end]
    if sentences is None:
        found = split(reasoning, splitter)
    elif checked.are_texts(sentences):
        found = covering(reasoning, located(reasoning, list(sentences), after=text[end:]))
    else:
        given = checked.pairs(sentences)
        for i, (a, b) in enumerate(given):
            if not begin <= a < b <= end or (i and a < given[i - 1][1]):
                raise ValueError(
                    f"sentences[{i}]: got {(a, b)}; expected ranges of characters in {begin}..{end}, where the reasoning "
                    "stands, ascending, without overlap"
                )
        found = covering(reasoning, [(a - begin, b - begin) for a, b in given])
    return [(begin + a, begin + b) for a, b in found]
