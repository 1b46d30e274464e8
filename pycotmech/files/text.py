"""Text from files: parsed, and made safe to show: it cannot move the cursor, reorder a line or become markup."""

from __future__ import annotations

import json
import re
from typing import Any

# C0 and C1 controls, line and paragraph separators, marks that reorder text, lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROL_WITHIN_LINES = re.compile(_CONTROL.pattern.replace("\x00-\x1f", "\x00-\x08\x0b-\x1f"))
_MARKUP = re.compile(r"[\\`\[\]|]|<(?=[A-Za-z/!?])")


def parse_json(text: str) -> Any:
    """Returns what a JSON text of unknown origin holds. Raises ValueError for all that is none, also for what is nested too
    deeply, for which json itself raises RecursionError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def printable(text: object, *, lines: bool = False) -> str:
    """Returns the text with control characters written as escapes (``\\x1b``), so that a terminal shows and never obeys them.

    lines: line breaks and tabs stay as they are; by default the result is a single line.
    """
    pattern = _CONTROL_WITHIN_LINES if lines else _CONTROL
    return pattern.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(text))


def cell(text: str) -> str:
    """Returns the text for a cell of a CSV file; what a spreadsheet would compute as a formula begins with an apostrophe."""
    return f"'{text}" if len(text) > 1 and text[0] in "=+-@\t\r" else text


def markdown(text: object) -> str:
    """Returns the text as one line of Markdown that renders as itself: no markup, no link, no table column, no code."""
    return _MARKUP.sub(lambda found: "\\" + found[0], printable(text))
