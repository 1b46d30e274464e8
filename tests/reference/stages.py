"""Which rows go through the stages of a family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from pycotmech.model.families.base import Family

_AFTER = {"qkv": "qkv_after", "mlp_out": "mlp_after"}
"""Stages that are called under another name where the residual rows are still short of something."""


def observe(monkeypatch: pytest.MonkeyPatch, family: Family, stage: str, note: Callable[[int, Tensor], object]) -> None:
    """Calls note(layer, rows) whenever rows go through this stage; once, also where one name of it calls the other."""
    inside: list[str] = []

    def watched(name: str) -> Callable:
        plain = getattr(family, name)

        def run(l: int, x: Tensor, *more: Tensor):
            if not inside:
                note(l, x)
            inside.append(name)
            try:
                return plain(l, x, *more)
            finally:
                inside.pop()

        return run

    for name in (stage, _AFTER[stage]) if stage in _AFTER else (stage,):
        monkeypatch.setattr(family, name, watched(name))
