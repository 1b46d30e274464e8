"""What the analyses of pairs of words share: their questions, and the rows of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pycotmech.cot.task.entailed import ENTAILED, VARIANTS, make_entailed
from pycotmech.cot.task.examples import Examples
from pycotmech.cot.task.relations import CLASSES, Question, Unrelated, WordPair, make_questions
from pycotmech.cot.tools.activations import TextActivations, text_activations
from pycotmech.cot.tools.cost import Cost, Workload, rows_cost
from pycotmech.cot.tools.result import Progress
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
    classes: Sequence[str] = CLASSES,
    least: int = 4,
    seed: int = 0,
) -> list[Question]:
    """The questions an analysis is made on: those given, or as many made in the style of the examples.

    classes: of the pairs, CLASSES or ENTAILED; with the latter questions come in fours, and as many are made as fill these.

    Raises TypeError or ValueError naming the argument, before any forward pass.
    """
    if examples is not None and not isinstance(examples, Examples):
        raise TypeError(f"examples: got {type(examples).__name__}; expected what pcm.cot.make_examples gives, or None")
    if isinstance(questions, Integral) and not isinstance(questions, bool):
        questions = int(questions)
        if questions < least:
            raise ValueError(f"questions: got {questions}; expected at least {least}, to have some for each part of the work")
        if model.tokenizer is None:
            raise ValueError("model: has no tokenizer to make questions for; expected one, or questions= of your own")
        if classes == ENTAILED:
            return make_entailed(
                questions + -questions % len(VARIANTS), tokenizer=model.tokenizer, examples=examples, shots=shots, seed=seed,
                bos=model.prepend_bos,
            )  # fmt: skip
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
        for p in every_pair(q):
            if not (
                0 <= p.first.start < p.first.stop <= len(q.tokens) and 0 <= p.second.start < p.second.stop <= len(q.tokens)
            ):
                raise ValueError(f"questions[{i}].pairs: {p} lies outside the {len(q.tokens)} tokens of the question")
            if not 0 <= p.label < len(classes) or p.first.stop > p.second.stop:
                known = f"0..{len(classes) - 1}"
                raise ValueError(f"questions[{i}].pairs: {p}; expected a label in {known} and the first word before the second")
    return given


def every_pair(question: Question) -> tuple[WordPair, ...]:
    """All pairs of a question, whatever they are for."""
    return (*question.pairs, *question.across, *question.stated)


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
    texts = [q.tokens[: max(p.second.stop for p in every_pair(q))] for q in questions]
    first = min(p.first.start for q in questions for p in every_pair(q))
    for batch in text_activations(model, texts, sites, first=first, whole=whole, memory_gb=memory_gb):
        yield from batch


class Features:
    """The features of pairs at each depth, made from rows that are kept once.

    samples: number of a question, and a pair of it. depths: 0 (embedding), 1 (after layer 0), ...
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Model,
        questions: Sequence[Question],
        samples: Sequence[tuple[int, WordPair]],
        depths: Sequence[int],
        piece: Piece,
        memory_gb: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        wanted: dict[int, set[int]] = {}
        for q, p in samples:
            wanted.setdefault(q, set()).update((position(p.first, piece), position(p.second, piece)))
        rows = {(q, at): i for i, (q, at) in enumerate((q, at) for q in sorted(wanted) for at in sorted(wanted[q]))}
        self.pairs = np.array([[rows[q, position(word, piece)] for word in (p.first, p.second)] for q, p in samples])
        self.rows = np.empty((len(depths), len(rows), model.cfg.d_model), dtype=np.float32)
        used = sorted(wanted)
        for done, (i, acts) in enumerate(runs(model, [questions[q] for q in used], ("resid_post",), memory_gb=memory_gb), 1):
            q = used[i]
            at = sorted(wanted[q])
            to = slice(rows[q, at[0]], rows[q, at[-1]] + 1)
            for j, depth in enumerate(depths):
                if depth:
                    here = acts.at("resid_post", depth - 1, at)
                else:
                    here = model.family.embed(acts.tokens[at].to(model.device), torch.tensor(at, device=model.device))
                self.rows[j, to] = here.float().cpu().numpy()
            if progress is not None:
                progress(done, len(used))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, depth: int) -> NDArray:
        """Of the depth with this number: [samples, 2 d]."""
        return self.rows[depth][self.pairs].reshape(len(self.pairs), -1)

    def sides(self, depth: int) -> tuple[NDArray, NDArray]:
        """The same of the first and of the second words: [samples, d] each."""
        return self.rows[depth][self.pairs[:, 0]], self.rows[depth][self.pairs[:, 1]]


def surface(questions: Sequence[Question], samples: Sequence[tuple[int, WordPair]]) -> NDArray:
    """What is seen of pairs without a model: [samples, F].

    Positions and lengths of both words, their distance, and the tokens around each: two before it, one after it, one-hot.
    The tokens around say the words' roles in their sentences; the words themselves are what the embedding has.
    """
    numbers, around = [], []
    for q, p in samples:
        tokens = questions[q].tokens.tolist()
        places = [at for w in (p.first, p.second) for at in (w.start - 2, w.start - 1, w.stop)]
        around.append([tokens[at] if 0 <= at < len(tokens) else -1 for at in places])
        lengths = [w.stop - w.start for w in (p.first, p.second)]
        numbers.append([p.distance, p.first.start, p.second.start, *lengths])
    columns = [np.array(column)[:, None] == np.unique(column) for column in zip(*around)]
    return np.concatenate([np.array(numbers, dtype=np.float64), *columns], axis=1)


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
