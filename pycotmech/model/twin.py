"""A stand-in for a user's model that can be hooked and reconfigured while the model itself stays untouched."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def twin_of(model: nn.Module, parts: Iterable[str]) -> nn.Module:
    """A model with the same weights, buffers and hooks, of which the modules named in `parts` are copies.

    parts: names as in `named_modules()`, "" for the model itself. These modules, and those that contain them, are shallow
        copies; every other module, and every weight, is the model's own. Hooks put on the copies, and attributes set on them,
        are not seen by `model`, so other threads may run it, or make twins of their own, at the same time.

    Cost: a few microseconds for each copied module; no weight is copied.
    """
    copies = {"": _copied(model)}
    for name in filter(None, parts):
        path = name.split(".")
        for i, child in enumerate(path):
            here = ".".join(path[: i + 1])
            if here not in copies:
                parent = copies[".".join(path[:i])]
                copies[here] = _copied(parent.get_submodule(child))
                parent.add_module(child, copies[here])
    return copies[""]


def _copied(module: nn.Module) -> nn.Module:
    """A shallow copy with registries of its own: submodules, hooks, buffers, parameters."""
    out = object.__new__(type(module))
    vars(out).update({name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()})
    return out
