"""Choices from names: one error that says what came, what could have been given, and which name was probably meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher
from typing import Any

LISTED = 16
"""So many names are listed in an error; of more, the first few and how many there are."""

_FIRST = 5
_ALIKE = 0.6
"""From this similarity on (0 to 1, `SequenceMatcher.ratio`) a name is suggested."""


def check_choice(argument: str, value: Any, allowed: Collection[Any], *, also: str = "") -> None:
    """Raises ValueError, worded by `unknown_choice`, if a value is none of those allowed."""
    if not any(value is one or (isinstance(value, type(one)) and value == one) for one in allowed):
        raise ValueError(unknown_choice(argument, value, allowed, also=also))


def unknown_choice(
    argument: str,
    value: Any,
    allowed: Iterable[Any],
    *,
    several: bool = False,
    also: str = "",
    see: str = "",
    none: str = "there is no name to choose from",
) -> str:
    """Returns the message for a value that is none of those allowed, as in "metric: got 'kll'; expected one of kl, prob; did
    you mean 'kl'?".

    several: whether more than one may be given. also: what else is allowed, in words. see: what lists all names, in words, for
    where there are many. none: why there is nothing to choose from, if nothing is allowed.
    """
    allowed = list(allowed)
    some = "some of" if several else "one of"
    expected = f"{some} {shortened(allowed, see)}" if allowed else f"none: {none}"
    return f"{argument}: got {value!r}; expected {expected}{f', or {also}' if also else ''}{did_you_mean(value, allowed)}"


def shortened(names: Iterable[Any], see: str = "") -> str:
    """Returns the names in a line; of more than `LISTED` the first few, how many there are, and what lists all of them."""
    names = list(map(str, names))
    if len(names) <= LISTED:
        return ", ".join(names)
    return f"{len(names)} names such as {', '.join(names[:_FIRST])}{f' ({see} lists all)' if see else ''}"


def did_you_mean(value: Any, names: Iterable[Any]) -> str:
    """Returns "; did you mean 'kl'?" with the names that are most alike, three at most; nothing if none is alike."""
    found = alike(value, names)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""


def alike(value: Any, names: Iterable[Any], *, n: int = 3, least: float = _ALIKE) -> list[str]:
    """Returns the names that are most like a text, the most similar first: n at most, all of them nearly as similar as the
    first. Case counts for nothing, and neither do spaces and hyphens in place of underscores.

    least: the similarity from which on a name is alike, 0 to 1.
    """
    if not isinstance(value, str) or not value.strip():
        return []
    asked = _plain(value)
    known = dict.fromkeys(name for name in names if isinstance(name, str))
    scored = [(SequenceMatcher(None, _plain(name), asked).ratio(), name) for name in known]
    found = sorted((score for score in scored if score[0] >= least), key=lambda score: -score[0])
    return [name for score, name in found if score >= found[0][0] - 0.1][:n]


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
