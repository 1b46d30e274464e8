"""What senders change in the layers above them while every other head keeps the z of the base run: the first half of path
patching, for many senders in one pass upward.

With all other heads frozen no position depends on another: a sender's rows climb alone, one row for each position at
which its z was replaced, through a staircase in which attention adds what it added in the base run and MLPs are computed or
frozen too. Wherever a receiver lies, its queries, keys and values are projected from these rows, and each head's z is
computed with one of the three replaced. One such z serves every query head of the layer: what the others do does not enter.

Cost: an MLP for each row and layer, and the attention of the layers in which there are receivers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.bases import Bases
from pycotmech.engine.jitter import Jitter
from pycotmech.engine.joins import HeadJoins
from pycotmech.engine.rows import Join, Joining, PackedRows, Variants
from pycotmech.engine.staircase import Staircase
from pycotmech.model import work
from pycotmech.model.families.base import Family
from pycotmech.model.work import LayerRows

INPUTS = ("q", "k", "v")
"""Inputs of a receiver that can take the value that arrives at it."""


@dataclass(frozen=True)
class Climbed:
    """What U senders changed, as packed rows: those of sender u are offsets[u]..offsets[u + 1] - 1, its positions from its
    first on."""

    offsets: Tensor  # [U + 1]
    z: dict[int, Tensor]  # layer -> [inputs, rows of the senders below it, H, D], z of each head with one input replaced
    final: Tensor  # [R, d] residual rows after the last layer, or before the highest one with receivers

    on_device: ClassVar[tuple[str, ...]] = ("offsets", "z", "final")


def run_senders(
    family: Family,
    bases: Bases,
    senders: Variants,
    join: Join,
    *,
    layers: Sequence[int],
    inputs: Sequence[str],
    editable: Tensor,
    freeze_mlps: bool,
    tick: Callable[[LayerRows], None] | None = None,
    jitter: Jitter | None = None,
) -> Climbed:
    """Takes senders up to the highest of `layers` (none: to the end, where each is read), every other head frozen.

    senders: ascending by layer, all joining at `Stage.MID`; join: the rows of a sender's own layer.
    layers: where receivers lie. inputs: which of q, k, v are replaced, each on its own.
    editable [sum of kept rows] bool: the base's rows at which senders are replaced; the others stay the base's own.
    jitter: of the senders, as of `Staircase`.
    """
    receivers = _Receivers(family, bases, layers, inputs, editable.to(family.device))
    frozen = ("attn_out", "mlp_out") if freeze_mlps else ("attn_out",)
    upto = max(layers) if layers else None
    staircase = Staircase(family, bases, senders, join, tick, frozen=frozen, watch=receivers, upto=upto, jitter=jitter)
    final = staircase.run()
    return Climbed(staircase.rows.offsets.to(family.device), receivers.z, final)


class _Receivers:
    """Watches senders' rows, and where receivers lie computes z of each head with one of its inputs as seen from these rows.

    z: layer -> [inputs, R, H, D], of the R rows of the senders below it.
    """

    on_device: ClassVar[tuple[str, ...]] = ("bases", "editable", "key_offset", "z")

    def __init__(self, family: Family, bases: Bases, layers: Sequence[int], inputs: Sequence[str], editable: Tensor) -> None:
        self.family, self.bases, self.editable = family, bases, editable
        self.layers, self.inputs = tuple(layers), tuple(inputs)
        self.key_offset = bases.key_offset.to(family.device)
        self.z: dict[int, Tensor] = {}

    def __call__(self, l: int, rows: PackedRows, x: Tensor, n: int) -> None:
        """x [R, d] before layer l, in which the first n senders have joined."""
        if l not in self.layers or not n:
            return
        cfg, family = self.family.cfg, self.family
        shape = (len(self.inputs), rows.begins[n], cfg.n_heads, cfg.d_head)
        self.z[l] = torch.empty(shape, dtype=family.dtype, device=family.device)
        for span, _ in rows.spans(n):
            self.z[l][:, span] = self._attend(l, rows, x[span], span)
        work.count(family, LayerRows(qkv=rows.begins[n]))

    def _attend(self, l: int, rows: PackedRows, x: Tensor, span: slice) -> Tensor:
        """x [R, d] of a range of rows -> z [inputs, R, H, D]."""
        bases, inputs, n = self.bases, self.inputs, len(x)
        index, position = rows.index[span], rows.position[span]
        key, edited = self.key_offset[rows.base[span]] + position, self.editable[index][:, None, None]
        q0, k0, v0 = bases.sites["q"][l][index], bases.k[l][key], bases.v[l][key]
        q, k, v = self.family.qkv(l, x)  # [R, H, D], [R, Hkv, D]
        self.family.rotate(l, bases.angles, position, q0, q, keys=(k,))
        q, k, v = torch.where(edited, q, q0), torch.where(edited, k, k0), torch.where(edited, v, v0)
        taken = {"q": (q, k0, v0), "k": (q0, k, v0), "v": (q0, k0, v)}
        all_q, all_k, all_v = (torch.cat(parts) for parts in zip(*(taken[i] for i in inputs), strict=True))
        table = rows.table[span].repeat(len(inputs), 1)  # [inputs R, 4]
        own = torch.arange(len(inputs), device=table.device).repeat_interleave(n) * n
        table[:, :2] += own[:, None].to(table.dtype)
        z = self.family.attend(l, all_q, bases.k[l], bases.v[l], all_k, all_v, table)
        z = z.unflatten(0, (len(inputs), n))  # [inputs, R, H, D]
        if "q" in inputs:  # a query moves z of its own row and no other
            i = inputs.index("q")
            z[i] = torch.where(edited, z[i], bases.sites["z"][l][index])
        return z


@dataclass(frozen=True)
class PathJoins:
    """How paths join: in the layer of the receiver, by the difference that its new q, k or v makes to z of its head.

    N variants: the controls, whose joins are `controls`, then the paths. moved [N], on the CPU: how many query heads a
    path moves, those that share a key-value head or one alone; 0 for a control. For each path: sender [N]
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
        parts = {name: getattr(self, name)[first:end] for name in ("moved", "sender", "input", "head", "first")}
        return replace(self, controls=self.controls.of(first, end), **parts)

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
