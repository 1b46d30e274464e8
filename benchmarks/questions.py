"""The questions of the suite: each with our call, its check, and what a user could do in its place.

`suite.py` times them side by side, `bench_questions.py` with pytest-benchmark. A question is made for a dtype and gives
`Asked`: ours, its rivals, and a check of what ours returned, before anything is timed. Rivals are run for a sample, spread over
layers or positions, and their times are multiplied; `Way.times` says by what.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.asked import Asked, Question
from benchmarks.attention_questions import kernel, lens, summary, suppression
from benchmarks.patching_questions import heads, heads_7b, pairs, paths, residual

SIZES = ("tiny", "135m", "7b")
BOTH = ("float32", "bfloat16")


def _named(make: Callable[..., Asked], *given) -> Callable[[str], Asked]:
    return lambda dtype: make(*given, dtype)


QUESTIONS = (
    Question("all heads, all positions", "heads", "135m", _named(heads, "smollm2-135m", "all", 3), BOTH),
    Question("all heads, last position", "heads", "135m", _named(heads, "smollm2-135m", "last", 3), BOTH),
    Question("all heads, all positions", "heads", "tiny", _named(heads, "tiny-cot", "all", 3), rounds=5),
    Question("all heads, last position", "heads", "7b", heads_7b, ("bfloat16",)),
    Question("residual stream by position", "residual", "135m", residual, rounds=2),
    Question("many pairs in one call", "pairs", "135m", pairs, ("bfloat16",)),
    Question("sender-receiver paths", "paths", "135m", paths, rounds=2),
    Question("attention summary", "attention", "135m", summary, rounds=2),
    Question("attention kernel", "kernel", "7b", kernel, BOTH, rounds=5),
    Question("logit lens", "lens", "135m", lens, rounds=2),
    Question("suppression of sentences", "traces", "135m", suppression, rounds=2),
)
"""In the order of the table. More: bench_*.py, each about one question."""


def question_named(name: str, size: str) -> Question:
    """Raises ValueError for a question that there is not."""
    for question in QUESTIONS:
        if (question.name, question.size) == (name, size):
            return question
    raise ValueError(f"question: there is no {name!r} at size {size!r}")
