"""Public names of a package that are loaded when they are first used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def attribute(package: str, name: str, places: Mapping[str, str]) -> Any:
    """Returns an attribute of a package for its `__getattr__`, and keeps it there, so that it is looked up once.

    places: public name -> its module; relative to the package if it begins with a dot.
    Raises AttributeError for any other name.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(places[name], package), name)
    setattr(sys.modules[package], name, value)
    return value
