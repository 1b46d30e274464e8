"""Whether results are those of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import pycotmech as pcm
from pycotmech.runs import SweepState, read
from pycotmech.runs.variables import DATA, VARIABLES

TIMES = ("seconds",)
NUMBERS = tuple(name for name in VARIABLES if name not in TIMES)
ADDED = tuple(name for name in DATA if name not in TIMES)


def differing(folder: Path, truth: Path) -> list[str]:
    """The variables of which a bit differs from those of the undisturbed run."""
    one, two = read(folder), read(truth)
    return [name for name in NUMBERS if not np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")]


def wrong_values(folder: Path, truth: Path) -> list[str]:
    """Variables that give a value which is not that of the undisturbed run, read at once and on demand. Values that are missing
    (NaN, pending) or refused (ValueError) are none."""
    expected, found = read(truth), set()
    for reader in (read, lambda f: pcm.open_results(f).data):
        try:
            data = reader(folder)
        except (ValueError, FileNotFoundError):
            continue
        for name in ADDED:
            try:
                values = data[name].values
            except ValueError:
                continue
            right = np.isnan(values) | (values == expected[name].values)
            if not right.all():
                found.add(name)
        try:
            done = (data["state"] == SweepState.FINISHED).values
            if (done & (expected["state"] != SweepState.FINISHED).values).any():
                found.add("state")
            for name in ("raw", "values", "effect"):
                if np.isnan(data[name].values[done]).any():
                    found.add(name)
        except ValueError:
            continue
    return sorted(found)
