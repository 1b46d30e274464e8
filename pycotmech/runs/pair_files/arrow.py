"""What Parquet files and datasets folders share: tables of Arrow, which is imported here and nowhere else."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

from pycotmech._optional import command_for
from pycotmech.runs.pair_files.record import INDICES, Record, chosen_columns

_EXTENSION = b"ARROW:extension:name"


def import_arrow(module: str, needed_for: str) -> Any:
    """Imports a module of pyarrow. Raises ImportError saying what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{needed_for} needs pyarrow, which is not installed: {command_for('pyarrow')}") from error


def chosen_fields(schema: Any, where: str) -> list[str]:
    """Returns the columns of a schema that hold fields of pairs.

    Raises ValueError naming the file and the column, for columns as in `chosen_columns` and for types other than text,
    whole numbers and lists of these. A type that the file defines for itself is never looked up.
    """
    types = import_arrow("pyarrow", where).types
    chosen = chosen_columns(list(schema.names), where)
    for name in chosen:
        field = schema.field(name)
        kind = field.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        plain = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_integer(kind)
        # An empty column has the type null; pandas makes numbers of a column with gaps float.
        plain = plain or types.is_null(kind) or types.is_floating(kind)
        if not plain or _EXTENSION in (field.metadata or {}):
            raise ValueError(f"{where}: column {name!r} has the type {field.type}; expected text, token ids or lists of these")
    return chosen


def records_of(batches: Iterable[Any], where: str) -> Iterator[Record]:
    """Yields the rows of record batches, numbered from 1. Raises ValueError naming the file for bytes that make no table."""
    row = 0
    for batch in batches:
        batch.validate(full=True)  # offsets that point outside a buffer would be followed
        for fields in batch.to_pylist():
            row += 1
            yield Record({k: _whole(v) if k in INDICES else v for k, v in fields.items()}, f"{where}, row {row}", f"row {row}")


def _whole(value: Any) -> Any:
    """A number as pandas writes it in a column with gaps: 5.0 for 5, NaN for none."""
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return value
