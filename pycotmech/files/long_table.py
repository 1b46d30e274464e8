"""A dataset as a long table: a row for each cell of a set of axes, with a column for each axis, each label and each variable.

A variable on fewer axes is repeated. Variables whose axes are no part of each other's give several blocks of rows, in which the
columns of the others are empty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MOST_ROWS = 20_000_000
"""Rows of a table in memory."""
_ROWS = 200_000
"""Rows in memory at a time, where a table is written piece by piece."""


def long_table(data: xr.Dataset, variables: Sequence[str] | None = None) -> pd.DataFrame:
    """Returns the whole long table of a dataset in memory. variables: which; None: all.

    Raises ValueError for more than `MOST_ROWS` rows, before they are made.
    """
    import pandas as pd

    data = data.reset_coords([name for name, v in data.coords.items() if v.ndim != 1])
    chosen = data if variables is None else data[list(variables)]
    if (n := sum(math.prod(chosen.sizes[d] for d in dims) for dims in axes_of(chosen))) > MOST_ROWS:
        raise ValueError(
            f"variables: the table of {', '.join(map(str, chosen.data_vars))} has {n:,} rows; expected at most {MOST_ROWS:,}: "
            "choose some of the variables, or take the Dataset"
        )
    found = [pd.DataFrame(block) for block in blocks(chosen)]
    if not found:
        return pd.DataFrame(columns=list(columns(chosen)))
    return pd.concat(found, ignore_index=True).reindex(columns=list(columns(chosen)))


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
            row: dict[str, np.ndarray] = {}
            for i, dim in enumerate(dims):
                labels = (
                    piece[dim].values
                    if dim in piece.coords
                    else np.arange(start if i == 0 else 0, (start if i == 0 else 0) + shape[i])
                )
                row[dim] = _spread(labels, (dim,), dims, shape)
                for name, coord in piece.coords.items():
                    if coord.dims == (dim,) and name != dim:
                        row[str(name)] = _spread(coord.values, (dim,), dims, shape)
            for name in names:
                row[str(name)] = _spread(piece[name].values, piece[name].dims, dims, shape)
            yield row


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


def columns(data: xr.Dataset) -> dict[str, np.dtype]:
    """All columns of the long table with the types of their values, axes first."""
    axes: dict[str, np.dtype] = {}
    for dims in axes_of(data):
        for dim in dims:
            axes[dim] = data[dim].dtype if dim in data.coords else np.dtype("int64")
            axes |= {str(n): c.dtype for n, c in data.coords.items() if c.dims == (dim,) and n != dim}
    return axes | {str(name): v.dtype for name, v in data.data_vars.items()}
