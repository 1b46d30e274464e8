"""Edits of rows that are already on their way through the layers: tables of rows, applied where a layer is computed.

For each site and layer there is one table of what is replaced: which variant, which position, which head, and where the
value is found. The staircase asks at each stage for the entries among the rows it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pycotmech import ops
from pycotmech.model.families import LlamaFamily
from pycotmech.patching.bases import Bases, Stage

ValueOf = Callable[[str, int, Tensor, Tensor], Tensor]
"""(site, layer, ref [E], head [E]) -> values [E, width]: of a pattern one weight for each key from position 0 on."""

PER_QUERY = {"k": "k_per_query", "v": "v_per_query"}
"""Keys and values as one query head alone reads them: sites of their own, with one head for each query head."""

_PATTERN_ENTRIES = 2**22
"""Values of own rows that are gathered at once for edited patterns."""

_ADDS = {Stage.MID: ("attn_out", "resid_pre"), Stage.POST: ("mlp_out", "resid_mid")}
"""What a variant that joins here may have edited on the way: a part that is added, and what it is added to."""


@dataclass(frozen=True)
class Entries:
    """E replacements in one site of one layer, no two of the same place."""

    variant: Tensor  # [E] number of the variant, in the caller's order; ascending
    position: Tensor  # [E]
    head: Tensor  # [E]; -1 where the site has no heads (edge: all of them)
    ref: Tensor  # [E] by which the value is found

    def __getitem__(self, which: slice) -> Entries:
        return Entries(self.variant[which], self.position[which], self.head[which], self.ref[which])

    def __len__(self) -> int:
        return len(self.variant)


class LateEdits:
    """The replacements of a set of variants: a table for each (site, layer), and the function that knows the values.

    Sites are those of a model, "pattern", "edge" (values [E, 2] are ranges of key positions) and those of `PER_QUERY`.
    """

    def __init__(
        self,
        family: LlamaFamily,
        bases: Bases,
        tables: Mapping[tuple[str, int], Entries] | None = None,
        value: ValueOf | None = None,
    ) -> None:
        self.family, self.bases, self.tables, self.value = family, bases, dict(tables or {}), value

    def of(self, first: int, end: int) -> LateEdits:
        """Those of the variants numbered first..end - 1, which are numbered from 0."""
        tables = {}
        for key, e in self.tables.items():
            a, b = torch.searchsorted(e.variant, torch.tensor([first, end])).tolist()
            if b > a:
                kept = e[a:b]
                tables[key] = Entries(kept.variant - first, kept.position, kept.head, kept.ref)
        return LateEdits(self.family, self.bases, tables, self.value)

    def on(self, order: Tensor, offsets: Tensor, first: Tensor) -> RowEdits:
        """The same for packed rows: order [N] the variants as they are packed; offsets [N + 1], first [N] in that order."""
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order))
        device = self.family.device
        tables = {}
        for key, e in self.tables.items():
            packed = rank[e.variant]
            rows = offsets[packed] + e.position - first[packed]
            by_row = torch.argsort(rows, stable=True)
            rows, packed = rows[by_row], packed[by_row]
            entries = (rows == offsets[packed + 1] - 1).nonzero().flatten()
            tables[key] = _Table(
                rows.numpy(), packed[entries].numpy(),
                *(t.to(device) for t in (rows, e.head[by_row], e.ref[by_row], packed[entries], entries)),
            )  # fmt: skip
        return RowEdits(self, tables)


@dataclass(frozen=True)
class ReadRows:
    """The rows first..end - 1 of those that are read, in the order in which variants are packed. Where rows are edited that
    is one of each variant, so that they have the variants' numbers."""

    first: int
    end: int


Rows = slice | ReadRows
"""A range of packed rows, or of those that are read."""


