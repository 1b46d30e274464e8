"""Results as files of other programs: Parquet, CSV, JSON and safetensors, written piece by piece.

Parquet, CSV and JSON hold a long table (`pycotmech.files.long_table`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pycotmech._choices import check_choice, unknown_choice
from pycotmech._optional import command_for, optional_import
from pycotmech.files.long_table import blocks, columns
from pycotmech.files.text import cell
from pycotmech.files.write import replacing

FORMATS = ("parquet", "csv", "safetensors", "json")


def export(
    data: xr.Dataset,
    to: str,
    path: str | os.PathLike,
    *,
    variables: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a dataset to a file in one of `FORMATS`, and returns its path. What is there is replaced.

    variables: which; None: all. about: how it was made, which goes into the file where the format has a place for it (not CSV).
    Memory: about 200,000 rows at a time; safetensors holds the whole arrays.
    Raises ValueError naming the argument, ImportError where Parquet is asked for and pyarrow is missing.
    """
    check_choice("to", to, FORMATS)
    if isinstance(variables, str):
        raise ValueError(f"variables: got the text {variables!r}; expected a list of names")
    if variables is not None and not variables:
        raise ValueError("variables: the list is empty; expected names, or none for all")
    data = data.reset_coords([name for name, v in data.coords.items() if v.ndim != 1])
    for name in variables or ():
        if name not in data.data_vars:
            raise ValueError(unknown_choice("variables", name, data.data_vars, several=True))
    chosen = data if variables is None else data[list(variables)]
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"out: there is no folder {path.parent}")
    if to == "parquet":
        check_pyarrow()
    writer = {"parquet": _parquet, "csv": _csv, "json": _json, "safetensors": _safetensors}[to]
    with replacing(path) as temporary:
        writer(chosen, temporary, json.loads(json.dumps(dict(about or {}), default=str)))
    return path


def check_pyarrow() -> None:
    """Raises ImportError with what to install if pyarrow is missing."""
    try:
        import pyarrow.parquet as _  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"to: Parquet needs pyarrow, which is not installed: {command_for('pyarrow')}; or export to csv, json, safetensors"
        ) from error


# ---- the formats ----------------------------------------------------------------------------------------------------------


def _csv(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    import pandas as pd

    names = list(columns(data))
    with path.open("w", encoding="utf-8", newline="") as file:
        pd.DataFrame(columns=names).to_csv(file, index=False, lineterminator="\n")
        for block in blocks(data):
            cells = {name: _cells(values) for name, values in block.items()}
            pd.DataFrame(cells).reindex(columns=names).to_csv(file, index=False, lineterminator="\n", header=False)


def _cells(values: np.ndarray) -> np.ndarray:
    """Texts such that a spreadsheet computes none of them; numbers as they are."""
    if values.dtype.kind not in "OUT" or not values.size:
        return values
    return np.vectorize(lambda value: cell(str(value)), otypes=[object])(values)


def _parquet(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    with optional_import():
        import pyarrow as pa  # type: ignore[import-not-found]
        import pyarrow.parquet as pq  # type: ignore[import-not-found]

    types = {name: pa.string() if dtype.kind in "OUT" else pa.from_numpy_dtype(dtype) for name, dtype in columns(data).items()}
    schema = pa.schema(list(types.items()), metadata={"pycotmech": json.dumps(about)})
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for block in blocks(data):
            n = len(next(iter(block.values())))
            arrays = [
                pa.array(_plain_texts(block[name]), type=kind) if name in block else pa.nulls(n, kind)
                for name, kind in types.items()
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _json(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    """{"about", "columns", "rows"}: a row a line. NaN is null; an infinity is the text "Infinity" or "-Infinity"."""
    names = list(columns(data))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"about": {json.dumps(about)},\n"columns": {json.dumps(names)},\n"rows": [')
        comma = "\n"
        for block in blocks(data):
            n = len(next(iter(block.values())))
            lists = [_json_values(block[name]) if name in block else [None] * n for name in names]
            for row in zip(*lists, strict=True):
                file.write(comma + json.dumps(row))
                comma = ",\n"
        file.write("\n]}\n")


def _safetensors(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    """Every variable and label as an array of its own name; axes, texts and `about` are JSON in the file's metadata."""
    from safetensors.numpy import save_file

    arrays, texts = {}, {}
    for name, variable in data.variables.items():
        values = np.asarray(variable.values)
        if values.dtype.kind in "OUT":
            texts[str(name)] = _plain_texts(values).tolist()
        else:
            arrays[str(name)] = np.ascontiguousarray(values)
    dims = {str(name): list(map(str, v.dims)) for name, v in data.variables.items()}
    save_file(arrays, path, metadata={"about": json.dumps(about), "axes": json.dumps(dims), "texts": json.dumps(texts)})


def _plain_texts(values: np.ndarray) -> np.ndarray:
    """Texts as Python strings, whatever array held them; numbers as they are."""
    if values.dtype.kind not in "OUT":
        return values
    out = np.empty(values.shape, dtype=object)
    out[...] = np.vectorize(str, otypes=[object])(values) if values.size else values
    return out


def _json_values(values: np.ndarray) -> list[Any]:
    if values.dtype.kind == "f":
        return [
            v if math.isfinite(v) else None if math.isnan(v) else f"{'-' if v < 0 else ''}Infinity" for v in values.tolist()
        ]
    return _plain_texts(values).tolist()
