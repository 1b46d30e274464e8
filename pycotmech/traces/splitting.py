"""Splits reasoning into sentences, without losing a character: the pieces, put together, are the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from pycotmech._choices import unknown_choice

Splitter = str | Callable[[str], Sequence[str]]
"""The name of a rule in `SPLITTERS`, or a function from a text to its pieces, in order."""

SPLITTERS = ("sentencex", "published")

_PUBLISHED = re.compile(r"[.?!](?=[ \n])|(?:\r?\n){2}")
"""Where a sentence ends by the rule of Thought Anchors: after a full stop, a question mark or an exclamation mark that a space
or the end of a line follows, and after an empty line."""


def split(text: str, splitter: Splitter = "sentencex") -> list[tuple[int, int]]:
    """Returns the sentences of a text as ranges of characters that follow one another and cover it.

    splitter: "sentencex", the library of that name (Wikimedia; rules for abbreviations, numbers and about 300 languages);
        "published", the rule of Thought Anchors (arXiv 2506.19143): a sentence ends after `.`, `?` or `!` before a space or
        the end of a line, and at an empty line; or a function from the text to its pieces.
    White space between two sentences belongs to the first of them, and white space at the beginning to the first sentence.
    A text of white space only has no sentences.

    Raises ImportError that names the extra if the library is missing, ValueError naming `splitter` for an unknown name, or
    for a function whose pieces are not in the text in this order.
    """
    if callable(splitter):
        pieces = located(text, list(splitter(text)), "splitter")
    elif splitter == "sentencex":
        pieces = _by_length(_library()("en", text))
    elif splitter == "published":
        ends = [found.end() for found in _PUBLISHED.finditer(text)]
        pieces = list(zip([0, *ends], [*ends, len(text)], strict=True))
    else:
        raise ValueError(unknown_choice("splitter", splitter, SPLITTERS, also="a function"))
    return covering(text, pieces)


def covering(text: str, pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same pieces without those of white space only, each until the next one begins, the first from 0 on."""
    starts = [a + len(text[a:b]) - len(text[a:b].lstrip()) for a, b in pieces if text[a:b].strip()]
    if not starts:
        return []
    starts[0] = 0
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def located(text: str, sentences: Sequence[str], argument: str = "sentences", *, after: str = "") -> list[tuple[int, int]]:
    """The ranges of characters at which sentences stand in a text, one after another.

    after: what follows the text, to say of a sentence that it stands there.
    Raises ValueError naming the argument and the first sentence that is not in the text after the one before it.
    """
    out, at = [], 0
    for i, sentence in enumerate(sentences):
        bare = sentence.strip()
        if not bare:
            continue
        found = text.find(bare, at)
        if found < 0 and bare in after:
            raise ValueError(
                f"{argument}[{i}]: {bare[:60]!r} stands after the reasoning, which ends before the sentence of the answer (or "
                "at </think>); expected sentences of the reasoning only"
            )
        if found < 0:
            raise ValueError(
                f"{argument}[{i}]: {bare[:60]!r} is not in the reasoning after the sentence before it; expected pieces of the "
                "text in their order"
            )
        at = found + len(bare)
        out.append((found, at))
    return out


def _by_length(pieces: Sequence[str]) -> list[tuple[int, int]]:
    out, at = [], 0
    for piece in pieces:
        out.append((at, at + len(piece)))
        at += len(piece)
    return out


def _library() -> Callable[[str, str], Sequence[str]]:
    try:
        from sentencex import segment  # type: ignore[import-not-found, attr-defined]
    except ImportError as error:
        raise ImportError(
            "splitter: 'sentencex' needs the library of that name: pip install 'pycotmech[traces]'; splitter='published' "
            "needs none"
        ) from error
    return lambda language, text: list(segment(language, text))
