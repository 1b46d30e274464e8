"""Prompt pairs from a file, whatever its format (`pycotmech.runs.pair_files`), checked by one set of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pycotmech.runs.pair_files.choose import reader_of
from pycotmech.runs.pair_files.record import FIELDS, INDICES, Record

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.runs.settings import Settings


def words_read(metric: str) -> tuple[str, ...]:
    """Which of "answer" and "wrong" a metric reads; the others may be missing in a pair."""
    return {"prob": ("answer",), "logit_diff": ("answer", "wrong")}.get(metric, ())


def sweep_options(settings: Settings, words: Callable[[str], list], others: Sequence[Tensor | None]) -> dict[str, Any]:
    """The options of `patch_heads` for pairs of a run. words: gives "answer" or "wrong" of each pair; others: prompts for the
    random control."""
    from pycotmech.patching.controls import control_arguments

    options: dict[str, Any] = {name: words(name) for name in words_read(settings.metric)}
    options |= {name: getattr(settings, name) for name in ("direction", "positions", "metric", "seed")}
    return options | (control_arguments(others) if settings.controls else {})


@dataclass(frozen=True)
class PromptPair:
    """One pair of a file.

    clean, corrupted: text or token ids. answer, wrong: a word, a token id or None. name: for tables and figures; without
    one in the file it is "line N" or "row N". where: "FILE, line N" or "FILE, row N", for messages.
    """

    clean: str | list[int]
    corrupted: str | list[int]
    answer: str | int | None
    wrong: str | int | None
    name: str
    where: str


def read_pairs(path: str | PathLike, *, metric: str = "kl") -> list[PromptPair]:
    """Reads the pairs of a file and checks them as far as that is possible without a model.

    path: by the ending of its name, otherwise by its content,
        - a JSONL file, an object a line with clean and corrupted, and as needed answer, wrong, name;
        - a CSV file (.tsv: tab-separated) with columns of these names;
        - a Parquet file with such columns (needs pyarrow);
        - a folder that `datasets.Dataset.save_to_disk` wrote, with such columns (needs pyarrow).
        EAP-IG's `correct_idx` and `incorrect_idx` stand for answer and wrong as token ids. Other columns of a table are left
        out; an unknown field of a JSONL object is an error.
    metric: what they are for; "prob" needs an answer in each pair, "logit_diff" an answer and a wrong one.
    Raises FileNotFoundError; ImportError saying what to install; or ValueError naming the file, the line or row, and the field.
    Cost: the whole file is read into memory. Nothing in it is run or unpickled.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"pairs: there is no file {path} (seen from {Path.cwd()})")
    reader = reader_of(path)
    out = [_pair(record, metric) for record in reader.read(path)]
    if not out:
        raise ValueError(f"pairs: {path} holds no pair; expected {reader.expected}")
    return out


def _pair(record: Record, metric: str) -> PromptPair:
    found, where = _named_once(record.fields, record.where), record.where
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
    for field in FIELDS:
        value = found.get(field)
        if isinstance(value, str) and not value.isprintable() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError(f"{where}: field {field!r} holds half of a surrogate pair, which is not text")
    if found["clean"] == found["corrupted"]:
        raise ValueError(f"{where}: fields 'clean' and 'corrupted' are the same; expected prompts that differ")
    return PromptPair(found["clean"], found["corrupted"], found.get("answer"), found.get("wrong"), name or record.name, where)


def _named_once(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """The fields with EAP-IG's names for token ids replaced by ours."""
    found = {name: value for name, value in fields.items() if name not in INDICES}
    for index, field in INDICES.items():
        if (value := fields.get(index)) is None:
            continue
        if found.get(field) is not None:
            raise ValueError(f"{where}: fields {field!r} and {index!r} are both given; expected one of them")
        if not (_is_id(value) and value >= 0):
            raise ValueError(f"{where}: field {index!r}: expected a token id, got {value!r:.60}")
        found[field] = value
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
