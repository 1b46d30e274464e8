"""The forward pass, on packed rows, with activations kept on the way.

Two things differ from running the Hugging Face model: several sequences that continue one shared prefix are computed as
rows of one matrix, on keys and values of the prefix that were computed once; and only what is asked for is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pycotmech import ops
from pycotmech.model import work
from pycotmech.model.families.llama import LlamaFamily
from pycotmech.model.sites import QUERY_SITES, RESIDUAL_SITES, parse_site

ROW_BLOCK = 2048
"""Rows that go through the stages of a layer together: bounds temporary memory, keeps matrix products large."""

EditZ = Callable[[int, Tensor, Tensor | None], Tensor]
"""(layer, z [n, H, D], packed row numbers [n], None: all rows) -> the z that goes on; it may be changed in place."""


@dataclass(frozen=True)
class KeyValues:
    """Keys (after the rotary embedding) and values of positions 0..P-1 of one sequence: each [L, P, Hkv, D]."""

    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return self.k.shape[1]


@dataclass(frozen=True)
class Packed:
    """What a packed forward pass kept. Sequences stand one after another; `offsets` [n + 1] cuts the rows."""

    offsets: list[int]
    k: Tensor  # [L, R, Hkv, D], after the rotary embedding
    v: Tensor  # [L, R, Hkv, D]
    sites: dict[str, Tensor]  # site -> [L, R, ...], or the rows that were to be kept
    resid_final: Tensor  # [len(read), d], resid_post of the last layer at the rows read

    def key_values(self, i: int, past: KeyValues | None) -> KeyValues:
        """Keys and values of sequence i from position 0 on, the shared past in front."""
        a, b = self.offsets[i], self.offsets[i + 1]
        k, v = self.k[:, a:b], self.v[:, a:b]
        return KeyValues(k, v) if past is None else KeyValues(torch.cat((past.k, k), 1), torch.cat((past.v, v), 1))


def site_shape(family: LlamaFamily, site: str) -> tuple[int, ...]:
    cfg = family.cfg
    if site in RESIDUAL_SITES:
        return (cfg.d_model,)
    return (cfg.n_heads if site in QUERY_SITES else cfg.n_key_value_heads, cfg.d_head)


def site_dtype(family: LlamaFamily, site: str) -> torch.dtype:
    return family.resid_dtype if site.startswith("resid") else family.dtype


@torch.no_grad()
def forward_packed(
    family: LlamaFamily,
    sequences: Sequence[Tensor],
    past: KeyValues | None = None,
    *,
    after: Sequence[tuple[int, int]] | None = None,
    sites: Sequence[str] = (),
    keep: Tensor | None = None,
    read: Tensor | None = None,
    edit_z: EditZ | None = None,
    upto: int | None = None,
) -> Packed:
    """Runs sequences that continue a past (or start at position 0) through the model as packed rows.

    sequences: token ids, each [S_i]. after: for each sequence the range of the past's keys that it continues, whose first
    one stands at position 0; None: all of them.
    sites: what to keep, in all layers, for the packed row numbers `keep`, ascending; None: for all rows.
    read: packed row numbers whose final residual is wanted. Without sites, the last layer computes queries, attention and
    MLP for these rows only (none: only its keys and values).
    edit_z: what every layer does to z in front of its output projection; layers above see its consequences. The past is
    taken as it is: an edit that reaches it has to be made where the past is computed.
    upto: only the first so many layers, 1 .. n_layers; what is said of the last layer then holds for the last of these.
    Raises what `refuse_unsupported` raises: every run begins here, and one that would be wrong does not begin.
    """
    family.refuse_unsupported()
    cfg = family.cfg
    lengths = [len(s) for s in sequences]
    offsets = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    R, L, device = offsets[-1], cfg.n_layers if upto is None else upto, family.device
    after = [(0, 0 if past is None else len(past))] * len(lengths) if after is None else after
    read = torch.empty(0, dtype=torch.long) if read is None else read
    read = read.to(device)
    tokens = torch.cat([s.to(device) for s in sequences])
    positions = torch.cat([torch.arange(hi - lo, hi - lo + n) for (lo, hi), n in zip(after, lengths, strict=True)])
    cos, sin = family.rotary(positions.to(device))
    n_kept = R if keep is None else len(keep)
    own = torch.empty(2, L, R, cfg.n_key_value_heads, cfg.d_head, dtype=family.dtype, device=device)
    kept = {
        s: torch.empty(L, n_kept, *site_shape(family, s), dtype=site_dtype(family, s), device=device)
        for s in dict.fromkeys(sites)
    }
    wanted = {} if keep is None else _of_blocks(keep, R, device)
    attend = _Attention(family, lengths, offsets, past, after)

    def store(site: str, l: int, a: int, b: int, value: Tensor) -> None:
        if site not in kept:
            return
        if keep is None:
            kept[site][l, a:b] = value
        else:
            to, rows = wanted[a]
            kept[site][l, to] = value[rows]

    x = family.embed(tokens)
    for l in range(L):
        last = l == L - 1 and not kept
        k_own, v_own = own[0, l], own[1, l]
        q_all = None if last else torch.empty(R, cfg.n_heads, cfg.d_head, dtype=family.dtype, device=device)
        for a, b in blocks(R):
            store("resid_pre", l, a, b, x[a:b])
            q, k, v = family.qkv(l, x[a:b])
            store("q", l, a, b, q), store("k", l, a, b, k), store("v", l, a, b, v)
            ops.rope(k, cos[a:b], sin[a:b])
            k_own[a:b], v_own[a:b] = k, v
            if q_all is not None:
                ops.rope(q, cos[a:b], sin[a:b])
                q_all[a:b] = q
        if last:  # only the rows that are read go on
            work.count(family, work.LayerRows(R + len(read), len(read), len(read)))
            if len(read) == 0:
                return Packed(offsets, own[0], own[1], kept, x[:0])
            x = x[read]
            q = family.qkv(l, x)[0]
            ops.rope(q, cos[read], sin[read])
            z = attend.rows(l, q, k_own, v_own, read)
            z = z if edit_z is None else edit_z(l, z, read)
            x = x + family.attn_out(l, z)
            return Packed(offsets, own[0], own[1], kept, x + family.mlp_out(l, x))
        z = attend.all(l, q_all, k_own, v_own)
        z = z if edit_z is None else edit_z(l, z, None)
        for a, b in blocks(R):
            store("z", l, a, b, z[a:b])
            out = family.attn_out(l, z[a:b])
            store("attn_out", l, a, b, out)
            x[a:b] += out
            store("resid_mid", l, a, b, x[a:b])
            out = family.mlp_out(l, x[a:b])
            store("mlp_out", l, a, b, out)
            x[a:b] += out
            store("resid_post", l, a, b, x[a:b])
        work.count(family, work.LayerRows.whole(R))
    return Packed(offsets, own[0], own[1], kept, x[read])


class _Attention:
    """Causal attention of the packed rows: over their own sequence, and over the shared past if there is one."""

    def __init__(
        self,
        family: LlamaFamily,
        lengths: list[int],
        offsets: list[int],
        past: KeyValues | None,
        after: Sequence[tuple[int, int]],
    ) -> None:
        self.family, self.lengths, self.offsets, self.past = family, lengths, offsets, past
        own = torch.repeat_interleave(torch.tensor(offsets[:-1]), torch.tensor(lengths))
        shared = torch.repeat_interleave(torch.tensor(after), torch.tensor(lengths), dim=0)
        within = torch.arange(offsets[-1]) - own
        self.table = family.row_table(own, within, shared[:, 0], shared[:, 1] - shared[:, 0])

    def all(self, l: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.past is not None or _ours_is_fused(q) or not self.family.plain_attention:
            past_k, past_v = self._past(l, k, v)
            return self.family.attend(l, q, past_k, past_v, k, v, self.table)
        if len(set(self.lengths)) == 1:
            return _causal(q, k, v, len(self.lengths), self.family.scale)
        parts = zip(self.offsets[:-1], self.offsets[1:], strict=True)
        return torch.cat([_causal(q[a:b], k[a:b], v[a:b], 1, self.family.scale) for a, b in parts])

    def rows(self, l: int, q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
        past_k, past_v = self._past(l, k, v)
        return self.family.attend(l, q, past_k, past_v, k, v, self.table[rows].contiguous())

    def _past(self, l: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return (k[:0], v[:0]) if self.past is None else (self.past.k[l], self.past.v[l])


def _ours_is_fused(q: Tensor) -> bool:
    """Whether `ops.prefix_attn` runs q on the C++ kernel, which beats PyTorch's fused attention on CPU."""
    return q.device.type == "cpu" and q.dtype != torch.float64 and ops.cpp_missing is None


