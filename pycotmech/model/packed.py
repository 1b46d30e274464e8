"""What a packed pass over prompts takes and gives: keys and values, kept activations, and which keys each row sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pycotmech.model.climb import Attention
from pycotmech.model.families.base import Family
from pycotmech.model.sites import QUERY_SITES, RESIDUAL_SITES


@dataclass(frozen=True)
class KeyValues:
    """Keys (after the rotary embedding) and values of positions 0..P-1 of one sequence: each [L, P, Hkv, D]."""

    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.k.shape[1]


@dataclass(frozen=True)
class Packed:
    """What a packed forward pass kept. Sequences follow one another; `offsets` [n + 1] cuts the rows."""

    offsets: list[int]
    k: Tensor  # [L, R, Hkv, D], after the rotary embedding
    v: Tensor  # [L, R, Hkv, D]
    sites: dict[str, Tensor]  # site -> [L, R, ...], or the rows that were to be kept
    resid_final: Tensor  # [len(read), d], resid_post of the last layer at the rows read

    def key_values(self, i: int, past: KeyValues | None) -> KeyValues:
        """Keys and values of sequence i from position 0 on, the shared past before it."""
        a, b = self.offsets[i], self.offsets[i + 1]
        k, v = self.k[:, a:b], self.v[:, a:b]
        return KeyValues(k, v) if past is None else KeyValues(torch.cat((past.k, k), 1), torch.cat((past.v, v), 1))


def site_shape(family: Family, site: str) -> tuple[int, ...]:
    cfg = family.cfg
    if site in RESIDUAL_SITES:
        return (cfg.d_model,)
    return (cfg.n_heads if site in QUERY_SITES else cfg.n_key_value_heads, cfg.d_head)


def site_dtype(family: Family, site: str) -> torch.dtype:
    return family.resid_dtype if site.startswith("resid") else family.dtype


def site_bytes(family: Family, site: str) -> int:
    """Of one row of a site in one layer."""
    return torch.Size(site_shape(family, site)).numel() * site_dtype(family, site).itemsize


@dataclass(frozen=True)
class RowKeys:
    """Of packed rows [R]: where the own keys of a row's sequence begin, which of them is the row's own, and where the keys of
    the past begin that it continues, and how many of them there are (`Family.row_table`)."""

    own: Tensor
    within: Tensor
    shared: Tensor
    n_shared: Tensor

    @staticmethod
    def of(lengths: Sequence[int], after: Sequence[tuple[int, int]]) -> RowKeys:
        """Of sequences of these lengths, each after a range of the past's keys."""
        counts = torch.tensor(lengths)
        own = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        lo, hi = torch.repeat_interleave(torch.tensor(after), counts, dim=0).unbind(1)
        return RowKeys(own, torch.arange(len(own)) - own, lo, hi - lo)

    @property
    def positions(self) -> Tensor:
        return self.n_shared + self.within

    def padded(self, n: int) -> RowKeys:
        """Of n rows: the last one again and again after the others, so that what is added sees keys that are there."""
        return RowKeys(*(padded(t, n) for t in (self.own, self.within, self.shared, self.n_shared)))

    def table(self, family: Family, own_keys: int, shared_keys: int) -> Tensor:
        return family.row_table(self.own, self.within, self.shared, self.n_shared, own_keys=own_keys, shared_keys=shared_keys)


def padded(x: Tensor, n: int) -> Tensor:
    """x [m, ...] with its last row repeated up to n."""
    return torch.cat((x, x[-1:].expand(n - len(x), *x.shape[1:]))) if len(x) < n else x


def causal_attention(family: Family, lengths: Sequence[int] | None, table: Tensor, past: KeyValues | None) -> Attention:
    """Causal attention of packed rows over the keys that a table gives them: their own ones, and some of the past's. lengths:
    of the sequences that all rows are, which without a past may go through PyTorch's own attention; None: they do not."""

    def attend(l: int, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> Tensor:
        if past is None and rows is None and lengths is not None:
            return family.attention(l).prompts(q, k, v, lengths, table)
        past_k, past_v = (k[:0], v[:0]) if past is None else (past.k[l], past.v[l])
        return family.attend(l, q, past_k, past_v, k, v, table if rows is None else table[rows].contiguous())

    return attend
