"""Prompt pairs from a JSONL file, one object a line: {"clean", "corrupted", "answer", "wrong", "name"}."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

_FIELDS = ("clean", "corrupted", "answer", "wrong", "name")


def words_read(metric: str) -> tuple[str, ...]:
    """Which of "answer" and "wrong" a metric reads; the others may be missing in a line."""
    return {"prob": ("answer",), "logit_diff": ("answer", "wrong")}.get(metric, ())


@dataclass(frozen=True)
class PromptPair:
    """One line of a pairs file.

    clean, corrupted: text or token ids. answer, wrong: a word, a token id or None. name: for tables and figures; without
    one in the file it is the line's number. where: "FILE, line N", for messages.
    """

    clean: str | list[int]
    corrupted: str | list[int]
    answer: str | int | None
    wrong: str | int | None
    name: str
    where: str


def read_pairs(path: str | PathLike, *, metric: str = "kl") -> list[PromptPair]:
    """Reads the pairs of a JSONL file and checks them as far as that is possible without a model; empty lines are skipped.

    metric: what they are for; "prob" needs an answer in each line, "logit_diff" an answer and a wrong one.
    Raises FileNotFoundError, or ValueError naming the file, the line and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"pairs: there is no file {path} (seen from {Path.cwd()})")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"pairs: {path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    out: list[PromptPair] = []
    # Not splitlines: it also cuts at characters that may occur inside a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            out.append(_pair(line, f"{path}, line {number}", number, metric))
    if not out:
        raise ValueError(f"pairs: {path} holds no pair; expected a JSON object a line")
    return out


def _pair(line: str, where: str, number: int, metric: str) -> PromptPair:
    try:
        found = json.loads(line, object_pairs_hook=lambda fields: _fields_once(fields, where))
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid JSON (nested too deeply)") from error
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected a JSON object with clean and corrupted, got {type(found).__name__}")
    if unknown := sorted(set(found) - set(_FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; expected {', '.join(_FIELDS)}")
    for field in ("clean", "corrupted", *words_read(metric)):
        if found.get(field) is None:
            why = "" if field in ("clean", "corrupted") else f"; metric {metric!r} needs it"
            raise ValueError(f"{where}: field {field!r} is missing{why}")
    for field in ("clean", "corrupted"):
        _check_prompt(found[field], f"{where}: field {field!r}")
    for field in ("answer", "wrong"):
        _check_answer(found.get(field), f"{where}: field {field!r}")
    name = found.get("name")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{where}: field 'name': expected a string, got {name!r}")
    for field in _FIELDS:
        value = found.get(field)
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{where}: field {field!r} holds half of a surrogate pair, which is not text")
    if found["clean"] == found["corrupted"]:
        raise ValueError(f"{where}: fields 'clean' and 'corrupted' are the same; expected prompts that differ")
    return PromptPair(
        found["clean"], found["corrupted"], found.get("answer"), found.get("wrong"), name or f"line {number}", where
    )


def _fields_once(fields: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    found = dict(fields)
    if len(found) < len(fields):
        names = [name for name, _ in fields]
        raise ValueError(f"{where}: field {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_prompt(value: Any, where: str) -> None:
    ids = isinstance(value, list) and all(_is_id(v) for v in value)
    if not (ids or isinstance(value, str)):
        raise ValueError(f"{where}: expected text or a list of token ids, got {value!r:.60}")
    if not value:
        raise ValueError(f"{where}: the prompt is empty")
    least = 0 if isinstance(value, str) else min(value)
    if least < 0:
        raise ValueError(f"{where}: token id {least} is negative")


def _check_answer(value: Any, where: str) -> None:
    if value is None or (_is_id(value) and value >= 0) or (isinstance(value, str) and value.strip()):
        return
    raise ValueError(f"{where}: expected a word or a token id, got {value!r:.60}")
