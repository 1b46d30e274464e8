"""All arrays of a result with their axes, as an xarray Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrays:
    """Arrays with named axes.

    data: name -> (axes, values). coords: name of an axis -> its labels, or name of a label -> (axes, values).
    units: of the arrays that have one. attrs: facts of the whole: model, metric, noise floor, source; None is left out.
    """

    data: Mapping[str, tuple[tuple[str, ...], Any]]
    coords: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def dataset(self) -> xr.Dataset:
        """The same as an xarray Dataset."""
        import xarray as xr

        def variable(name: str) -> tuple:
            axes, values = self.data[name]
            return axes, _known(values), {"units": self.units[name]} if name in self.units else {}

        coords = {
            name: (found[0], _known(found[1])) if isinstance(found, tuple) else _known(found)
            for name, found in self.coords.items()
        }
        attrs = {name: value for name, value in self.attrs.items() if value is not None}
        return xr.Dataset({name: variable(name) for name in self.data}, coords=coords, attrs=attrs)


def _known(values: Any) -> np.ndarray:
    """Values as an array that xarray and pandas know: texts as Python strings."""
    found = np.asarray(values)
    return found.astype(object) if found.dtype.kind in "US" else found
