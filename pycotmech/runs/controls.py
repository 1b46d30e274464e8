"""The controls of runs over many examples: each takes activations from the next example with a prompt of the same length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

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

    out: list[list[Tensor | None]] = [[None] * len(row) for row in units]
    for step in range(len(units[0]) if units else 0):
        for row, other in zip(out, next_pairs([row[step].pair for row in units], direction), strict=True):
            row[step] = other
    return out
