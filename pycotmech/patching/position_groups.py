"""Groups of positions with names: a prompt's question, its chain, its last token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pycotmech.model.prompts import resolve_positions

Positions = slice | range | int | Sequence[int] | Tensor
PositionGroups = Mapping[str, Positions]
"""name -> positions: a slice, one position or several, negative from the end."""


def positions_of(where: Positions, length: int, *, argument: str) -> list[int]:
    """Positions in a prompt of `length` tokens, ascending, each once. ValueError if there are none or one is outside."""
    if isinstance(where, slice):
        for bound in (where.start, where.stop):
            if bound is not None and not -length <= bound <= length:
                raise ValueError(f"{argument}: {where} reaches outside the prompt of {length} tokens")
        found = list(range(length))[where]
    else:
        if isinstance(where, (str, bytes)):
            raise TypeError(f"{argument}: got {where!r}; expected a slice or positions")
        found = resolve_positions(where, length, argument=argument)
    if not found:
        raise ValueError(f"{argument}: {where} holds no position; expected at least one")
    return sorted(set(found))


def labels_of(groups: PositionGroups, length: int, *, argument: str = "groups") -> Tensor:
    """The number of each position's group [length], -1 for none. ValueError if two groups share a position."""
    if not isinstance(groups, Mapping) or not groups:
        raise TypeError(f"{argument}: got {groups!r}; expected a mapping of names to positions, at least one")
    labels = torch.full((length,), -1)
    for g, (name, where) in enumerate(groups.items()):
        if not isinstance(name, str) or not name:
            raise TypeError(f"{argument}: got the name {name!r}; expected names that are strings and not empty")
        at = torch.tensor(positions_of(where, length, argument=f"{argument}[{name!r}]"))
        taken = at[labels[at] >= 0]
        if len(taken):
            other = list(groups)[int(labels[taken[0]])]
            raise ValueError(f"{argument}: {name!r} and {other!r} overlap at position {int(taken[0])}; expected groups apart")
        labels[at] = g
    return labels


def labels_of_prompts(
    groups: PositionGroups | Sequence[PositionGroups], lengths: Sequence[int]
) -> tuple[tuple[str, ...], list[Tensor]]:
    """Names of the groups, and the labels of each prompt's positions; one mapping for all prompts or one for each."""
    if isinstance(groups, Mapping):
        mappings, arguments = [groups] * len(lengths), ["groups"] * len(lengths)
    else:
        mappings, arguments = list(groups), [f"groups[{i}]" for i in range(len(lengths))]
        if len(mappings) != len(lengths):
            raise ValueError(
                f"groups: {len(mappings)} given for {len(lengths)} examples; expected one mapping, or one per example"
            )
    labels = [labels_of(g, n, argument=a) for g, n, a in zip(mappings, lengths, arguments, strict=True)]
    names = tuple(mappings[0])
    for mapping, argument in zip(mappings, arguments, strict=True):
        if tuple(mapping) != names:
            raise ValueError(f"{argument}: the names {list(mapping)} are not those of the first example, {list(names)}")
    return names, labels
