"""The residual rows of all variants of a pass, packed one variant after another in the order in which variants join."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.bases import Bases, Stage
from pycotmech.model.families.base import Family


@dataclass(frozen=True)
class Variants:
    """N variants as arrays, one entry each: which base, where they join, the first position that differs."""

    base: Tensor  # [N] index into Bases
    layer: Tensor  # [N]
    stage: Tensor  # [N] Stage
    first: Tensor  # [N] first position that differs from the base

    on_device: ClassVar[tuple[str, ...]] = ()
    for_making: ClassVar[tuple[str, ...]] = ("first",)
    """What nothing reads while rows go through the layers (`graphs`)."""

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, which: Tensor) -> Variants:
        return Variants(self.base[which], self.layer[which], self.stage[which], self.first[which])


@dataclass(frozen=True)
class Joining:
    """Variants that join at one layer and stage, as packed rows: what a `Join` gets.

    variant [R]: number of the variant (in the caller's order) of each row, and the same on the CPU as `numbers`; base,
    position [R]; index [R]: the row of the base's kept activations (`Bases.sites[...][layer]`) at that position.
    """

    layer: int
    stage: Stage
    variant: Tensor
    base: Tensor
    position: Tensor
    index: Tensor
    numbers: np.ndarray

    def __getitem__(self, rows: slice) -> Joining:
        variant, base, position, index = (t[rows] for t in (self.variant, self.base, self.position, self.index))
        return Joining(self.layer, self.stage, variant, base, position, index, self.numbers[rows])


Join = Callable[[Joining], Tensor]
"""Gives the residual rows [R, d] with which variants join, as a new tensor."""


@dataclass(frozen=True)
class ReadRows:
    """Rows first..end - 1 of those that are read, in the order in which variants are packed. Where rows are edited that is one
    of each variant, so that they have the variants' numbers."""

    first: int
    end: int


Rows = slice | ReadRows
"""A range of packed rows, or of those that are read."""


class PackedRows:
    """Where the rows of N variants are, R in all, M of which are read.

    Where to cut is in lists on the CPU, indices of rows are on the device: a pass waits for nothing.

    row_block: rows that go through a layer together, about; order [N]: the variants as they are packed; variants: in that
    order; begins: N + 1 numbers, where the rows of each begin, and the same as `offsets`; keys: N numbers, when each joins.
    Of each row [R]: variant, the number of its variant in the caller's order, and on the CPU `numbers`; position; base;
    index, the row of the base's kept activations; table, the keys that it sees, own ones counted from the beginning of its
    range in `spans`. read_rows [M]: the packed rows that are read; read_begins: N + 1 numbers, where those of each variant
    begin; to_caller [M]: their places variant after variant in the caller's order.
    """

    on_device: ClassVar[tuple[str, ...]] = ("variant", "position", "base", "index", "table", "read_rows", "to_caller")

    def __init__(self, family: Family, bases: Bases, variants: Variants) -> None:
        device, self.row_block = family.device, family.sizes.row_block
        key = variants.layer * len(Stage) + variants.stage
        self.order = torch.argsort(key, stable=True)
        self.variants = v = variants[self.order]
        self.keys = key[self.order].tolist()
        lengths = bases.read[v.base] - v.first + 1
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        self.begins = self.offsets.tolist()
        owner = torch.repeat_interleave(torch.arange(len(v)), lengths)  # [R] variant (as packed) of each row
        own = self.offsets[owner]
        within = torch.arange(len(owner)) - own
        first, base = v.first[owner], v.base[owner]
        numbers = self.order[owner]
        self.variant, self.numbers = numbers.to(device), numbers.numpy()
        self.position, self.base = (first + within).to(device), base.to(device)
        self.index = (bases.row_offset[base] + first + within - bases.first[base]).to(device)
        read = bases.readings(v.base)
        self.read_begins = read.begins.tolist()
        # Own keys are counted within the range of rows that go through a layer together, whatever the layer (`spans`).
        start = torch.empty_like(own)
        for span, _ in self.spans(len(v)):
            start[span] = span.start
        shared = bases.key_offset[base]
        # Bases of single rows hold no keys, and nothing attends to them.
        shared_keys = bases.k.shape[1] or int((shared + first).max() if len(shared) else 0)
        self.table = family.row_table(
            own - start, within, shared, first, own_keys=len(owner), shared_keys=shared_keys
        )  # fmt: skip
        self.read_rows = (self.offsets[read.variant] + read.position - v.first[read.variant]).to(device)
        self.read_numbers = self.order[read.variant].numpy()
        of_caller = bases.readings(variants.base)
        begins = of_caller.begins[self.order]  # of each variant as it is packed
        self.to_caller = (begins[read.variant] + read.number - of_caller.number[begins][read.variant]).to(device)

    def __len__(self) -> int:
        return self.begins[-1]

    def joined(self, l: int, stage: Stage) -> int:
        """How many variants have joined at this layer and stage."""
        return bisect_right(self.keys, l * len(Stage) + stage)

    def spans(self, n: int) -> Iterator[tuple[slice, ReadRows]]:
        """The rows of the first n variants in ranges of about `row_block`, and those of each that are read. A range holds whole
        variants, so that the own keys of a row are in it; where one begins does not depend on n."""
        first = 0
        while first < n:
            end = bisect_right(self.begins, self.begins[first] + self.row_block, first, n + 1) - 1
            end = max(end, first + 1)
            read = ReadRows(self.read_begins[first], self.read_begins[end])
            yield slice(self.begins[first], self.begins[end]), read
            first = end

    def at(self, rows: Rows) -> slice | Tensor:
        """The packed rows, as an index."""
        return rows if isinstance(rows, slice) else self.read_rows[rows.first : rows.end]

    def joining(self, l: int, stage: Stage, rows: Rows) -> Joining:
        """Rows whose variants join at this layer and stage."""
        at = self.at(rows)
        numbers = self.numbers[rows] if isinstance(rows, slice) else self.read_numbers[rows.first : rows.end]
        return Joining(l, stage, self.variant[at], self.base[at], self.position[at], self.index[at], numbers)
