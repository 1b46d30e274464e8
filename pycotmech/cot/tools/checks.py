"""Checks of arguments, with one wording."""

from __future__ import annotations


def between(argument: str, value: float, low: float, high: float, what: str = "a number") -> None:
    """Raises ValueError if a number does not lie between two others."""
    if not low < value < high:
        raise ValueError(f"{argument}: got {value}; expected {what} between {low} and {high}")
