"""The sentences of a question with another verb: "Every lempus fears a tumpus." relates no concepts.

Words, their roles and their distances stay as they are; what is said of them does not. Another verb has as many tokens as
"is" (and "are"), so that every other token keeps its place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import LongTensor

from pycotmech.cot.task.relations import Question
from pycotmech.cot.task.tokens import Encoder

VERBS = (
    ("fears", "fear"), ("sees", "see"), ("likes", "like"), ("needs", "need"), ("finds", "find"), ("helps", "help"),
    ("think", "think"), ("by", "by"), ("or", "or"),
)  # fmt: skip
"""In place of "is" and "are", the first that a tokenizer can write. The last are for tokenizers of few words."""


def reworded(
    questions: Sequence[Question], *, tokenizer: Any, bos: bool | None = None, n: int = 2
) -> tuple[tuple[str, ...], list[tuple[LongTensor, ...]]]:
    """The verbs, up to n of them, and each question's tokens with each verb in place of "is" and "are".

    Only verbs after the first word of a question's pairs are replaced: what comes before stays shared.
    Raises ValueError naming the question that has no text, or the tokenizer if no verb keeps all other tokens in place.
    """
    encoder = Encoder(tokenizer, bos)
    encodings = encoder.many([q.text for q in questions])
    places = []
    for i, (question, encoded) in enumerate(zip(questions, encodings, strict=True)):
        if not question.text or encoded.ids != question.tokens.tolist():
            raise ValueError(
                f"questions[{i}]: its tokens are not those of its text, so that no verb can be replaced; expected the text, or "
                "others="
            )
        begin = min((p.first.stop for p in (*question.pairs, *question.across)), default=0)
        found = re.finditer(r" (is|are)\b", question.text)
        places.append([m for m in found if encoded.word(m.start(1), m.end(1)).start >= begin])
    names: list[str] = []
    out: list[list[LongTensor]] = [[] for _ in questions]
    for verb in VERBS:
        texts = [_replaced(q.text, where, verb) for q, where in zip(questions, places, strict=True)]
        again = encoder.many(texts)
        spans = [[e.word(m.start(1), m.end(1)) for m in where] for e, where in zip(encodings, places, strict=True)]
        if all(_alike(a.ids, b.ids, s, encoder.unknown) for a, b, s in zip(encodings, again, spans, strict=True)):
            names.append(verb[0])
            for rows, e in zip(out, again, strict=True):
                rows.append(torch.tensor(e.ids))  # type: ignore[arg-type]
        if len(names) == n:
            break
    if not names:
        raise ValueError(
            f"tokenizer: has none of {', '.join(v for v, _ in VERBS)} as one word as long as 'is' and 'are'; expected "
            "questions with others= of your own"
        )
    return tuple(names), [tuple(rows) for rows in out]


def _replaced(text: str, where: Sequence[re.Match[str]], verb: tuple[str, str]) -> str:
    for m in reversed(where):
        text = text[: m.start(1)] + verb[m[1] == "are"] + text[m.end(1) :]
    return text


def _alike(ids: Sequence[int], other: Sequence[int], verbs: Sequence[slice], unknown: int | None) -> bool:
    """Whether two texts differ at these positions, all of them, and nowhere else."""
    inside = {p for span in verbs for p in range(span.start, span.stop)}
    if len(ids) != len(other) or any(other[p] == unknown for p in inside):
        return False
    starts = all(ids[s] != other[s] for s in verbs)
    return starts and all(a == b for p, (a, b) in enumerate(zip(ids, other)) if p not in inside)
