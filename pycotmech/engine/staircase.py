"""The exact sweep: all variants of all prompts in one pass upward through the layers.

A variant is one run with edits in it. Below its first edit, and before its first edited position, it is the unedited run
(the base), so only what lies above and behind is computed. Rows of all variants that already differ go through a layer as
one matrix; the variants whose first edit is in this layer join there; positions in front are shared keys and values of the
base. In the last layer only the rows that are read go on. Nothing is approximate.

Cost, in rows times layers, for N variants of S rows spread evenly over L layers: N S (L - 1) / 2 layers with attention,
and one MLP for each row that joins.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.row_edits import ReadRows, RowEdits, Rows
from pycotmech.model import work
from pycotmech.model.climb import ROW_BLOCK, blocks
from pycotmech.model.families.base import Family
from pycotmech.model.work import LayerRows


@dataclass(frozen=True)
class Variants:
    """N variants as arrays, one entry each: which base, where they join, the first position that differs."""

    base: Tensor  # [N] index into Bases
    layer: Tensor  # [N]
    stage: Tensor  # [N] Stage
    first: Tensor  # [N] first position that differs from the base

    on_device: ClassVar[tuple[str, ...]] = ()

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, which: Tensor) -> Variants:
        return Variants(self.base[which], self.layer[which], self.stage[which], self.first[which])


@dataclass(frozen=True)
class Joining:
    """Variants that join at one layer and stage, as packed rows: what `Join` gets.

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
        each = (t[rows] for t in (self.variant, self.base, self.position, self.index, self.numbers))
        return Joining(self.layer, self.stage, *each)


Join = Callable[[Joining], Tensor]
"""Gives the residual rows [R, d] with which variants join, as a new tensor."""


