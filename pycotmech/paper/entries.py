"""The analyses in the order in which they run."""

from __future__ import annotations

from pycotmech._choices import did_you_mean
from pycotmech.cot import analyses
from pycotmech.cot.tools.registry import Description

ENTRIES: tuple[Description, ...] = tuple(d for d in analyses.described() if not d.on_request)
ON_REQUEST: tuple[Description, ...] = tuple(d for d in analyses.described() if d.on_request)
"""Analyses that run only if they are named: they go beyond the paper and take longer than its own."""
EVERY = (*ENTRIES, *ON_REQUEST)


def chosen(only: tuple[str, ...] | None) -> list[Description]:
    """The analyses to run, in order: all of `ENTRIES`, or those named (by name or number) with what they need.

    Raises ValueError naming the argument.
    """
    if only is None:
        return list(ENTRIES)
    known = {e.name: e for e in EVERY}
    names: set[str] = set()
    for word in only:
        found = [e.name for e in EVERY if word == e.name or word.upper() == e.source]
        if not found:
            raise ValueError(_unknown(word))
        names |= set(found)
    if not names:
        raise ValueError("only: got none; expected names of analyses, or E1 to E13")
    while more := {n for name in names for n in known[name].needs} - names:
        names |= more
    return [e for e in EVERY if e.name in names]


def _unknown(word: str) -> str:
    """The message for a word that is neither the name of an analysis nor the number of an experiment."""
    names, numbers = [e.name for e in EVERY], list(dict.fromkeys(e.source for e in EVERY))
    return (
        f"only: got {word!r}; expected some of {', '.join(numbers)}, or of their analyses: {', '.join(names)}"
        f"{did_you_mean(word, [*numbers, *names])}"
    )
