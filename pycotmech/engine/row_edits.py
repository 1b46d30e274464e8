"""Edits of rows that have already joined: tables of rows, applied where a layer is computed.

For each site and layer one table says which variant, which position, which head, and where the value is found. The staircase
asks at each stage for the entries among the rows it holds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from pycotmech.engine.bases import Bases, Stage
from pycotmech.engine.rows import PackedRows, Rows
from pycotmech.model.config import ModelConfig
from pycotmech.model.families.base import Family


class Values(Protocol):
    """The values of replacements. Both methods are called while rows go through the layers, so neither may read a number back
    from the device."""

    def __call__(self, site: str, l: int, ref: Tensor, head: Tensor) -> Tensor:
        """ref [E], head [E] -> values [E, width] of any site but "pattern"."""
        ...

    def pattern(self, l: int, ref: Tensor, base: int, head: int) -> Tensor:
        """ref [E] -> the attention weights of rows of one base in one head: [E, keys from position 0 on]."""
        ...


PER_QUERY = {"k": "k_per_query", "v": "v_per_query"}
"""Keys and values as one query head alone reads them: sites of their own, with one head for each query head."""

_PATTERN_ENTRIES = 2**22
"""Values of own rows that are gathered at once for edited patterns."""


def adds(stage: Stage, cfg: ModelConfig) -> tuple[str, tuple[str, ...]]:
    """What a variant that joins at this stage may have edited on the way: a part that is added, and the sites that it is added
    to."""
    if stage == Stage.PRE:
        return "", ()
    if cfg.parallel:  # the stream is the sum of the three
        return ("attn_out", ("resid_pre", "mlp_out")) if stage == Stage.MID else ("mlp_out", ("resid_pre", "attn_out"))
    return ("attn_out", ("resid_pre",)) if stage == Stage.MID else ("mlp_out", ("resid_mid",))


@dataclass(frozen=True)
class Entries:
    """E replacements in one site of one layer, no two of the same place."""

    variant: Tensor  # [E] number of the variant, in the caller's order; ascending
    position: Tensor  # [E]
    head: Tensor  # [E]; -1 where the site has no heads (edge: all of them)
    ref: Tensor  # [E] by which the value is found

    def __getitem__(self, entries: slice) -> Entries:
        return Entries(self.variant[entries], self.position[entries], self.head[entries], self.ref[entries])

    def __len__(self) -> int:
        return len(self.variant)


class RowEdits:
    """The replacements of a set of variants: a table for each (site, layer), and the function that knows the values.

    Sites are those of a model, "pattern", "edge" (values [E, 2] are ranges of key positions) and those of `PER_QUERY`.
    """

    def __init__(
        self,
        family: Family,
        bases: Bases,
        tables: Mapping[tuple[str, int], Entries] | None = None,
        value: Values | None = None,
    ) -> None:
        self.family, self.bases, self.tables, self.value = family, bases, dict(tables or {}), value

    def of(self, first: int, end: int) -> RowEdits:
        """Those of the variants numbered first..end - 1, which are numbered from 0."""
        tables = {}
        for key, e in self.tables.items():
            a, b = torch.searchsorted(e.variant, torch.tensor([first, end])).tolist()
            if b > a:
                kept = e[a:b]
                tables[key] = Entries(kept.variant - first, kept.position, kept.head, kept.ref)
        return RowEdits(self.family, self.bases, tables, self.value)

    def bound(self, to: PackedRows) -> BoundEdits:
        """The same for packed rows."""
        rank = torch.empty_like(to.order)
        rank[to.order] = torch.arange(len(to.order))
        tables: dict[tuple[str, int], _Table] = {}
        patterns: dict[int, tuple[_Patterns, _Patterns]] = {}
        for (site, l), e in self.tables.items():
            packed = rank[e.variant]
            row = to.offsets[packed] + e.position - to.variants.first[packed]
            if site == "pattern":
                places = torch.stack((packed, row, e.head, e.ref), 1)  # [E, 4]
                top = row == to.offsets[packed + 1] - 1  # the last row of a variant is the one that is read
                patterns[l] = _Patterns.of(self.bases, to, places), _Patterns.of(self.bases, to, places[top], read=True)
            else:
                by_row = torch.argsort(row, stable=True)
                tables[site, l] = _Table.of(to, packed[by_row], row[by_row], e.head[by_row], e.ref[by_row])
        return BoundEdits(self, tables, patterns, to.begins)


def _places(bases: Bases) -> list[list[int]]:
    """Of each base: the first and the last position whose rows are kept, where these rows begin, and where its keys begin."""
    return torch.stack((bases.first, bases.read, bases.row_offset, bases.key_offset), 1).tolist()


@dataclass(frozen=True)
class _Table:
    """The entries of one site and layer, by row. What is looked up while rows go through the layers is on the CPU too:
    nothing waits for the device."""

    places: np.ndarray  # [E] packed row of each entry, ascending
    tops: np.ndarray  # [K] packed number of the variants whose row that is read has an entry
    row: Tensor  # [E] as places, on the device; so are the others
    head: Tensor
    ref: Tensor
    top: Tensor  # [K]
    entry: Tensor  # [K] which entry it is

    on_device: ClassVar[tuple[str, ...]] = ("row", "head", "ref", "top", "entry")

    @staticmethod
    def of(to: PackedRows, packed: Tensor, row: Tensor, head: Tensor, ref: Tensor) -> _Table:
        """packed [E]: packed number of the variant of each entry; row [E], ascending."""
        entry = (row == to.offsets[packed + 1] - 1).nonzero().flatten()
        top, device = packed[entry], to.table.device
        return _Table(
            places=row.numpy(), tops=top.numpy(), row=row.to(device), head=head.to(device), ref=ref.to(device),
            top=top.to(device), entry=entry.to(device),
        )  # fmt: skip


@dataclass(frozen=True)
class _Patterns:
    """E replaced patterns of one layer, ordered by variant, head and row, so that most of those of one base and head, which
    read the same shared values, are together. What decides shapes and places of products is on the CPU."""

    packed: np.ndarray  # [E] packed number of the variant, ascending
    base: np.ndarray  # [E]
    head: np.ndarray  # [E]
    shared: np.ndarray  # [E] where the base's keys begin among the shared ones
    n_shared: np.ndarray  # [E] how many of these the row sees
    n_own: np.ndarray  # [E] how many of its own
    places: list[list[int]]  # of each base, as `_places`: a replaced pattern reads keys from one position to another
    row: Tensor  # [E] packed row, or packed number of the variant where only rows that are read are held; on the device
    own: Tensor  # [E] packed row of the first of its own keys
    see: Tensor  # [E, 2] n_shared, n_own
    ref: Tensor  # [E]

    on_device: ClassVar[tuple[str, ...]] = ("row", "own", "see", "ref")

    @staticmethod
    def of(bases: Bases, to: PackedRows, places: Tensor, *, read: bool = False) -> _Patterns:
        """places [E, 4]: packed number of the variant, packed row, head, ref. read: only rows that are read are held."""
        packed, row, head, _ = places.T.numpy()
        packed, row, head, ref = places[torch.from_numpy(np.lexsort((row, head, packed)))].T.contiguous()
        own, base, n_shared = to.offsets[packed], to.variants.base[packed], to.variants.first[packed]
        n_own, device = row - own + 1, to.table.device
        return _Patterns(
            packed=packed.numpy(), base=base.numpy(), head=head.numpy(), shared=bases.key_offset[base].numpy(),
            n_shared=n_shared.numpy(), n_own=n_own.numpy(), places=_places(bases),
            row=(packed if read else row).to(device), own=own.to(device),
            see=torch.stack((n_shared, n_own), 1).to(device), ref=ref.to(device),
        )  # fmt: skip

    def runs(self, first: int, end: int, width: int) -> Iterator[slice]:
        """The entries of the variants packed as first..end - 1, cut where the base or the head changes, and so that at most
        `_PATTERN_ENTRIES` values of `width` numbers for each own key are gathered at once."""
        a, b = np.searchsorted(self.packed, (first, end)).tolist()
        if a == b:
            return
        changes = (np.diff(self.base[a:b]) != 0) | (np.diff(self.head[a:b]) != 0)
        for c, d in pairwise([a, *(np.flatnonzero(changes) + a + 1).tolist(), b]):
            step = max(1, _PATTERN_ENTRIES // (int(self.n_own[c:d].max()) * width))
            for i in range(c, d, step):
                yield slice(i, min(i + step, d))


class BoundEdits:
    """`RowEdits` bound to packed rows.

    Where nothing is edited each method returns its argument, so a sweep without edited rows pays nothing.
    """

    on_device: ClassVar[tuple[str, ...]] = ("bases", "value", "tables", "patterns")

    def __init__(
        self,
        edits: RowEdits,
        tables: dict[tuple[str, int], _Table],
        patterns: dict[int, tuple[_Patterns, _Patterns]],
        begins: list[int],
    ) -> None:
        """patterns: of all rows, and of those that are read; begins [N + 1]: where each variant's rows begin."""
        self.family, self.bases, self.value = edits.family, edits.bases, edits.value
        self.tables, self.patterns, self.begins = tables, patterns, begins

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
        """x [R, d], the residual rows with which variants join after a part of the layer whose output they edit."""
        site, places = adds(stage, self.family.cfg)
        found = self._find(site, l, rows)
        if found is not None:
            i, head, ref = found
            x[i] = self._values(site, l, ref, head).to(x.dtype)
            for place in places:
                x[i] += self.bases.sites[place][l][index[i]]
        return x

    def keys(self, l: int, rows: slice, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [R, Hkv, D] with their edits; [R, H, D] if one query head reads what others do not."""
        k, v = self.edit("k", l, rows, k), self.edit("v", l, rows, v)
        if any(self._find(site, l, rows) is not None for site in PER_QUERY.values()):
            k, v = self._by_query_head(k), self._by_query_head(v)
            k, v = self.edit("k_per_query", l, rows, k), self.edit("v_per_query", l, rows, v)
        return k, v

    def attend(self, l: int, rows: Rows, q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
        """z [R, H, D] of these rows: q [R, H, D]; k, v from `keys`; the table of `ops.prefix_attn` [R, 4]."""
        k_shared, v_shared = self.bases.k[l], self.bases.v[l]
        if k.shape[1] != k_shared.shape[1]:
            k_shared, v_shared = self._by_query_head(k_shared), self._by_query_head(v_shared)
        cuts = None
        found = self._find("edge", l, rows)
        if found is not None:
            i, head, ref = found
            cuts = torch.cat((torch.stack((i, head), 1), self._values("edge", l, ref, head)), 1).to(torch.int32)
        z = self.family.attend(l, q, k_shared, v_shared, k, v, table, cuts)
        if l in self.patterns:
            self._write_patterns(l, rows, z, v_shared, v)
        return self.edit("z", l, rows, z)

    def _write_patterns(self, l: int, rows: Rows, z: Tensor, v_shared: Tensor, v: Tensor) -> None:
        """z of the rows and heads with replaced patterns: values weighted by the pattern's own weights."""
        assert self.value is not None
        wide, group = self.family.resid_dtype, z.shape[1] // v.shape[1]
        if isinstance(rows, slice):
            first, end = (bisect_left(self.begins, row) for row in (rows.start, rows.stop))
            table, start, at_row = self.patterns[l][0], rows.start, rows.start
        else:
            first, end = rows.first, rows.end
            table, start, at_row = self.patterns[l][1], self.begins[first], first
        for run in table.runs(first, end, z.shape[2]):
            head, shared = int(table.head[run.start]), int(table.shared[run.start])
            longest, keys = int(table.n_own[run].max()), int(table.n_shared[run].max())
            n_shared, n_own = table.see[run].split(1, 1)  # [E, 1]
            own_lo = table.own[run][:, None] - start
            weights = self.value.pattern(l, table.ref[run], int(table.base[run.start]), head).to(wide)  # [E, T]
            at = torch.arange(keys, device=z.device)
            w = weights[:, :keys].masked_fill(at >= n_shared, 0)
            out = w @ v_shared[shared : shared + keys, head // group].to(wide)  # [E, D]
            at = torch.arange(longest, device=z.device)
            seen = at < n_own  # [E, longest]
            w = weights.gather(1, (n_shared + at).clamp(max=weights.shape[1] - 1)).masked_fill(~seen, 0)
            own = v[own_lo + torch.where(seen, at, 0), head // group].to(wide)  # [E, longest, D]
            z[table.row[run] - at_row, head] = (out + torch.einsum("es,esd->ed", w, own)).to(z.dtype)

    def _by_query_head(self, x: Tensor) -> Tensor:
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


class GivenValues:
    """Values that were given: of each site and layer a table [rows, width], of which ref is the row."""

    on_device: ClassVar[tuple[str, ...]] = ("stored",)

    def __init__(self, stored: dict[tuple[str, int], Tensor]) -> None:
        self.stored = stored

    def __call__(self, site: str, l: int, ref: Tensor, head: Tensor) -> Tensor:
        return self.stored[site, l][ref]

    def pattern(self, l: int, ref: Tensor, base: int, head: int) -> Tensor:
        return self.stored["pattern", l][ref]


class SourceValues:
    """Values from the source run of each base; ref is the row among the bases' kept rows."""

    on_device: ClassVar[tuple[str, ...]] = ("bases",)
    for_making: ClassVar[tuple[str, ...]] = ("places",)
    """What only replaced patterns read, which say it themselves (`_Patterns.places`)."""

    def __init__(self, family: Family, bases: Bases) -> None:
        self.family, self.bases, self.places = family, bases, _places(bases)

    def __call__(self, site: str, l: int, ref: Tensor, head: Tensor) -> Tensor:
        source = self.bases.source
        if site in PER_QUERY.values():
            return source[site[0]][l][ref, head // self.family.cfg.group]
        kept = source[site][l]
        return kept[ref] if kept.ndim == 2 else kept[ref, head]

    def pattern(self, l: int, ref: Tensor, base: int, head: int) -> Tensor:
        """The source run's attention weights [E, T] of these rows: never a pattern of all rows or heads."""
        bases, family = self.bases, self.family
        first, read, offset, keys = self.places[base]
        q = bases.source["q"][l][ref, head][:, None].clone()
        position = ref - offset + first
        family.rotate(l, bases.angles, position, q)
        kv = head // family.cfg.group
        k = bases.source["k"][l][offset : offset + read - first + 1, kv][:, None].clone()
        family.rotate(l, bases.angles, slice(first, read + 1), keys=(k,))
        wide = family.resid_dtype  # before `first` the source run is the base run
        k_all = torch.cat((bases.k[l][keys : keys + first, kv], k[:, 0])).to(wide)
        return family.attention(l).weights(q[:, 0].to(wide) @ k_all.T, position, head)
