"""What the intervals of every result have to be: those of its values over examples, in the range its variables are in."""

import numpy as np
import pytest

from pycotmech.stats import bootstrap


def keeps_its_ranges(result, *absent):
    """Every variable with a range is there (but for those named) and lies in it."""
    assert set(result.ranges) - set(result.data) == set(absent)
    for name, (low, high) in result.ranges.items():
        if name not in absent:
            values = result.data[name].values
            values = values[np.isfinite(values)]
            assert len(values) and (values >= low - 1e-9).all() and (values <= high + 1e-5).all(), name


def tells(row, name, values, within):
    """The columns name, name_low and name_high of a table's row are those of values [example]."""
    found = bootstrap.mean_interval(values, within=within)
    assert found.n > 1 and found.low < found.high  # or nothing would be tested
    expected = [float(x) for x in found[:3]]
    assert [row[f"{name}{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected, nan_ok=True)
