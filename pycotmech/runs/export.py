"""Results as files of other programs: Parquet, CSV, JSON and safetensors, written piece by piece.

Parquet, CSV and JSON hold a long table: a row for each cell of a set of axes, with a column for each axis, each label and each
variable. A variable on fewer axes is repeated. Variables whose axes are no part of each other's, as some analyses have them,
give several blocks of rows in the same file; the columns of the others are empty there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pycotmech._optional import optional_import
from pycotmech.files.text import cell
from pycotmech.files.write import replacing

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("parquet", "csv", "safetensors", "json")
_ROWS = 200_000
"""Rows in memory at a time."""


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
    if to not in FORMATS:
        raise ValueError(f"to: got {to!r}; expected one of {', '.join(FORMATS)}")
    if isinstance(variables, str):
        raise ValueError(f"variables: got the text {variables!r}; expected a list of names")
    if variables is not None and not variables:
        raise ValueError("variables: the list is empty; expected names, or none for all")
    data = data.reset_coords([name for name, v in data.coords.items() if v.ndim != 1])
    for name in variables or ():
        if name not in data.data_vars:
            raise ValueError(f"variables: got {name!r}; expected some of {', '.join(map(str, data.data_vars))}")
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
            "to: Parquet needs pyarrow; install pycotmech[export], or export to csv, json or safetensors"
        ) from error


def long_table(data: xr.Dataset, variables: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns the whole long table of a dataset in memory."""
    import pandas as pd

    data = data.reset_coords([name for name, v in data.coords.items() if v.ndim != 1])
    chosen = data if variables is None else data[list(variables)]
    found = [pd.DataFrame(block) for block in blocks(chosen)]
    if not found:
        return pd.DataFrame(columns=list(_columns(chosen)))
    return pd.concat(found, ignore_index=True).reindex(columns=list(_columns(chosen)))


def blocks(data: xr.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """Yields the long table in pieces: columns by name, all of one length. Values are read from disk piece by piece."""
    for dims in axes_of(data):
        names = [name for name, v in data.data_vars.items() if set(v.dims) <= set(dims) and _home(data, name) == dims]
        part = data[names]
        if not dims:
            yield {str(name): np.atleast_1d(part[name].values) for name in names}
            continue
        others = math.prod(part.sizes[d] for d in dims[1:])
        step = max(1, _ROWS // max(1, others))
        for start in range(0, part.sizes[dims[0]], step):
            piece = part.isel({dims[0]: slice(start, start + step)})
            shape = tuple(piece.sizes[d] for d in dims)
            columns: dict[str, np.ndarray] = {}
            for i, dim in enumerate(dims):
                labels = (
                    piece[dim].values
                    if dim in piece.coords
                    else np.arange(start if i == 0 else 0, (start if i == 0 else 0) + shape[i])
                )
                columns[dim] = _spread(labels, (dim,), dims, shape)
                for name, coord in piece.coords.items():
                    if coord.dims == (dim,) and name != dim:
                        columns[str(name)] = _spread(coord.values, (dim,), dims, shape)
            for name in names:
                columns[str(name)] = _spread(piece[name].values, piece[name].dims, dims, shape)
            yield columns


def axes_of(data: xr.Dataset) -> list[tuple[str, ...]]:
    """The sets of axes that no variable's larger set contains, each in the order of its variable, the largest first."""
    found: list[tuple[str, ...]] = []
    for variable in sorted(data.data_vars.values(), key=lambda v: -v.ndim):
        dims = tuple(map(str, variable.dims))
        if not any(set(dims) <= set(other) for other in found):
            found.append(dims)
    return found


def _home(data: xr.Dataset, name: Any) -> tuple[str, ...]:
    """The first set of axes that holds a variable's: it is a column there only."""
    return next(dims for dims in axes_of(data) if set(data[name].dims) <= set(dims))


def _spread(values: np.ndarray, own: Sequence[Any], dims: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
    """Repeats values on some axes over all of them, in rows: [...] -> [rows]."""
    order = [own.index(d) for d in dims if d in own]
    whole = values.transpose(order).reshape([n if d in own else 1 for d, n in zip(dims, shape, strict=True)])
    return np.broadcast_to(whole, shape).reshape(-1)


def _columns(data: xr.Dataset) -> dict[str, np.dtype]:
    """All columns of the long table with the types of their values, axes first."""
    axes: dict[str, np.dtype] = {}
    for dims in axes_of(data):
        for dim in dims:
            axes[dim] = data[dim].dtype if dim in data.coords else np.dtype("int64")
            axes |= {str(n): c.dtype for n, c in data.coords.items() if c.dims == (dim,) and n != dim}
    return axes | {str(name): v.dtype for name, v in data.data_vars.items()}


# ---- the formats ----------------------------------------------------------------------------------------------------------


def _csv(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    import pandas as pd

    columns = list(_columns(data))
    with path.open("w", encoding="utf-8", newline="") as file:
        pd.DataFrame(columns=columns).to_csv(file, index=False, lineterminator="\n")
        for block in blocks(data):
            cells = {name: _cells(values) for name, values in block.items()}
            pd.DataFrame(cells).reindex(columns=columns).to_csv(file, index=False, lineterminator="\n", header=False)


def _cells(values: np.ndarray) -> np.ndarray:
    """Texts such that a spreadsheet computes none of them; numbers as they are."""
    if values.dtype.kind not in "OUT" or not values.size:
        return values
    return np.vectorize(lambda value: cell(str(value)), otypes=[object])(values)


def _parquet(data: xr.Dataset, path: Path, about: Mapping[str, Any]) -> None:
    with optional_import():
        import pyarrow as pa  # type: ignore[import-not-found]
        import pyarrow.parquet as pq  # type: ignore[import-not-found]

    types = {name: pa.string() if dtype.kind in "OUT" else pa.from_numpy_dtype(dtype) for name, dtype in _columns(data).items()}
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
    columns = list(_columns(data))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(f'{{"about": {json.dumps(about)},\n"columns": {json.dumps(columns)},\n"rows": [')
        comma = "\n"
        for block in blocks(data):
            n = len(next(iter(block.values())))
            lists = [_json_values(block[name]) if name in block else [None] * n for name in columns]
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
