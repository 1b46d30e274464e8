"""The controls of runs over many examples: each takes activations from the next example with a prompt of the same length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:
    from torch import Tensor

    from pycotmech.patching.pairs import Pair


class HasPair(Protocol):
    """A sweep of a run, of which only the prompts count here."""

    @property
    def pair(self) -> Pair: ...


def other_prompts(units: Sequence[Sequence[HasPair]], direction: str) -> list[list[Tensor | None]]:
    """Of each sweep the prompt that its random control takes activations from: [examples][steps].

    It is the source prompt, at the same step, of the next example whose prompt has the same length and is another, the first
    examples following the last. None where there is none.
    """
    from pycotmech.patching.controls import next_pairs

    return _by_step(units, lambda pairs: next_pairs(pairs, direction))


def are_others_after(units: Sequence[Sequence[HasPair]], n: int, direction: str) -> bool:
    """Whether the other prompts of the first n examples all belong to examples that come after them in the list. More examples
    at its end then change none of them."""
    from pycotmech.patching.controls import next_places

    places = _by_step(units, lambda pairs: next_places(pairs, direction))
    return all(place is not None and place > e for e, row in enumerate(places[:n]) for place in row)


def _by_step(units: Sequence[Sequence[HasPair]], found: Callable[[list[Pair]], list[T]]) -> list[list[T]]:
    """What is found for the pairs of each step, as [examples][steps]."""
    columns = [found([row[step].pair for row in units]) for step in range(len(units[0]) if units else 0)]
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in units]
