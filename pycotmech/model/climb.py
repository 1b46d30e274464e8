"""The one way in which prompts go up through the layers, with a place to watch or replace attention.

Everything that runs a prompt is this loop: `run.forward_packed` (rows of many sequences on a shared past, activations kept),
`run.watch` (attention of each layer looked at, nothing kept), `engine.decode` (keys appended to, token by token).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pycotmech.model import work
from pycotmech.model.families.base import Family
from pycotmech.model.families.launches import side_by_side

Attention = Callable[[int, Tensor, Tensor, Tensor, Tensor | None], Tensor | None]
"""(layer, q [n, H, D], own keys and own values [.., Hkv, D], rows) -> z [n, H, D]. Queries and keys are rotated. rows: which of
the packed rows the queries are, None for the first n. None in the place of z ends the climb. The tensors are overwritten by
the next layer: copy what is to be kept."""

EditZ = Callable[[int, Tensor, Tensor | None], Tensor]
"""(layer, z [n, H, D], packed row numbers [n], None: the first n) -> the z that goes on; it may be changed in place."""


@dataclass(frozen=True)
class KeySlots:
    """Where the keys and the values of the rows are put: k, v [layers or 1, slots, Hkv, D], the one layer of the second kind
    overwritten by the next; at [R]: the slot of each row, None: slot r for row r."""

    k: Tensor
    v: Tensor
    at: Tensor | None = None

    @staticmethod
    def empty(family: Family, slots: int, *, n_layers: int = 1, at: Tensor | None = None) -> KeySlots:
        """Room that is not filled yet, of keys and values in one piece."""
        cfg = family.cfg
        shape = (2, n_layers, slots, cfg.n_key_value_heads, cfg.d_head)
        k, v = torch.empty(shape, dtype=family.dtype, device=family.device)
        return KeySlots(k, v, at)

    def layer(self, l: int) -> tuple[Tensor, Tensor]:
        l = l if len(self.k) > 1 else 0
        return self.k[l], self.v[l]

    def put(self, l: int, a: int, b: int, k: Tensor, v: Tensor) -> None:
        """Keys and values [b - a, Hkv, D] of rows a .. b - 1 of layer l: in one copy where both lie side by side."""
        k_own, v_own = self.layer(l)
        at = slice(a, b) if self.at is None else self.at[a:b]
        joint = side_by_side((k, v))
        apart = v_own.storage_offset() - k_own.storage_offset()
        one_piece = k_own.untyped_storage().data_ptr() == v_own.untyped_storage().data_ptr() and apart > 0
        if len(joint) == 1 and self.at is None and one_piece:
            to = k_own[at]
            # [2, rows, Hkv, D]: keys and values, where they are kept and where they come from
            kept = to.as_strided((2, *to.shape), (apart, *to.stride()))
            kept.copy_(joint[0].unflatten(1, (2, -1)).transpose(0, 1))
        else:
            k_own[at], v_own[at] = k, v


class Kept:
    """Activations that are kept on the way.

    sites: name -> [L, rows kept, ...], filled by the climb. rows [n]: which packed rows, ascending; None: all.
    """

    def __init__(self, sites: dict[str, Tensor], rows: Tensor | None = None) -> None:
        self.sites, self.rows = sites, rows
        self._places: dict[tuple[int, torch.device], tuple[slice, Tensor]] = {}

    def store(self, site: str, l: int, a: int, b: int, value: Tensor) -> None:
        """Takes from value, the site in rows a .. b - 1, what is to be kept."""
        kept = self.sites.get(site)
        if kept is None:
            return
        if self.rows is None:
            kept[l, a:b] = value
        else:
            to, rows = self._place(self.rows, a, b, value.device)
            if value.dtype == kept.dtype and value.device == kept.device and len(rows):
                torch.index_select(value, 0, rows, out=kept[l, to])
            else:
                kept[l, to] = value[rows]

    def _place(self, rows: Tensor, a: int, b: int, device: torch.device) -> tuple[slice, Tensor]:
        """Where the rows of a block are kept, and which rows of the block they are; the same for every layer on a device."""
        if (a, device) not in self._places:
            i, j = torch.searchsorted(rows, torch.tensor([a, b])).tolist()
            self._places[a, device] = slice(i, j), (rows[i:j] - a).to(device)
        return self._places[a, device]


class KeptRows(Kept):
    """The same of a pass that goes through layers as one block: its rows [n] stay on the device and are looked up there."""

    def __init__(self, sites: dict[str, Tensor], rows: Tensor) -> None:
        super().__init__(sites, rows)
        self._at = rows

    def store(self, site: str, l: int, a: int, b: int, value: Tensor) -> None:
        assert a == 0
        kept = self.sites.get(site)
        if kept is None:
            return
        if value.dtype == kept.dtype:
            torch.index_select(value, 0, self._at, out=kept[l])
        else:
            kept[l] = value[self._at]


@torch.no_grad()
def climb(
    family: Family,
    tokens: Tensor,
    positions: Tensor,
    attention: Attention,
    keys: KeySlots,
    *,
    kept: Kept | None = None,
    edit_z: EditZ | None = None,
    read: Tensor | None = None,
    n_rows: Sequence[int] | None = None,
    n_layers: int | None = None,
    begin: tuple[int, Tensor] | None = None,
    angles: Tensor | None = None,
    tick: Callable[[work.LayerRows], None] | None = None,
) -> Tensor:
    """Takes packed rows up through the layers; the residual stream after the last one, [R, d], or of the rows `read`.

    tokens, positions [R], on the model's device, as is what is kept and returned; attention sees its tensors there too. The
    residual stream is on the device of each layer.
    attention: gives z of each layer, from the queries and from what `keys` holds.
    edit_z: what every layer does to z before its output projection; layers above see its consequences.
    read: packed row numbers. Then the last layer computes queries, attention and MLP for these rows only, and without any only
        keys and values. None: all rows go on.
    n_rows: how many of the rows, from the first on, go through each layer; None: all. The others stay as they are.
    n_layers: only the first so many layers; what is said of the last layer then holds for the last of these.
    begin: the layer to begin with and the residual rows [R, d] before it, which are changed in place; None: the embedding.
    angles: of the positions, if they are known (`Family.rotary`). tick: gets what goes through each layer; None: it is reported
        as work.

    Memory: the residual stream, the queries and z of one layer, `keys`, and the temporaries of `Sizes.row_block` rows.
    """
    cfg, R = family.cfg, len(tokens)
    L = cfg.n_layers if n_layers is None else n_layers
    angles, home = family.rotary(positions) if angles is None else angles, positions.device
    tick = partial(work.count, family) if tick is None else tick
    first, x = (0, family.embed(tokens, positions)) if begin is None else begin  # [R, d]
    kept = kept or Kept({})
    queries = torch.empty(R, cfg.n_heads, cfg.d_head, dtype=family.dtype, device=family.device)
    # What an MLP adds is added by the op that norms the rows for the next layer; until then it is `owed`.
    owes, owed = n_rows is None and not cfg.parallel, None
    for l in range(first, L):
        n = R if n_rows is None else n_rows[l]
        if n == 0:
            break
        k_own, v_own = keys.layer(l)
        asked = queries
        top = read if l == L - 1 else None
        x = x.to(family.device_of(l))
        for a, b in blocks(family, n):
            if owed is None:
                kept.store("resid_pre", l, a, b, x[a:b])
                heads = family.qkv(l, x[a:b])
            else:
                heads, owed = family.qkv_after(l, x[a:b], owed), None
                kept.store("resid_post", l - 1, a, b, x[a:b])
                kept.store("resid_pre", l, a, b, x[a:b])
            q, k, v = (t.to(home) for t in heads)
            kept.store("q", l, a, b, q), kept.store("k", l, a, b, k), kept.store("v", l, a, b, v)
            turned = None if top is not None else q
            to = None if keys.at is not None else (k_own[a:b], v_own[a:b])
            if to is None or not family.rotate_into(l, angles, slice(a, b), turned, k, v, *to):
                family.rotate(l, angles, slice(a, b), *(() if turned is None else (turned,)), keys=(k,))
                keys.put(l, a, b, k, v)
            if top is None and b - a == n and q.is_contiguous():
                asked = q
            elif top is None:
                queries[a:b] = q
        if top is not None:
            tick(work.LayerRows(n, n + len(top), len(top), len(top)))
            return _read_rows(family, l, x[top.to(x.device)].to(home), angles, attention, edit_z, k_own, v_own, top)
        z = attention(l, asked[:n], k_own, v_own, None)
        if z is None:
            tick(work.LayerRows(qkv=n))
            return x.to(home)
        z = z if edit_z is None else edit_z(l, z, None)
        for a, b in blocks(family, n):
            kept.store("z", l, a, b, z[a:b])
            beside = family.mlp_out(l, x[a:b]) if cfg.parallel else None
            out = family.attn_out(l, z[a:b].to(x.device))
            kept.store("attn_out", l, a, b, out)
            if beside is None:
                out = family.mlp_after(l, x[a:b], out)
            else:
                x[a:b].add_(out).add_(beside)
                out = beside
            # Of a parallel block this is the stream after both: where a changed z joins, the MLP has nothing to add.
            kept.store("resid_mid", l, a, b, x[a:b])
            kept.store("mlp_out", l, a, b, out)
            if owes and l < L - 1 and b - a == n:
                owed = out
                continue
            if beside is None:
                x[a:b].add_(out)
            kept.store("resid_post", l, a, b, x[a:b])
        tick(work.LayerRows.whole(n))
        del z
    return x.to(home)


def _read_rows(
    family: Family, l: int, x: Tensor, angles: Tensor, attention: Attention, edit_z: EditZ | None,
    k_own: Tensor, v_own: Tensor, read: Tensor,
) -> Tensor:  # fmt: skip
    """The rest of the last layer for the rows that are read, x [len(read), d], which is changed in place."""
    if len(read) == 0:
        return x
    q = family.qkv(l, x)[0]
    family.rotate(l, angles, read, q)
    z = attention(l, q, k_own, v_own, read)
    assert z is not None
    z = z if edit_z is None else edit_z(l, z, read)
    if family.cfg.parallel:
        return x + family.attn_out(l, z) + family.mlp_out(l, x)
    return x.add_(family.mlp_after(l, x, family.attn_out(l, z)))


def blocks(family: Family, n: int) -> Iterator[tuple[int, int]]:
    """Ranges of n rows that go through the stages of a layer together."""
    size = family.sizes.row_block
    return ((a, min(a + size, n)) for a in range(0, n, size))
