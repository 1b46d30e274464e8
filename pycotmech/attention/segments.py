"""Segments: named groups of keys, over which attention is summed.

A segment is a slice or a list of positions, or the keys that carry one integer label. Segments do not overlap, need not
cover everything, and the first token, which many heads use as a resting place, is a segment of its own ("first") unless
it is in one: a summary that lumps it with the text around it says little about the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FIRST = "first"
"""Name of the first token's own segment."""

_LARGEST = 2**31 - 1
"""Of labels and positions, which the kernels take as int32."""

Positions = slice | range | int | np.integer | Sequence[int] | np.ndarray | Tensor
Segments = Mapping[str, Positions] | Sequence[int] | np.ndarray | Tensor
"""name -> positions; or one integer label per key [T] ([B, T] for a batch), -1 for none."""


@dataclass(frozen=True)
class Labelled:
    """The segment of each key. names: G of them; labels: int32 [S] or [B, S], 0 to G - 1, or -1 for none."""

    names: tuple[str, ...]
    labels: Tensor


class SegmentRule:
    """What the user asked for, checked; `label` applies it to a number of keys.

    growing: the keys become more as a model generates. Positions are then counted from the front only, may lie beyond the
    keys that exist, and an open slice takes in new keys.
    """

    def __init__(self, segments: Segments | None, *, growing: bool = False, argument: str = "segments") -> None:
        self.argument, self.growing = argument, growing
        self.labels: Tensor | None = None
        self.named: dict[str, Positions] = {}
        if isinstance(segments, Mapping):
            for name in segments:
                if not isinstance(name, str) or not name:
                    raise TypeError(f"{argument}: segment names must be strings that are not empty, got {name!r}")
            self.named = dict(segments)
        elif isinstance(segments, (str, bytes, slice)):
            raise TypeError(f"{argument}: expected a mapping of names to positions, or one label per token; got {segments!r}")
        elif segments is not None:
            self.labels = _integers(segments, argument, dims=(1, 2))
            if int(self.labels.min()) < -1:
                raise ValueError(f"{argument}: labels must be -1 (none) or 0 and up, got {int(self.labels.min())}")
        if growing and self.named:
            self._named(1 + max((_reach(p) for p in self.named.values()), default=0), None)

    def label(self, S: int, starts: Tensor | None = None, batch: int = 1) -> Labelled:
        """Segments of S keys. starts: int [B], where each sequence begins after its left padding."""
        found = self._named(S, starts) if self.labels is None else self._labelled(self.labels, S, batch)
        return self._with_first(found, starts)

    def _labelled(self, labels: Tensor, S: int, batch: int) -> Labelled:
        shape = list(labels.shape)
        if labels.ndim == 2 and shape[0] != batch:
            raise ValueError(f"{self.argument}: got labels {shape} for {batch} prompts; expected [T] or [{batch}, T]")
        if not self.growing and shape[-1] != S:
            raise ValueError(f"{self.argument}: got {shape[-1]} labels for {S} tokens; expected one for each")
        names = tuple(str(g) for g in range(int(labels.max()) + 1))
        return Labelled(names, torch.nn.functional.pad(labels, (0, max(0, S - shape[-1])), value=-1)[..., :S])

    def _named(self, S: int, starts: Tensor | None) -> Labelled:
        labels = torch.full((S,), -1, dtype=torch.int32)
        for g, (name, where) in enumerate(self.named.items()):
            at = self._positions(name, where, S)
            taken = at[labels[at] >= 0]
            if len(taken):
                other = list(self.named)[int(labels[taken[0]])]
                raise ValueError(f"{self.argument}: {name!r} and {other!r} overlap at position {int(taken[0])}")
            labels[at] = g
        return Labelled(tuple(self.named), labels)

    def _positions(self, name: str, where: Positions, S: int) -> Tensor:
        what = f"{self.argument}[{name!r}]"
        if isinstance(where, slice):
            low = 0 if self.growing else -S
            for bound in (where.start, where.stop):
                if bound is not None and (bound < low or (bound > S and not self.growing)):
                    raise ValueError(f"{what}: {where} reaches outside the {S} tokens; expected bounds {low}..{S}")
            at = torch.arange(S)[where] if (where.step or 1) > 0 else torch.tensor(range(*where.indices(S)), dtype=torch.long)
        else:
            at = _integers(np.array([where]) if isinstance(where, (int, np.integer)) else where, what, dims=(1,)).long()
            low, high = int(at.min()), int(at.max())
            if self.growing:
                if low < 0:
                    raise ValueError(
                        f"{what}: position {low}; keys become more while a model generates, so count from the front"
                    )
                at = at[at < S]
            elif low < -S or high >= S:
                raise ValueError(f"{what}: position {low if low < -S else high} is outside the prompt; expected {-S}..{S - 1}")
            at = at % S
        if not len(at) and not self.growing:
            raise ValueError(f"{what}: {where} holds no token")
        return at.unique()

    def _with_first(self, found: Labelled, starts: Tensor | None) -> Labelled:
        """The first token of each sequence gets a segment after the others, unless it is in one."""
        labels = found.labels
        if starts is not None:
            labels = labels.expand(len(starts), -1)
        rows = labels[None] if labels.ndim == 1 else labels
        at = torch.zeros(len(rows), dtype=torch.long) if starts is None else starts.long().cpu().clamp_max(rows.shape[1] - 1)
        bare = rows.gather(1, at[:, None])[:, 0] < 0
        if not bare.any():
            return Labelled(found.names, labels)
        if FIRST in found.names:
            raise ValueError(
                f"{self.argument}: the name {FIRST!r} is kept for the first token, which is in no segment here; "
                "put it into one, or use another name"
            )
        rows = rows.clone()
        rows[bare.nonzero()[:, 0], at[bare]] = len(found.names)
        return Labelled((*found.names, FIRST), rows[0] if labels.ndim == 1 else rows)


def _reach(where: Positions) -> int:
    """The last position that is named."""
    if isinstance(where, slice):
        return max(abs(where.start or 0), abs(where.stop or 0))
    return max([int(where)] if isinstance(where, (int, np.integer)) else [int(p) for p in where], default=0)


def _integers(values: Sequence[int] | np.ndarray | Tensor, what: str, dims: tuple[int, ...]) -> Tensor:
    # PyTorch takes no ranges, and no array whose strides are negative.
    if isinstance(values, range):
        values = list(values)
    elif isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values)
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{what}: expected integers, got {values!r}") from error
    if found.numel() == 0:
        raise ValueError(f"{what}: is empty")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool or found.ndim not in dims:
        raise TypeError(
            f"{what}: expected integers with {' or '.join(map(str, dims))} dims, got {found.dtype} {list(found.shape)}"
        )
    found = found.detach().cpu()
    if int(found.min()) < -_LARGEST or int(found.max()) > _LARGEST:
        raise ValueError(f"{what}: got {int(found.min())} to {int(found.max())}; expected integers of 32 bits")
    return found.to(torch.int32)
