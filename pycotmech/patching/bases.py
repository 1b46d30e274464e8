"""The runs that variants start from: prompts run once, their shared prefix computed once, what joins need kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from pycotmech.model.families import LlamaFamily
from pycotmech.model.run import KeyValues, Packed, forward_packed


class Stage(IntEnum):
    """Where in its layer a variant begins to differ: the residual stream before attention, before the MLP, after it."""

    PRE = 0
    MID = 1
    POST = 2

    @property
    def site(self) -> str:
        return ("resid_pre", "resid_mid", "resid_post")[self]


@dataclass(frozen=True)
class Bases:
    """Base runs of B prompts. Their keys and values stand one after another; so do the rows kept for joins.

    Kept rows of base b are its positions first[b]..read[b]; nothing in front of first[b] is ever edited, nothing behind
    read[b] is ever read.
    """

    first: Tensor  # [B] first position whose activations are kept
    read: Tensor  # [B] position where the metric is read
    key_offset: Tensor  # [B] where the base's positions 0.. begin among the shared keys
    row_offset: Tensor  # [B] where its kept rows begin
    k: Tensor  # [L, sum of positions, Hkv, D], after the rotary embedding
    v: Tensor
    sites: dict[str, Tensor]  # site -> [L, sum of rows, ...] of the base runs
    source: dict[str, Tensor]  # the same sites and rows of the runs that patches come from
    cos: Tensor  # [positions, D]
    sin: Tensor

    @property
    def nbytes(self) -> int:
        tensors = [self.k, self.v, *self.sites.values(), *self.source.values()]
        return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class PairRuns:
    """What running B aligned pairs gives: the bases, and the final residual rows [B, d] of both runs where they are read
    (none of source runs that were not asked for)."""

    bases: Bases
    base_final: Tensor
    source_final: Tensor


def common_prefix(prompts: Sequence[Tensor]) -> int:
    """Length of the longest common prefix of token sequences."""
    n = min(len(p) for p in prompts)
    same = torch.ones(n, dtype=torch.bool)
    for p in prompts[1:]:
        same &= p[:n] == prompts[0][:n]
    return n if bool(same.all()) else int(same.int().argmin())


def run_pairs(
    family: LlamaFamily,
    base_prompts: Sequence[Tensor],
    source_prompts: Sequence[Tensor],
    *,
    past: KeyValues | None,
    first: Sequence[int],
    read: Sequence[int],
    sites: Sequence[str],
    source_sites: Sequence[str],
) -> PairRuns:
    """Runs aligned pairs from the end of their shared past, base and source together, and keeps what joins need.

    source_prompts: none at all if the edits bring their own values.
    first, read: for each pair, the first position that can be edited and the position where the metric is read.
    """
    P, B = 0 if past is None else len(past), len(base_prompts)
    reads = [*read, *read] if source_prompts else [*read]
    suffixes = [p[P : r + 1] for p, r in zip([*base_prompts, *source_prompts], reads, strict=True)]
    ends = torch.tensor([len(s) for s in suffixes]).cumsum(0) - 1
    needed = tuple(dict.fromkeys((*sites, *source_sites)))
    packed = forward_packed(family, suffixes, past, sites=needed, read=ends)
    caches = [packed.key_values(b, past) for b in range(B)]
    lengths = torch.tensor([len(c) for c in caches])
    first_, read_ = torch.tensor(first), torch.tensor(read)
    rows = read_ - first_ + 1
    cos, sin = family.rotary(torch.arange(int(lengths.max()), device=family.device))
    bases = Bases(
        first=first_,
        read=read_,
        key_offset=lengths.cumsum(0) - lengths,
        row_offset=rows.cumsum(0) - rows,
        k=torch.cat([c.k for c in caches], 1) if B > 1 else caches[0].k,
        v=torch.cat([c.v for c in caches], 1) if B > 1 else caches[0].v,
        sites={s: _rows(packed, s, range(B), P, first) for s in sites},
        source={s: _rows(packed, s, range(B, 2 * B), P, first) for s in source_sites},
        cos=cos,
        sin=sin,
    )
    return PairRuns(bases, packed.resid_final[:B], packed.resid_final[B:])


def _rows(packed: Packed, site: str, sequences: range, past: int, first: Sequence[int]) -> Tensor:
    kept = packed.sites[site]
    parts = [kept[:, packed.offsets[s] + f - past : packed.offsets[s + 1]] for s, f in zip(sequences, first, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