@dataclass(frozen=True)
class _Table:
    """The entries of one site and layer, by row. What is looked up while rows go through the layers stands on the CPU too:
    nothing waits for the device."""

    places: np.ndarray  # [E] packed row of each entry, ascending
    tops: np.ndarray  # [K] packed number of the variants whose row that is read has an entry
    row: Tensor  # [E] as places, on the device; so are the others
    head: Tensor
    ref: Tensor
    top: Tensor  # [K]
    entry: Tensor  # [K] which entry it is


class RowEdits:
    """`LateEdits` bound to packed rows.

    Without an entry for its place each method gives back what it got, so a sweep without late edits pays nothing.
    """

    def __init__(self, edits: LateEdits, tables: dict[tuple[str, int], _Table]) -> None:
        self.family, self.bases, self.value, self.tables = edits.family, edits.bases, edits.value, tables

    def edit(self, site: str, l: int, rows: Rows, x: Tensor) -> Tensor:
        """x [R, ...], the site's values in these rows, with its edits: a new tensor if there are any."""
        found = self._find(site, l, rows)
        if found is None:
            return x
        i, head, ref = found
        where = (i, head) if x.ndim == 3 else (i,)
        return x.index_put(where, self._values(site, l, ref, head).to(x.dtype))

    def write(self, site: str, l: int, x: Tensor, n: int) -> None:
        """The same in place, in the first n rows of the residual stream."""
        found = self._find(site, l, slice(0, n))
        if found is not None:
            i, head, ref = found
            x[i] = self._values(site, l, ref, head).to(x.dtype)

    def join(self, stage: Stage, l: int, rows: Rows, index: Tensor, x: Tensor) -> Tensor:
        """x [R, d], the residual rows with which variants join behind a part of the layer whose output they edit."""
        site, before = _ADDS.get(stage, ("", ""))
        found = self._find(site, l, rows)
        if found is not None:
            i, head, ref = found
            x[i] = self.bases.sites[before][l][index[i]] + self._values(site, l, ref, head).to(x.dtype)
        return x

    def keys(self, l: int, rows: slice, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, Hkv, D] with their edits; [R, H, D] if one query head reads what others do not."""
        k, v = self.edit("k", l, rows, k), self.edit("v", l, rows, v)
        if any(self._find(site, l, rows) is not None for site in PER_QUERY.values()):
            k, v = self._each_query(k), self._each_query(v)
            k, v = self.edit("k_per_query", l, rows, k), self.edit("v_per_query", l, rows, v)
        return k, v

    def attend(self, l: int, rows: Rows, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        """z [R, H, D] of these rows: q [R, H, D]; k, v from `keys`; the table of `ops.prefix_attn` [R, 4]."""
        k_shared, v_shared = self.bases.k[l], self.bases.v[l]
        if k.shape[1] != k_shared.shape[1]:
            k_shared, v_shared = self._each_query(k_shared), self._each_query(v_shared)
        cuts = None
        found = self._find("edge", l, rows)
        if found is not None:
            i, head, ref = found
            cuts = torch.cat((torch.stack((i, head), 1), self._values("edge", l, ref, head)), 1).to(torch.int32)
        z, _ = ops.prefix_attn(q, k_shared, v_shared, k, v, table, self.family.scale, cuts=cuts)
        found = self._find("pattern", l, rows)
        if found is not None:
            self._patterns(l, *found, z, v_shared, v, table.long())
        return self.edit("z", l, rows, z)

    def _patterns(
        self, l: int, row: Tensor, head: Tensor, ref: Tensor, z: Tensor, v_shared: Tensor, v: Tensor, table: Tensor
    ) -> None:
        """z of these rows and heads as values weighted by the edit's own weights."""
        wide, group = self.family.resid_dtype, z.shape[1] // v.shape[1]
        of_base = table[row, 2] * z.shape[1] + head  # entries of one base and head read the same shared values
        for key in of_base.unique().tolist():
            mine = (of_base == key).nonzero().flatten()
            longest = int((table[row[mine], 1] - table[row[mine], 0]).max())
            for some in mine.split(max(1, _PATTERN_ENTRIES // (longest * z.shape[2]))):
                own_lo, own_hi, lo, hi = table[row[some]].T
                h = key % z.shape[1]
                n_shared, n_own = (hi - lo)[:, None], (own_hi - own_lo)[:, None]
                weights = self._values("pattern", l, ref[some], head[some]).to(wide)
                at = torch.arange(int(n_shared.max()), device=z.device)
                w = weights[:, : len(at)].masked_fill(at >= n_shared, 0)
                out = w @ v_shared[int(lo[0]) : int(lo[0]) + len(at), h // group].to(wide)
                at = torch.arange(int(n_own.max()), device=z.device)
                seen = at < n_own
                w = weights.gather(1, (n_shared + at).clamp(max=weights.shape[1] - 1)).masked_fill(~seen, 0)
                own = v[torch.where(seen, own_lo[:, None] + at, own_lo[:, None]), h // group].to(wide)
                z[row[some], h] = (out + torch.einsum("es,esd->ed", w, own)).to(z.dtype)

    def _each_query(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.family.cfg.group, 1)

    def _values(self, site: str, l: int, ref: Tensor, head: Tensor) -> Tensor:
        assert self.value is not None
        return self.value(site, l, ref, head)

    def _find(self, site: str, l: int, rows: Rows) -> tuple[Tensor, Tensor, Tensor] | None:
        """Entries among these rows, if any: index into `rows`, head, ref, each [E]."""
        table = self.tables.get((site, l))
        if table is None:
            return None
        if isinstance(rows, slice):
            a, b = np.searchsorted(table.places, (rows.start, rows.stop)).tolist()
            return (table.row[a:b] - rows.start, table.head[a:b], table.ref[a:b]) if b > a else None
        a, b = np.searchsorted(table.tops, (rows.first, rows.end)).tolist()
        if b == a:
            return None
        entry = table.entry[a:b]
        return table.top[a:b] - rows.first, table.head[entry], table.ref[entry]


class SourceValues:
    """Values from the source run of each base; ref is the row among the bases' kept rows."""

    def __init__(self, family: LlamaFamily, bases: Bases) -> None:
        self.family, self.bases, self.source = family, bases, bases.source

    def __call__(self, site: str, l: int, ref: Tensor, head: Tensor) -> Tensor:
        if site == "pattern":
            return self._pattern(l, ref, int(head[0]))
        if site in PER_QUERY.values():
            return self.source[site[0]][l][ref, head // self.family.cfg.group]
        kept = self.source[site][l]
        return kept[ref] if kept.ndim == 2 else kept[ref, head]

    def _pattern(self, l: int, ref: Tensor, head: int) -> Tensor:
        """The source run's attention weights [E, T] of rows of one base in one head: never a pattern of all rows or heads."""
        bases, family = self.bases, self.family
        b = int(torch.searchsorted(bases.row_offset, ref[:1].cpu(), right=True)) - 1
        first, read, offset, keys = (int(t[b]) for t in (bases.first, bases.read, bases.row_offset, bases.key_offset))
        q = self.source["q"][l][ref, head][:, None].clone()
        position = ref - offset + first
        ops.rope(q, bases.cos[position], bases.sin[position])
        kv = head // family.cfg.group
        k = self.source["k"][l][offset : offset + read - first + 1, kv][:, None].clone()
        ops.rope(k, bases.cos[first : read + 1], bases.sin[first : read + 1])
        wide = family.resid_dtype  # in front of `first` the source run is the base run
        k_all = torch.cat((bases.k[l][keys : keys + first, kv], k[:, 0])).to(wide)
        scores = q[:, 0].to(wide) @ k_all.T * family.scale
        later = torch.arange(len(k_all), device=ref.device) > position[:, None]
        return scores.masked_fill(later, -torch.inf).softmax(-1)
