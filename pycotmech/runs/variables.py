"""The variables of `results.zarr`: one table, so that a new quantity of a sweep is one entry.

An entry says on which axes the variable lies, what it holds before its sweep is finished, and how it is read off a sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

CELL = ("example", "step")
GRID = (*CELL, "layer", "head")
AXES = GRID
"""All axes that a variable can have. "example" is always the first, and one example is one chunk."""


@dataclass(frozen=True)
class StoredVariable:
    """One variable of the store.

    axes: of `AXES`, in their order, beginning with example and step. fill: what pending sweeps hold.
    of: reads the value of one sweep, an array over the axes after "step" or a number; None for what the store itself writes.
        If it returns None, the sweep has no such value, and `fill` stays.
    added: later than the format, so that a store may lack it. A folder without it is continued without it.
    """

    axes: tuple[str, ...]
    dtype: str
    fill: float
    text: str
    of: Callable[[Any], Any] | None = None
    added: bool = False


VARIABLES: dict[str, StoredVariable] = {
    "raw": StoredVariable(GRID, "f8", np.nan, "the metric of the run with this head patched", attrgetter("raw")),
    "values": StoredVariable(GRID, "f4", np.nan, "raw on the scale corrupted 0, clean 1", attrgetter("values")),
    "effect": StoredVariable(
        GRID, "f4", np.nan, "distance from the base run on that scale, against the mean of the self-patches",
        attrgetter("effect"),
    ),
    "control": StoredVariable(
        GRID, "f4", np.nan, "effect with activations of another example; NaN where it was not measured", attrgetter("control"),
        added=True,
    ),
    "clean_metric": StoredVariable(
        CELL, "f8", np.nan, "the metric of the clean run", lambda sweep: float(sweep.clean_metric[0])
    ),
    "corrupted_metric": StoredVariable(
        CELL, "f8", np.nan, "the metric of the corrupted run", lambda sweep: float(sweep.corrupted_metric[0])
    ),
    "noise_floor": StoredVariable(CELL, "f8", np.nan, "what rounding may change in an effect", attrgetter("noise_floor")),
    "sham": StoredVariable(
        CELL, "f8", np.nan, "largest |effect| of a patch before the first difference; NaN where it was not measured",
        attrgetter("sham"), added=True,
    ),
    "seconds": StoredVariable(CELL, "f8", np.nan, "wall time of the sweep"),
    "right": StoredVariable(CELL, "i1", -1, "1 if the model gets the step right, 0 if not, -1 if not graded"),
    "state": StoredVariable(CELL, "i1", 0, "0 pending, 1 finished, 2 skipped since the model gets the step wrong"),
}  # fmt: skip

DATA = tuple(name for name in VARIABLES if name not in ("right", "state"))
"""What a finished sweep must have."""
