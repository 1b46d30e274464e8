"""Rounding-sized noise in chosen variants, from which it is read how far rounding moves a metric.

Rounding enters wherever a part of a layer adds to a row. In a jittered variant each such addition y becomes
y + |y| u c xi, with u the unit roundoff of the model's dtype (half of eps), xi uniform in (-1, 1) and c as `ROUNDINGS` says.
The noise is read from a small fixed table by position, variant, layer and part, so that it does not depend on how variants
are cut and nothing is drawn while a pass runs.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.rows import PackedRows, ReadRows, Rows
from pycotmech.model.families.base import Family

ROUNDINGS = {torch.float32: 10.0, torch.float64: 10.0, torch.bfloat16: 1.8, torch.float16: 1.8}
"""Size of the noise in unit roundoffs. In float32 and float64 products are summed in the dtype itself, so that a part's output
is off by several roundoffs; in the 16-bit types they are summed in float32, and the output is rounded."""

_FROZEN = 2.5
"""How many times larger the noise of a frozen part is: what it adds is off by all the rounding before it in the base run."""

_STARTS = 16_384
"""Where in the table the noise of a row may begin."""


@dataclass(frozen=True)
class Jitter:
    """Which of N variants are jittered.

    streams [N], on the CPU: the number of the noise that a variant gets; -1: none. table: uniform in (-1, 1), on the device.
    """

    family: Family
    streams: Tensor
    table: Tensor

    @classmethod
    def of_streams(cls, family: Family, streams: Tensor, seed: int) -> Jitter:
        """The noise is drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        n = _STARTS + family.cfg.d_model
        table = torch.rand(n, generator=generator, dtype=torch.float32) * 2 - 1
        return cls(family, streams, table.to(family.device))

    def of(self, first: int, end: int) -> Jitter:
        """For the variants numbered first..end - 1, which are numbered from 0."""
        return Jitter(self.family, self.streams[first:end], self.table)

    def bound(self, rows: PackedRows) -> BoundJitter | None:
        """For the rows of a pass; None if none of its variants is jittered."""
        return BoundJitter(self, rows) if bool((self.streams >= 0).any()) else None


class BoundJitter:
    """Adds the noise to rows of a pass.

    Which rows is known on the CPU: `packed`, those of all that are packed, ascending; `read`, those of all that are read.
    """

    on_device: ClassVar[tuple[str, ...]] = ("table", "packed_rows", "packed_start", "read_rows", "read_start")

    def __init__(self, jitter: Jitter, rows: PackedRows) -> None:
        family, streams = jitter.family, jitter.streams.numpy()
        self.table = jitter.table
        self.size = torch.finfo(family.dtype).eps / 2 * ROUNDINGS[family.dtype]
        packed, read = (np.flatnonzero(streams[of] >= 0) for of in (rows.numbers, rows.read_numbers))
        self.packed, self.read = packed.tolist(), read.tolist()
        self.packed_rows, self.read_rows = (torch.from_numpy(at).to(family.device) for at in (packed, read))
        of_packed, of_read = (
            torch.from_numpy(streams[of[at]] * 7_919).to(family.device)
            for of, at in ((rows.numbers, packed), (rows.read_numbers, read))
        )
        self.packed_start = of_packed + 31 * rows.position[self.packed_rows]
        self.read_start = of_read + 31 * rows.position[rows.read_rows[self.read_rows]]

    def add(self, x: Tensor, y: Tensor, l: int, part: int, rows: Rows, computed: bool = True) -> None:
        """Adds to x [n, d], the residual rows `rows`, the noise of y [n, d], which a part of layer l, computed or frozen, added
        to them."""
        read = isinstance(rows, ReadRows)
        first, end = (rows.first, rows.end) if read else (rows.start, rows.stop)
        numbers, at, start = (
            (self.read, self.read_rows, self.read_start) if read else (self.packed, self.packed_rows, self.packed_start)
        )
        chosen = slice(bisect_left(numbers, first), bisect_left(numbers, end))
        if chosen.start == chosen.stop:
            return
        index, begin = at[chosen] - first, (start[chosen] + (4_099 * l + 1_543 * part)) % _STARTS
        noise = self.table.unfold(0, x.shape[1], 1)[begin].to(x.dtype)  # [rows, d]
        noise *= self.size if computed else _FROZEN * self.size
        noise *= y.index_select(0, index).to(x.dtype).abs_()
        x.index_add_(0, index, noise)