def _causal(q: Tensor, k: Tensor, v: Tensor, batch: int, scale: float) -> Tensor:
    """Causal attention of `batch` sequences of equal length, packed: q [B*T, H, D] -> z [B*T, H, D]."""
    q4, k4, v4 = (t.unflatten(0, (batch, -1)).transpose(1, 2) for t in (q, k, v))
    z = F.scaled_dot_product_attention(q4, k4, v4, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return z.transpose(1, 2).reshape(q.shape)


def _of_blocks(rows: Tensor, n: int, device: torch.device) -> dict[int, tuple[slice, Tensor]]:
    """For the block of rows that begins at a: where its rows among these are kept, and which of the block they are."""
    out = {}
    for a, b in blocks(n):
        i, j = torch.searchsorted(rows, torch.tensor([a, b])).tolist()
        out[a] = slice(i, j), (rows[i:j] - a).to(device)
    return out


def blocks(n: int, size: int = ROW_BLOCK) -> Iterator[tuple[int, int]]:
    return ((a, min(a + size, n)) for a in range(0, n, size))


@dataclass(frozen=True)
class Activations(Mapping):
    """What `Model.run` kept. acts[site] is [L, T, ...] for one sequence, [B, L, T, ...] for a batch.

    resid_pre, resid_mid, resid_post [.., T, d] in the residual stream's float32; attn_out, mlp_out [.., T, d], q, z
    [.., T, H, D] and k, v [.., T, Hkv, D] in the model's dtype. q and k are before the rotary embedding, z before W_O.
    A TransformerLens hook name gives one layer: acts["blocks.3.attn.hook_z"] is acts["z"][3].
    """

    logits: Tensor
    """[T, V] (or [B, T, V]) float32, at `positions` if they were chosen."""
    tokens: Tensor
    """[T] or [B, T]."""
    _sites: dict[str, Tensor] = field(repr=False)

    def __getitem__(self, site: str) -> Tensor:
        name, layer = parse_site(site)
        if name not in self._sites:
            raise KeyError(f"{site!r} was not captured; run with capture=({name!r}, ...)")
        value = self._sites[name]
        return value if layer is None else value.select(self.tokens.ndim - 1, layer)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)


def run(family: LlamaFamily, tokens: Tensor, capture: Sequence[str], positions: Sequence[int] | None) -> Activations:
    """`Model.run` on checked input: tokens [B, T]; positions already counted from the front."""
    B, T = tokens.shape
    sites = [parse_site(name, argument="capture")[0] for name in capture]
    where = torch.arange(T) if positions is None else torch.tensor(positions, dtype=torch.long)
    read = (torch.arange(B)[:, None] * T + where).flatten()
    packed = forward_packed(family, list(tokens), sites=sites, read=read)
    with torch.no_grad():
        logits = family.logits(packed.resid_final).unflatten(0, (B, -1))
    kept = {s: t.unflatten(1, (B, T)).movedim(1, 0) for s, t in packed.sites.items()}
    return Activations(logits, tokens, kept)
