"""What a reader of pairs yields, and the rules for columns that all tables share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pycotmech._choices import alike

FIELDS = ("clean", "corrupted", "answer", "wrong", "name")
"""The fields of a pair."""

INDICES = {"correct_idx": "answer", "incorrect_idx": "wrong"}
"""EAP-IG's names for the token ids of the two answers, and the fields that they stand for."""

_CLOSE = 0.85
"""From this similarity on, an unknown column counts as a misspelled field. `corrupted_hard`, of EAP-IG's files, has 0.78."""


class Record(NamedTuple):
    """A pair as its file has it, not checked yet.

    fields: by name, those of `FIELDS` and `INDICES`; a value may be None. where: "FILE, line N" or "FILE, row N", for
    messages; rows count from 1. name: "line N" or "row N", what the pair is called if it has no name.
    """

    fields: dict[str, Any]
    where: str
    name: str


def chosen_columns(columns: Sequence[str], where: str) -> list[str]:
    """Returns the columns of a table that hold fields of pairs; others are left out, as the field's files have many.

    Raises ValueError, beginning with `where`, for a column that occurs twice or is missing, or that is a misspelled field.
    """
    known = (*FIELDS, *INDICES)
    for name in columns:
        if name in known and columns.count(name) > 1:
            raise ValueError(f"{where}: column {name!r} occurs {columns.count(name)} times")
        close = [] if name in known else alike(name, known, n=1, least=_CLOSE)
        if close and close[0] not in columns:
            raise ValueError(f"{where}: unknown column {name!r}; expected {close[0]!r}")
    for name in ("clean", "corrupted"):
        if name not in columns:
            found = ", ".join(map(repr, columns[:12])) or "none"
            raise ValueError(f"{where}: column {name!r} is missing; it has the columns {found:.300}")
    return [name for name in columns if name in known]
