"""What the analyses of pairs of words share: their questions, and the rows of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.relations import CLASSES, Question, Unrelated, make_questions
from pycotmech.cot.tools.activations import TextActivations, text_activations
from pycotmech.cot.tools.cost import Cost, Workload, rows_cost
from pycotmech.model.config import ModelConfig

if TYPE_CHECKING:
    from pycotmech.model import Model

Piece = Literal["last", "first"]


def questions_of(
    model: Model,
    examples: Examples | None,
    questions: int | Sequence[Question],
    *,
    shots: int = 0,
    properties: bool = False,
    unrelated: Unrelated = "matched",
    least: int = 4,
    seed: int = 0,
) -> list[Question]:
    """The questions an analysis is made on: those given, or as many made in the style of the examples.

    Raises TypeError or ValueError naming the argument, before any forward pass.
    """
    if examples is not None and not isinstance(examples, Examples):
        raise TypeError(f"examples: got {type(examples).__name__}; expected what pcm.cot.make_examples gives, or None")
    if isinstance(questions, int) and not isinstance(questions, bool):
        if questions < least:
            raise ValueError(f"questions: got {questions}; expected at least {least}, to have some for each part of the work")
        if model.tokenizer is None:
            raise ValueError("model: has no tokenizer to make questions for; expected one, or questions= of your own")
        return make_questions(
            questions,
            tokenizer=model.tokenizer,
            examples=examples,
            shots=shots,
            properties=properties,
            unrelated=unrelated,
            seed=seed,
            bos=model.prepend_bos,
        )
    given = list(questions)  # type: ignore[arg-type]
    if len(given) < least or not all(isinstance(q, Question) for q in given):
        raise ValueError(f"questions: got {len(given)} of them; expected a number, or at least {least} Question objects")
    for i, q in enumerate(given):
        for p in (*q.pairs, *q.across):
            if not (
                0 <= p.first.start < p.first.stop <= len(q.tokens) and 0 <= p.second.start < p.second.stop <= len(q.tokens)
            ):
                raise ValueError(f"questions[{i}].pairs: {p} lies outside the {len(q.tokens)} tokens of the question")
            if not 0 <= p.label < len(CLASSES) or p.first.stop > p.second.stop:
                raise ValueError(f"questions[{i}].pairs: {p}; expected a label in 0..2 and the first word before the second")
    return given


def position(word: slice, piece: Piece) -> int:
    """Where a word is read."""
    return word.stop - 1 if piece == "last" else word.start


def runs(
    model: Model, questions: Sequence[Question], sites: Sequence[str], *, whole: bool = False, memory_gb: float | None = None
) -> Iterator[tuple[int, TextActivations]]:
    """Gives every question's number and its activations.

    The beginning that all share is run once; nothing after a question's last pair is run. whole: keep the sites of what is
    shared too.
    """
    texts = [q.tokens[: max(p.second.stop for p in (*q.pairs, *q.across))] for q in questions]
    first = min(p.first.start for q in questions for p in (*q.pairs, *q.across))
    for batch in text_activations(model, texts, sites, first=first, whole=whole, memory_gb=memory_gb):
        yield from batch


def pair_table(questions: Sequence[Question]) -> dict[str, tuple[str, NDArray]]:
    """Every pair: variables on the axis "pair"."""
    flat = [(i, p) for i, q in enumerate(questions) for p in q.pairs]
    return {
        "pair_question": ("pair", np.array([i for i, _ in flat])),
        "pair_label": ("pair", np.array([p.label for _, p in flat])),
        "pair_distance": ("pair", np.array([p.distance for _, p in flat])),
        "pair_words": ("pair", np.array([" ".join(p.words) for _, p in flat])),
    }


def question_length(workload: Workload) -> float:
    """Tokens of one made question, from those of an example with two hops: both are ten sentences, about."""
    return workload.texts / workload.examples


def questions_cost(cfg: ModelConfig, workload: Workload, questions: int, length: float | None, shots: int) -> Cost:
    """Of running questions once, the demonstrations once for all."""
    length = question_length(workload) if length is None else length
    return rows_cost(cfg, (workload.shared if shots else 0) + questions * length, forwards=questions)


def every_forward(cfg: ModelConfig, workload: Workload, questions: int, length: float | None, shots: int) -> Cost:
    """Of one full prompt for each question."""
    length = question_length(workload) if length is None else length
    return rows_cost(cfg, questions * ((workload.shared if shots else 0) + length), forwards=questions)
