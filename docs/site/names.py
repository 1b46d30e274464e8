"""The public names of the package, and where what they stand for is defined. Used by the site (hooks.py) and its tests."""

from __future__ import annotations

import importlib
import inspect
import types
from typing import Any

import pycotmech as pcm


def public() -> list[str]:
    """Every public name: those of `pycotmech`, and of each of its subpackages those that it has by no other name.

    pcm.patch_heads is also pcm.patching.patch_heads; it counts once, under the shorter name.
    """
    found = [f"pcm.{name}" for name in pcm.__all__]
    seen = {identity(name) for name in found}
    for package in [name for name in found if isinstance(resolve(name), types.ModuleType)]:
        for name in getattr(resolve(package), "__all__", ()):
            full = f"{package}.{name}"
            if identity(full) not in seen:
                seen.add(identity(full))
                found.append(full)
    return found


def resolve(name: str) -> Any:
    """The object of a public name, such as pcm.traces.Trace."""
    found: Any = pcm
    for word in name.split(".")[1:]:
        found = getattr(found, word)
    return found


def identity(name: str) -> str:
    """Equal for two names of one object."""
    return place(name) if callable(resolve(name)) else name


def place(name: str) -> str:
    """Where the object is defined, as a path of modules: pcm.patch_heads -> pycotmech.patching.heads.patch_heads."""
    found = resolve(name)
    if isinstance(found, types.ModuleType):
        return found.__name__
    if not callable(found):
        raise TypeError(f"{name}: got {type(found).__name__}; expected a module, a class or a function")
    path = f"{found.__module__}.{found.__qualname__}"
    there = getattr(importlib.import_module(found.__module__), found.__qualname__)
    assert inspect.unwrap(there) is inspect.unwrap(found), path  # tests wrap what measures the machine
    return path
