"""Checks what traces are made of: ranges, categories, the answer. Errors name the argument, what came, what is expected."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any


def is_text(value: Any, argument: str) -> str:
    """The value, a text. Raises TypeError naming the argument for anything else."""
    if not isinstance(value, str):
        hint = f", such as {str(value)!r}" if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise TypeError(f"{argument}: got {value!r} of type {type(value).__name__}; expected a text{hint}")
    return value


def are_texts(sentences: Any) -> bool:
    """Whether sentences are given as texts, not as ranges. Raises TypeError or ValueError naming `sentences` for neither."""
    if hasattr(sentences, "tolist"):  # an array, such as `Trace.spans` returns
        sentences = sentences.tolist()
    if isinstance(sentences, str) or not isinstance(sentences, Sequence):
        raise TypeError(f"sentences: got {type(sentences).__name__}; expected a list of texts, or of (start, stop) ranges")
    if not sentences:
        raise ValueError("sentences: got none; expected at least one")
    return all(isinstance(sentence, str) for sentence in sentences)


def pairs(sentences: Any) -> list[tuple[int, int]]:
    """Ranges as pairs of integers. Raises TypeError or ValueError naming `sentences`."""
    if are_texts(sentences):
        raise ValueError(f"sentences[0]: got the text {sentences[0][:40]!r}; expected (start, stop) ranges here")
    return [pair(value, f"sentences[{i}]") for i, value in enumerate(sentences)]


def pair(value: Any, argument: str) -> tuple[int, int]:
    """A range as two integers. Raises TypeError naming the argument for anything else."""
    given = list(value) if hasattr(value, "__iter__") and not isinstance(value, str) else []
    if len(given) != 2 or not all(isinstance(x, Integral) and not isinstance(x, bool) for x in given):
        raise TypeError(f"{argument}: got {value!r}; expected two integers (start, stop)")
    return int(given[0]), int(given[1])


def spans(given: Sequence[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Ranges of tokens that follow one another after a prompt. Raises ValueError naming `sentences`."""
    for i, (a, b) in enumerate(given):
        if not 0 < a < b <= length:
            raise ValueError(f"sentences[{i}]: got {(a, b)}; expected start < stop within 1..{length}, after a prompt")
        if i and a != given[i - 1][1]:
            raise ValueError(f"sentences[{i}]: begins at {a}; expected {given[i - 1][1]}, where the sentence before it ends")
    return list(given)


def answer(given: Any, end: int, length: int, begins: int | None = None) -> slice:
    """The range of the answer's tokens, after the reasoning, which ends at `end`. begins: where the answer's text begins,
    if the range was found by it. Raises TypeError or ValueError naming `answer`."""
    a, b = pair(given, "answer")
    if begins is not None and b <= a:
        raise ValueError(
            f"sentences: the last one ends at token {end}, but the answer stands at {begins}..{b - 1}; expected sentences that "
            "end before it"
        )
    if not end <= a < b <= length:
        raise ValueError(f"answer: got {(a, b)}; expected tokens start < stop within {end}..{length}, after the reasoning")
    return slice(a, b)


def categories(given: Any, n: int) -> list[str | None]:
    """A category, or None, for each of n sentences. Raises TypeError or ValueError naming `categories`."""
    if given is None:
        return [None] * n
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(f"categories: got {type(given).__name__}; expected a list with a text or None for each sentence")
    if len(given) != n:
        raise ValueError(f"categories: got {len(given)} for {n} sentences; expected one for each")
    return [None if kind is None else is_text(kind, f"categories[{i}]") for i, kind in enumerate(given)]


def integer_or_none(value: Any, argument: str) -> int | None:
    """The value, an integer or None. Raises TypeError naming the argument for anything else."""
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool)):
        raise TypeError(f"{argument}: got {value!r}; expected an integer")
    return None if value is None else int(value)