class Staircase:
    """One pass for one set of variants. Memory: a residual row of d values for each row of a variant, and the temporaries
    of `ROW_BLOCK` rows.

    tick: called after each layer with the rows that went through its parts. None: they are reported as work (`model.work`).
    edits: what is changed in rows that have joined, wherever in a layer it is; a variant that joins with all of its edits
        in its rows needs none. With such edits each base is read at one position.
    """

    on_device: ClassVar[tuple[str, ...]] = (
        "bases", "join", "edits", "variant", "to_caller", "position", "base", "index", "table", "read_rows",
    )  # fmt: skip
    """Attributes that stand on the device, and objects that hold such, each of which has this list too. All others are on
    the CPU and decide what is launched (`graphs`)."""

    def __init__(
        self,
        family: Family,
        bases: Bases,
        variants: Variants,
        join: Join,
        tick: Callable[[LayerRows], None] | None = None,
        edits: RowEdits | None = None,
    ) -> None:
        self.family, self.bases, self.join = family, bases, join
        self.tick = tick or partial(work.count, family)
        self.order = torch.argsort(variants.layer * len(Stage) + variants.stage, stable=True)
        self.variants = v = variants[self.order]
        self.key = v.layer * len(Stage) + v.stage
        lengths = bases.read[v.base] - v.first + 1
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        owner = torch.repeat_interleave(torch.arange(len(v)), lengths)  # [R] variant (sorted) of each row
        within = torch.arange(len(owner)) - self.offsets[owner]
        device = family.device
        # What says where to cut stands in lists, what indexes rows on the device: `run` waits for nothing.
        self.begins, self.keys = self.offsets.tolist(), self.key.tolist()
        numbers = self.order[owner]
        self.variant, self.numbers = numbers.to(device), numbers.numpy()
        self.position = (v.first[owner] + within).to(device)
        base = v.base[owner]
        self.base = base.to(device)
        self.index = (bases.row_offset[base] + v.first[owner] + within - bases.first[base]).to(device)
        shared = bases.key_offset[base]
        own = self.offsets[owner]
        self.table = family.row_table(own, within, shared, v.first[owner])
        read = bases.readings(v.base)
        self.read_begins = read.begins.tolist()
        self.read_rows = (self.offsets[read.variant] + read.position - v.first[read.variant]).to(device)
        self.read_numbers = self.order[read.variant].numpy()
        of_caller = bases.readings(variants.base)
        begins = of_caller.begins[self.order]  # of each variant as it is packed
        self.to_caller = (begins[read.variant] + read.number - of_caller.number[begins][read.variant]).to(device)
        if edits is not None and edits.tables and len(read.variant) > len(v):
            raise ValueError("edits: rows that have joined are edited in variants that are read at one position each")
        self.edits = (edits or RowEdits(family, bases)).on(self.order, self.offsets, v.first, v.base)

    @torch.no_grad()
    def run(self) -> Tensor:
        """Residual rows after the last layer where variants are read, variant after variant in the caller's order: [N, d], or
        as many as `Bases.readings` has."""
        family, cfg = self.family, self.family.cfg
        climbing = self._joined(cfg.n_layers - 1, Stage.PRE)
        x = torch.empty(self.begins[climbing], cfg.d_model, dtype=family.resid_dtype, device=family.device)
        done = 0  # variants that have joined
        for l in range(cfg.n_layers - 1):
            done = self._admit(x, done, l, Stage.PRE)
            attended = self.begins[done]
            self._attention(l, x, done)
            done = self._admit(x, done, l, Stage.MID)
            for a, b in blocks(self.begins[done]):
                x[a:b] += self.edits.edit("mlp_out", l, slice(a, b), family.mlp_out(l, x[a:b]))
            self.tick(LayerRows(attended, attended, self.begins[done]))
            done = self._admit(x, done, l, Stage.POST)
        return self._last_layer(x, done)

    def _joined(self, l: int, stage: Stage) -> int:
        """How many variants have joined at this layer and stage."""
        return bisect_right(self.keys, l * len(Stage) + stage)

    def _admit(self, x: Tensor, done: int, l: int, stage: Stage) -> int:
        """Writes the rows of the variants that join here behind those already in x; returns how many have joined."""
        upto = self._joined(l, stage)
        if upto > done:
            a, b = self.begins[done], self.begins[upto]
            for c, d in blocks(b - a):
                rows = slice(a + c, a + d)
                x[rows] = self._joining(l, stage, rows, rows)
        self.edits.write(stage.site, l, x, self.begins[upto])
        return upto

    def _joining(self, l: int, stage: Stage, rows: Rows, at: slice | Tensor) -> Tensor:
        """at: the same rows, as an index."""
        numbers = self.numbers[rows] if isinstance(rows, slice) else self.read_numbers[rows.first : rows.end]
        joining = Joining(l, stage, self.variant[at], self.base[at], self.position[at], self.index[at], numbers)
        return self.edits.join(stage, l, rows, joining.index, self.join(joining))

    def _read(self, l: int, stage: Stage, a: int, b: int) -> Tensor:
        """The rows numbered a..b - 1 of those that are read, whose variants join here."""
        return self._joining(l, stage, ReadRows(a, b), self.read_rows[a:b])

    def _attention(self, l: int, x: Tensor, done: int) -> None:
        family = self.family
        for first, end in self._groups(done):
            a, b = self.begins[first], self.begins[end]
            rows = slice(a, b)
            q, k, v = family.qkv(l, x[rows])
            q = self.edits.edit("q", l, rows, q)
            k, v = self.edits.keys(l, rows, k, v)
            family.rotate(l, self.bases.angles, self.position[a:b], q, k)
            table = self.table[a:b].clone()
            table[:, :2] -= a
            z = self.edits.attend(l, rows, q, k, v, table)
            x[rows] += self.edits.edit("attn_out", l, rows, family.attn_out(l, z))

    def _last_layer(self, x: Tensor, done: int) -> Tensor:
        family, l = self.family, self.family.cfg.n_layers - 1
        done = self._admit(x, done, l, Stage.PRE)
        out = torch.empty(len(self.read_rows), family.cfg.d_model, dtype=family.resid_dtype, device=family.device)
        begins = self.read_begins
        for first, end in self._groups(done):
            a, b = self.begins[first], self.begins[end]
            c, d = begins[first], begins[end]
            rows, read = ReadRows(c, d), self.read_rows[c:d]
            _, k, v = family.qkv(l, x[a:b])
            k, v = self.edits.keys(l, slice(a, b), k, v)
            family.rotate(l, self.bases.angles, self.position[a:b], k)
            top = x[read]
            q, _, _ = family.qkv(l, top)
            q = self.edits.edit("q", l, rows, q)
            family.rotate(l, self.bases.angles, self.position[read], q)
            table = self.table[read].clone()
            table[:, :2] -= a
            z = self.edits.attend(l, rows, q, k, v, table)
            out[c:d] = top + self.edits.edit("attn_out", l, rows, family.attn_out(l, z))
        pre, mid = begins[done], begins[self._joined(l, Stage.MID)]
        for a, b in blocks(mid - pre):
            out[pre + a : pre + b] = self._read(l, Stage.MID, pre + a, pre + b)
        out[:mid] = self.edits.edit("resid_mid", l, ReadRows(0, mid), out[:mid])
        for a, b in blocks(mid):
            out[a:b] += self.edits.edit("mlp_out", l, ReadRows(a, b), family.mlp_out(l, out[a:b]))
        for a, b in blocks(len(out) - mid):
            out[mid + a : mid + b] = self._read(l, Stage.POST, mid + a, mid + b)
        out = self.edits.edit("resid_post", l, ReadRows(0, len(out)), out)
        self.tick(LayerRows(self.begins[done] + pre, pre, mid))
        result = torch.empty_like(out)
        result[self.to_caller] = out
        return result

    def _groups(self, done: int):
        """Ranges of variants with about ROW_BLOCK rows: the own keys of a variant are then in the same block."""
        first = 0
        while first < done:
            end = bisect_right(self.begins, self.begins[first] + ROW_BLOCK, first, done + 1) - 1
            end = max(end, first + 1)
            yield first, end
            first = end
