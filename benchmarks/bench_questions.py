"""The questions of the suite with pytest-benchmark: a group for each question, size and dtype, in it every way.

    pytest benchmarks/bench_questions.py --benchmark-only -m tiny
    pytest benchmarks/bench_questions.py --benchmark-only -m 135m --benchmark-group-by=group --benchmark-json=found.json

A way is timed after ours and the rivals were checked. A rival's figure is that of its sample; `extra_info["times"]` says how
often that goes into the whole, and `extra_info["seconds"]` is the product. `suite.py` times the ways in turn, which ratios
need.
"""

from __future__ import annotations

import gc

import pytest

from benchmarks.asked import Asked, Question
from benchmarks.questions import QUESTIONS

CASES = [
    pytest.param(q, dtype, id=f"{q.name}-{q.size}-{dtype}".replace(" ", "_"), marks=getattr(pytest.mark, q.size))
    for q in QUESTIONS
    for dtype in q.dtypes
]
_LAST: dict[tuple[Question, str], tuple[Asked, str]] = {}


def checked(question: Question, dtype: str) -> tuple[Asked, str]:
    """The question after its check; the last one is kept for its other ways."""
    if (question, dtype) not in _LAST:
        _LAST.clear()
        gc.collect()
        asked = question.make(dtype)
        _LAST[question, dtype] = asked, asked.check(asked.ours.run())
    return _LAST[question, dtype]


@pytest.mark.parametrize("way", range(3), ids=["ours", "rival", "second_rival"])
@pytest.mark.parametrize(("question", "dtype"), CASES)
def test_question(question, dtype, way, benchmark):
    asked, said = checked(question, dtype)
    ways = [asked.ours, *asked.rivals]
    if way >= len(ways):
        pytest.skip("this question has one rival")
    chosen = ways[way]
    benchmark.group = f"{question.name}, {question.size}, {dtype}"
    benchmark.name = chosen.name
    benchmark.pedantic(chosen.run, rounds=question.rounds, warmup_rounds=int(way == 0))
    benchmark.extra_info.update(times=chosen.times, seconds=chosen.times * benchmark.stats.stats.median, check=said)
