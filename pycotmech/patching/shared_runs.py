"""Pairs that are read off one another's runs.

A causal model's run of a prompt holds the runs of all its beginnings. A pair whose prompts, up to where they are read, begin
those of another pair, and which is patched at all of its positions, is answered by the other's variants: each is read at one
position more. The steps of one chain of thought that ask for the same word under the same replacement are such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pycotmech.patching.pairs import Pair, targets_of


@dataclass(frozen=True)
class SharedRun:
    """host: the number of the pair that is run. readers: the pairs that are read off it, by where they are read; the last of
    them is the host."""

    host: int
    readers: tuple[int, ...]


def each_alone(n: int) -> list[SharedRun]:
    """Every pair its own run."""
    return [SharedRun(i, (i,)) for i in range(n)]


def shared_runs(pairs: Sequence[Pair], targets: Sequence[Sequence[int]] | None = None) -> list[SharedRun]:
    """The fewest runs from which all pairs can be read, in the order of their hosts. targets: the positions patched of each
    pair (None: all that can change anything); one that is not patched at all of those is run alone."""
    hosts: dict[int, list[int]] = {}
    text = [(_upto(p.clean, p), _upto(p.corrupted, p)) for p in pairs]
    targets = [targets_of(p, None) for p in pairs] if targets is None else targets
    at_all = [list(t) == targets_of(p, None) for p, t in zip(pairs, targets, strict=True)]
    for i in sorted(range(len(pairs)), key=lambda i: -pairs[i].read):
        found = (h for h in hosts if at_all[h] and all(a.startswith(b) for a, b in zip(text[h], text[i], strict=True)))
        host = next(found, i) if at_all[i] else i
        hosts.setdefault(host, []).insert(0, i)
    return [SharedRun(h, tuple(hosts[h])) for h in sorted(hosts)]


def _upto(tokens: Tensor, pair: Pair) -> bytes:
    return tokens[: pair.read + 1].long().numpy().tobytes()
