"""Pairs from a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pycotmech.runs.pair_files.arrow import chosen_fields, import_arrow, records_of
from pycotmech.runs.pair_files.record import Record

MAGIC = b"PAR1"
"""The first bytes of every Parquet file."""

_ROWS = 1024
"""Rows that are decoded at a time."""


def read(path: Path) -> Iterator[Record]:
    """Yields the rows of a Parquet file; only columns with fields of pairs are decoded.

    Raises ImportError without pyarrow, ValueError naming the file, the row and the column.
    """
    parquet = import_arrow("pyarrow.parquet", f"{path}: a Parquet file")
    with path.open("rb") as stream:
        try:
            file = parquet.ParquetFile(stream)
            chosen = chosen_fields(file.schema_arrow, str(path))
            yield from records_of(file.iter_batches(batch_size=_ROWS, columns=chosen), str(path))
        except import_arrow("pyarrow", str(path)).ArrowException as error:
            raise ValueError(f"pairs: {path} is not a readable Parquet file ({error})") from error
        except OSError as error:  # Arrow's word for damaged pages
            raise ValueError(f"pairs: {path} is not a readable Parquet file ({error})") from error
