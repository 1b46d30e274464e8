"""What senders change in the layers above them while every other head keeps the z of the base run: the first half of path
patching, for many senders in one pass upward.

With all other heads frozen no position hears of another: a sender's rows go up by themselves, one row for each position at
which its z was replaced. Attention adds what it added in the base run, MLPs are computed anew or frozen too. Wherever a
receiver lies, its queries, keys and values are projected from these rows, and each head's z is computed with one of the
three replaced. One such z serves every query head of the layer: what the others do does not enter.

Cost: an MLP for each row and layer, and the attention of the layers in which there are receivers.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.evaluate import HeadJoins
from pycotmech.engine.staircase import Join, Joining, Variants
from pycotmech.model import work
from pycotmech.model.climb import ROW_BLOCK, blocks
from pycotmech.model.families.base import Family

INPUTS = ("q", "k", "v")
"""What of a receiver takes the value that arrives at it."""


@dataclass(frozen=True)
class Climbed:
    """What U senders changed, as packed rows: those of sender u are offsets[u]..offsets[u + 1] - 1, its positions from its
    first on."""

    offsets: Tensor  # [U + 1]
    z: dict[int, Tensor]  # layer -> [inputs, rows of the senders below it, H, D], z of each head with one input replaced
    final: Tensor  # [R, d] residual rows after the last layer reached

    on_device: ClassVar[tuple[str, ...]] = ("offsets", "z", "final")


@torch.no_grad()
def climb(
    family: Family,
    bases: Bases,
    senders: Variants,
    join: Join,
    *,
    layers: Sequence[int],
    inputs: Sequence[str],
    editable: Tensor,
    freeze_mlps: bool,
    tick: Callable[[int], None] | None = None,
) -> Climbed:
    """Takes senders up to the highest of `layers` (none: to the end), every other head frozen.

    senders: ascending by layer, all joining at `Stage.MID`; join: the rows of a sender's own layer.
    layers: where receivers lie. inputs: which of q, k, v are replaced, each on its own.
    editable [sum of kept rows] bool: the base's rows at which senders are replaced; the others stay the base's own.
    """
    rows = _Rows(family, bases, senders, editable)
    # Asked before rows go up: nothing is looked for or read back while they do.
    cfg, at_layer = family.cfg, senders.layer.tolist()
    x = torch.empty(len(rows.owner), cfg.d_model, dtype=family.resid_dtype, device=family.device)
    found: dict[int, Tensor] = {}
    top = max(layers) if layers else cfg.n_layers
    for l in range(top):
        below, here = bisect_left(at_layer, l), bisect_right(at_layer, l)
        if l in layers and below:
            found[l] = rows.z(l, x, below, inputs)
        n, m = rows.begins[below], rows.begins[here]
        for a, b in blocks(n):
            x[a:b] += bases.sites["attn_out"][l][rows.index[a:b]]
        for a, b in blocks(m - n):
            a, b = a + n, b + n
            each = (rows.owner[a:b], rows.base[a:b], rows.position[a:b], rows.index[a:b], rows.numbers[a:b])
            x[a:b] = join(Joining(l, Stage.MID, *each))
        for a, b in blocks(m):
            x[a:b] += bases.sites["mlp_out"][l][rows.index[a:b]] if freeze_mlps else family.mlp_out(l, x[a:b])
        work.count(family, work.LayerRows(mlp=0 if freeze_mlps else m))
        if tick is not None:
            tick(m)
    if layers and (below := bisect_left(at_layer, top)):
        found[top] = rows.z(top, x, below, inputs)
    return Climbed(rows.offsets.to(family.device), found, x)


class _Rows:
    """The rows of all senders, one after another, and their attention with one input of each head replaced."""

    def __init__(self, family: Family, bases: Bases, senders: Variants, editable: Tensor) -> None:
        self.family, self.bases = family, bases
        lengths = bases.read[senders.base] - senders.first + 1
        self.offsets = torch.cat((torch.zeros(1, dtype=torch.long), lengths.cumsum(0)))
        self.begins = self.offsets.tolist()
        owner = torch.repeat_interleave(torch.arange(len(senders)), lengths)
        self.numbers = owner.numpy()
        within = torch.arange(len(owner)) - self.offsets[owner]
        base, first = senders.base[owner], senders.first[owner]
        position, device = first + within, family.device
        own, shared = self.offsets[owner], bases.key_offset[base]
        self.owner, self.base, self.position = owner.to(device), base.to(device), position.to(device)
        self.index = (bases.row_offset[base] + position - bases.first[base]).to(device)
        self.key = (shared + position).to(device)
        self.table = family.row_table(own, within, shared, first)
        self.edited = editable.to(device)[self.index][:, None, None]

    def z(self, l: int, x: Tensor, n_senders: int, inputs: Sequence[str]) -> Tensor:
        """z [inputs, R, H, D] of the rows of the first senders: in each head q, or k, or v as seen from x [R, d]."""
        cfg, family = self.family.cfg, self.family
        shape = (len(inputs), self.begins[n_senders], cfg.n_heads, cfg.d_head)
        out = torch.empty(shape, dtype=family.dtype, device=family.device)
        for a, b in self._groups(n_senders):
            out[:, a:b] = self._attend(l, x, a, b, inputs)
        work.count(family, work.LayerRows(qkv=self.begins[n_senders]))
        return out

    def _attend(self, l: int, x: Tensor, a: int, b: int, inputs: Sequence[str]) -> Tensor:
        bases, index, key, edited = self.bases, self.index[a:b], self.key[a:b], self.edited[a:b]
        q0, k0, v0 = bases.sites["q"][l][index], bases.k[l][key], bases.v[l][key]
        q, k, v = self.family.qkv(l, x[a:b])
        self.family.rotate(l, bases.angles, self.position[a:b], q0, q, k)
        q, k, v = torch.where(edited, q, q0), torch.where(edited, k, k0), torch.where(edited, v, v0)
        taken = {"q": (q, k0, v0), "k": (q0, k, v0), "v": (q0, k0, v)}
        many_q, many_k, many_v = (torch.cat(parts) for parts in zip(*(taken[i] for i in inputs), strict=True))
        table = self.table[a:b].repeat(len(inputs), 1)
        at = torch.arange(len(inputs), device=table.device).repeat_interleave(b - a) * (b - a) - a
        table[:, :2] += at[:, None].to(table.dtype)
        z = self.family.attend(l, many_q, bases.k[l], bases.v[l], many_k, many_v, table)
        z = z.unflatten(0, (len(inputs), -1))
        if "q" in inputs:  # a query moves z of its own row and no other
            i = inputs.index("q")
            z[i] = torch.where(edited, z[i], bases.sites["z"][l][index])
        return z

    def _groups(self, n_senders: int):
        """Row ranges of about ROW_BLOCK rows that hold whole senders: their own keys are then in the same block."""
        first = 0
        while first < n_senders:
            a = self.begins[first]
            upto = max(bisect_right(self.begins, a + ROW_BLOCK, first, n_senders + 1) - 1, first + 1)
            yield a, self.begins[upto]
            first = upto


@dataclass(frozen=True)
class PathJoins:
    """How paths join: in the layer of the receiver, by the difference that its new q, k or v makes to z of its head.

    N variants: the self-patches, whose joins are `controls`, then the paths. moved [N], on the CPU: how many query heads a
    path moves, those of a group that read one key or value head or one alone; 0 for a self-patch. For each path: sender [N]
    among `climbed`; input [N] number among those replaced; head [N] the first query head whose z changes; first [N] the
    first position.
    """

    family: Family
    bases: Bases
    climbed: Climbed
    controls: HeadJoins
    moved: np.ndarray
    sender: Tensor
    input: Tensor
    head: Tensor
    first: Tensor

    on_device: ClassVar[tuple[str, ...]] = ("bases", "climbed", "controls", "sender", "input", "head", "first")

    def of(self, first: int, end: int) -> PathJoins:
        """For the variants numbered first..end - 1, which are numbered from 0."""
        each = {name: getattr(self, name)[first:end] for name in ("moved", "sender", "input", "head", "first")}
        return replace(self, controls=self.controls.of(first, end), **each)

    def __call__(self, joining: Joining) -> Tensor:
        family, moved = self.family, self.moved[joining.numbers]
        out = torch.empty(len(moved), family.cfg.d_model, dtype=family.resid_dtype, device=family.device)
        # Paths of one input follow one another, so that what joins alike is a few ranges of rows, known on the CPU.
        for a, b in pairwise([0, *(np.flatnonzero(np.diff(moved)) + 1).tolist(), len(moved)]):
            part, n = joining[a:b], int(moved[a])
            out[a:b] = self._moved(part, n) if n else self.controls(part)
        return out

    def _moved(self, joining: Joining, n: int) -> Tensor:
        """Rows of paths that move n heads each."""
        l, index, variant, wide = joining.layer, joining.index, joining.variant, self.family.resid_dtype
        row = self.climbed.offsets[self.sender[variant]] + joining.position - self.first[variant]
        which, head, r = self.input[variant], self.head[variant], torch.arange(len(index), device=index.device)
        if n > 1:
            head = head[:, None] + torch.arange(n, device=head.device)
            row, which, r = row[:, None], which[:, None], r[:, None]
        z = self.bases.sites["z"][l][index]
        dz = self.climbed.z[l][which, row, head].to(wide) - z[r, head].to(wide)
        return self.family.join(l, self.bases.sites["resid_mid"][l][index], z, dz, head)
