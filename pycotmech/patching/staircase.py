"""The exact sweep: all variants of all prompts in one pass upward through the layers.

A variant is one run with edits in it. Below its first edit, and before its first edited position, it is the unedited run
(the base), so only what lies above and behind is computed. Rows of all variants that already differ go through a layer as
one matrix; the variants whose first edit is in this layer join there; positions in front are shared keys and values of the
base. In the last layer only the rows that are read go on. Nothing is approximate.

Cost, in rows times layers, for N variants of S rows spread evenly over L layers: N S (L - 1) / 2 layers with attention,
and one MLP for each row that joins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pycotmech import ops
from pycotmech.model.families import LlamaFamily
from pycotmech.model.run import ROW_BLOCK, blocks
from pycotmech.patching.bases import Bases, Stage
from pycotmech.patching.late import LateEdits


@dataclass(frozen=True)
class Variants:
    """N variants as arrays, one entry each: which base, where they join, the first position that differs."""

    base: Tensor  # [N] index into Bases
    layer: Tensor  # [N]
    stage: Tensor  # [N] Stage
    first: Tensor  # [N] first position that differs from the base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, which: Tensor) -> Variants:
        return Variants(self.base[which], self.layer[which], self.stage[which], self.first[which])


@dataclass(frozen=True)
class Joining:
    """Variants that join at one layer and stage, as packed rows: what `Join` gets.

    variant [R]: number of the variant (in the caller's order) of each row; base, position [R]; index [R]: the row of the
    base's kept activations (`Bases.sites[...][layer]`) at that position.
    """

    layer: int
    stage: Stage
    variant: Tensor
    base: Tensor
    position: Tensor
    index: Tensor


Join = Callable[[Joining], Tensor]
"""Gives the residual rows [R, d] with which variants join, as a new tensor."""


class Staircase:
    """One pass for one set of variants. Memory: a residual row of d values for each row of a variant, and the temporaries
    of `ROW_BLOCK` rows.

    edits: what is changed in rows that have joined, wherever in a layer it is; a variant that joins with all of its edits
        in its rows needs none.
    """

    def __init__(
        self,
        family: LlamaFamily,
        bases: Bases,
        variants: Variants,
        join: Join,
        tick: Callable[[int], None] | None = None,
        edits: LateEdits | None = None,
    ) -> None:
        self.family, self.bases, self.join, self.tick = family, bases, join, tick
        self.order = torch.argsort(variants.layer * len(Stage) + variants.stage, stable=True)
        self.variants = v = variants[self.order]
        self.key = v.layer * len(Stage) + v.stage
        lengths = bases.read[v.base] - v.first + 1
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        owner = torch.repeat_interleave(torch.arange(len(v)), lengths)  # [R] variant (sorted) of each row
        within = torch.arange(len(owner)) - self.offsets[owner]
        device = family.device
        self.owner = owner.to(device)
        self.position = (v.first[owner] + within).to(device)
        base = v.base[owner]
        self.base = base.to(device)
        self.index = (bases.row_offset[base] + v.first[owner] + within - bases.first[base]).to(device)
        shared = bases.key_offset[base]
        own = self.offsets[owner]
        table = torch.stack((own, own + within + 1, shared, shared + v.first[owner]), 1)
        self.table = table.to(torch.int32).to(device)
        self.last_rows = (self.offsets[1:] - 1).to(device)
        self.edits = (edits or LateEdits(family, bases)).on(self.order, self.offsets, v.first)

    @torch.no_grad()
    def run(self) -> Tensor:
        """Residual rows [N, d] after the last layer at each variant's read position, in the caller's order."""
        family, cfg = self.family, self.family.cfg
        below_last = int((self.variants.layer < cfg.n_layers - 1).sum())
        pre_last = int((self.key <= (cfg.n_layers - 1) * len(Stage) + Stage.PRE).sum())
        x = torch.empty(
            int(self.offsets[max(below_last, pre_last)]), cfg.d_model, dtype=family.resid_dtype, device=family.device
        )
        done = 0  # variants that have joined
        for l in range(cfg.n_layers - 1):
            done = self._admit(x, done, l, Stage.PRE)
            self._attention(l, x, done)
            done = self._admit(x, done, l, Stage.MID)
            for a, b in blocks(int(self.offsets[done])):
                x[a:b] += self.edits.edit("mlp_out", l, slice(a, b), family.mlp_out(l, x[a:b]))
            if self.tick is not None:
                self.tick(int(self.offsets[done]))
            done = self._admit(x, done, l, Stage.POST)
        return self._last_layer(x, done)

    def _admit(self, x: Tensor, done: int, l: int, stage: Stage) -> int:
        """Writes the rows of the variants that join here behind those already in x; returns how many have joined."""
        upto = int(torch.searchsorted(self.key, l * len(Stage) + stage, right=True))
        if upto > done:
            a, b = int(self.offsets[done]), int(self.offsets[upto])
            for c, d in blocks(b - a):
                x[a + c : a + d] = self._joining(l, stage, slice(a + c, a + d))
        self.edits.write(stage.site, l, x, int(self.offsets[upto]))
        return upto

    def _joining(self, l: int, stage: Stage, rows: slice | Tensor) -> Tensor:
        variant = self.order.to(self.owner.device)[self.owner[rows]]
        joining = Joining(l, stage, variant, self.base[rows], self.position[rows], self.index[rows])
        return self.edits.join(stage, l, rows, joining.index, self.join(joining))

    def _attention(self, l: int, x: Tensor, done: int) -> None:
        family = self.family
        for a, b in self._groups(done):
            rows = slice(a, b)
            q, k, v = family.qkv(l, x[rows])
            q = self.edits.edit("q", l, rows, q)
            k, v = self.edits.keys(l, rows, k, v)
            cos, sin = self.bases.cos[self.position[a:b]], self.bases.sin[self.position[a:b]]
            ops.rope(q, cos, sin)
            ops.rope(k, cos, sin)
            table = self.table[a:b].clone()
            table[:, :2] -= a
            z = self.edits.attend(l, rows, q, k, v, table)
            x[rows] += self.edits.edit("attn_out", l, rows, family.attn_out(l, z))

    def _last_layer(self, x: Tensor, done: int) -> Tensor:
        family, l = self.family, self.family.cfg.n_layers - 1
        done = self._admit(x, done, l, Stage.PRE)
        out = torch.empty(len(self.variants), family.cfg.d_model, dtype=family.resid_dtype, device=family.device)
        first = 0  # the variants of one group, in order
        for a, b in self._groups(done):
            n = int(torch.searchsorted(self.offsets, b)) - first
            read = self.last_rows[first : first + n]
            _, k, v = family.qkv(l, x[a:b])
            k, v = self.edits.keys(l, slice(a, b), k, v)
            ops.rope(k, self.bases.cos[self.position[a:b]], self.bases.sin[self.position[a:b]])
            top = x[read]
            q, _, _ = family.qkv(l, top)
            q = self.edits.edit("q", l, read, q)
            ops.rope(q, self.bases.cos[self.position[read]], self.bases.sin[self.position[read]])
            table = self.table[read].clone()
            table[:, :2] -= a
            z = self.edits.attend(l, read, q, k, v, table)
            out[first : first + n] = top + self.edits.edit("attn_out", l, read, family.attn_out(l, z))
            first += n
        mid = int(torch.searchsorted(self.key, l * len(Stage) + Stage.MID, right=True))
        for a, b in blocks(mid - done):
            out[done + a : done + b] = self._joining(l, Stage.MID, self.last_rows[done + a : done + b])
        out[:mid] = self.edits.edit("resid_mid", l, self.last_rows[:mid], out[:mid])
        for a, b in blocks(mid):
            out[a:b] += self.edits.edit("mlp_out", l, self.last_rows[a:b], family.mlp_out(l, out[a:b]))
        for a, b in blocks(len(self.variants) - mid):
            out[mid + a : mid + b] = self._joining(l, Stage.POST, self.last_rows[mid + a : mid + b])
        out = self.edits.edit("resid_post", l, self.last_rows, out)
        if self.tick is not None:
            self.tick(mid)
        result = torch.empty_like(out)
        result[self.order.to(out.device)] = out
        return result

    def _groups(self, done: int):
        """Row ranges of about ROW_BLOCK rows that hold whole variants: their own keys are then in the same block."""
        offsets = self.offsets[: done + 1]
        first = 0
        while first < done:
            a = int(offsets[first])
            upto = int(torch.searchsorted(offsets, a + ROW_BLOCK, right=True)) - 1
            upto = max(upto, first + 1)
            yield a, int(offsets[upto])
            first = upto
