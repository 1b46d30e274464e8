"""Checks of arguments, with one wording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def one_of(argument: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raises ValueError if a value is none of those allowed."""
    if value not in allowed:
        *front, last = map(repr, allowed)
        raise ValueError(f"{argument}: got {value!r}; expected {', '.join(front)} or {last}")


def between(argument: str, value: float, low: float, high: float, what: str = "a number") -> None:
    """Raises ValueError if a number does not lie between two others."""
    if not low < value < high:
        raise ValueError(f"{argument}: got {value}; expected {what} between {low} and {high}")
