"""A pass whose rows go from device to device, where the layers of a model lie on several.

The objects that a pass consists of say which of their attributes are on the device (`on_device`). For another device they are
copied with these tensors moved there, once; what they hold of every layer (keys and values, kept activations, given values) is
moved layer by layer as it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pycotmech.engine.bases import Bases
from pycotmech.engine.rows import Join, Joining, PackedRows


class _ByLayer:
    """A tensor [L, ...] of which each layer is moved as it is read; the last one that was read is kept."""

    def __init__(self, kept: Tensor, device: torch.device) -> None:
        self._kept, self._device = kept, device
        self._last: tuple[int, Tensor] | None = None

    def __getitem__(self, l: int) -> Tensor:
        if self._last is None or self._last[0] != l:
            self._last = l, self._kept[l].to(self._device)
        return self._last[1]


class _AsRead(dict):
    """A dictionary by layer whose values are moved as they are read."""

    def __init__(self, kept: dict, move: Callable[[Any], Any]) -> None:
        super().__init__(kept)
        self._move = move

    def __getitem__(self, key: Any) -> Any:
        return self._move(super().__getitem__(key))

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key)
        return default if found is None else self._move(found)


class Traveller:
    """Gives a pass as it is on each device. home: where it was made."""

    def __init__(self, home: torch.device) -> None:
        self._home = home
        self._on: dict[torch.device, Any] = {}

    def on(self, device: torch.device, staircase: Any) -> Any:
        """The staircase on this device; what it watches and how its variants join is asked at home where it cannot move."""
        if device == self._home:
            return staircase
        if device not in self._on:
            memo: dict[int, Any] = {}
            if staircase.watch is not None:
                memo[id(staircase.watch)] = _WatchAtHome(staircase.watch, staircase.rows, self._home)
            if not hasattr(staircase.join, "on_device"):
                memo[id(staircase.join)] = _JoinAtHome(staircase.join, self._home)
            self._on[device] = _moved(staircase, device, memo)
        return self._on[device]


class _WatchAtHome:
    def __init__(self, watch: Callable, rows: PackedRows, home: torch.device) -> None:
        self._watch, self._rows, self._home = watch, rows, home

    def __call__(self, l: int, rows: PackedRows, x: Tensor, n: int) -> None:
        self._watch(l, self._rows, x.to(self._home), n)


class _JoinAtHome:
    def __init__(self, join: Join, home: torch.device) -> None:
        self._join, self._home = join, home

    def __call__(self, joining: Joining) -> Tensor:
        names = ("variant", "base", "position", "index")
        at_home = replace(joining, **{name: getattr(joining, name).to(self._home) for name in names})
        return self._join(at_home).to(joining.index.device)


def _moved(x: Any, device: torch.device, memo: dict[int, Any]) -> Any:
    """x with its tensors on the device. memo: what was moved already, by the id of the original."""
    if x is None or id(x) in memo:
        return memo.get(id(x))
    if isinstance(x, Tensor):
        out = x.to(device)
    elif isinstance(x, dict):
        out = _AsRead(x, lambda value: _moved(value, device, {}))
    elif isinstance(x, tuple):
        out = tuple(_moved(value, device, memo) for value in x)
    elif isinstance(x, Bases):
        sites, source = ({name: _ByLayer(t, device) for name, t in kept.items()} for kept in (x.sites, x.source))
        out = copy(x)
        vars(out).update(
            k=_ByLayer(x.k, device), v=_ByLayer(x.v, device), sites=sites, source=source, angles=x.angles.to(device)
        )
    else:
        out = copy(x)
        memo[id(x)] = out
        for name in x.on_device:
            vars(out)[name] = _moved(getattr(x, name), device, memo)
    memo[id(x)] = out
    return out
