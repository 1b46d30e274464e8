"""Buffers in which a wrong address shows: every input lies in a larger buffer of NaN, every output starts as NaN
between margins that must still be NaN afterwards."""

from __future__ import annotations

import contextlib
import math

import torch
from pycotmech.kernels import launch
from torch import Tensor

MARGIN = 256
GAP = 8
_FAR = 2**30


def _full(n: int, dtype: torch.dtype, device) -> Tensor:
    return torch.full((n,), math.nan if dtype.is_floating_point else _FAR, dtype=dtype, device=device)


def untouched(x: Tensor) -> bool:
    return bool((x.isnan() if x.dtype.is_floating_point else x == _FAR).all())


def island(x: Tensor) -> Tensor:
    """x in a larger buffer of NaN (a huge number for integers): margins around it, and a gap behind each row."""
    *lead, D = x.shape
    gap = GAP if lead and x.dtype.is_floating_point else 0
    n = math.prod(lead)
    flat = _full(2 * MARGIN + n * (D + gap), x.dtype, x.device)
    out = flat[MARGIN : MARGIN + n * (D + gap)].view(n, D + gap)[:, :D]
    out = out.unflatten(0, lead) if lead else out[0]
    return out.copy_(x)


def islands(args: tuple) -> tuple:
    return tuple(island(a) if isinstance(a, Tensor) and a.numel() else a for a in args)


def sea(x: Tensor) -> Tensor:
    """What is left of an island's buffer without the island."""
    flat = torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage())
    mask = torch.ones(flat.shape, dtype=torch.bool, device=x.device)
    mask.as_strided(x.shape, x.stride(), x.storage_offset()).fill_(False)
    return flat[mask]


@contextlib.contextmanager
def guarded_outputs():
    """What the wrappers allocate is poisoned, and its surroundings are checked at the end."""
    made: list[Tensor] = []
    plain = launch.empty

    def poisoned(shape, dtype, like):
        n = math.prod(shape)
        flat = _full(2 * MARGIN + n, dtype, like.device)
        made.append(flat[MARGIN : MARGIN + n].view(shape))
        return made[-1]

    launch.empty = poisoned
    try:
        yield made
    finally:
        launch.empty = plain
    for x in made:
        assert untouched(sea(x)), f"written outside of an output of shape {tuple(x.shape)}"
