"""Attention written out in float64 on the device, for chosen heads, a block of rows at a time. Uses no op of pycotmech."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SCORES = 2**25
"""Scores that exist at once: 256 MiB."""


def attention(
    q: Tensor, k: Tensor, v: Tensor, heads: Sequence[int], *, scale: float | None = None, window: int = 0, softcap: float = 0.0,
    segments: Tensor | None = None, n_segments: int = 0, readout: Tensor | None = None, topk: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Causal attention of q [1, H, T, D] over k, v [1, Hkv, S, D], the queries at the last T positions.

    Returns, in float64 and of these heads: z [n, T, D], lse, pmax, entropy [n, T], received [n, S], and mass [n, T, G], read
    [n, T, C], topk_p [n, T, K] where they are asked for. segments [S]; readout [S, C].
    """
    _, H, T, D = q.shape
    S, group, scale = k.shape[2], H // k.shape[1], D**-0.5 if scale is None else scale
    at, keys = torch.arange(S - T, S, device=q.device), torch.arange(S, device=q.device)
    found: dict[str, list[Tensor]] = {}
    received = torch.zeros(len(heads), S, dtype=torch.float64, device=q.device)
    for n, h in enumerate(heads):
        kd, vd = k[0, h // group].double(), v[0, h // group].double()
        for rows in torch.arange(T, device=q.device).split(max(1, _SCORES // S)):
            s = q[0, h, rows].double() @ kd.T * scale
            s = softcap * torch.tanh(s / softcap) if softcap else s
            seen = keys <= at[rows, None]
            seen = seen & (at[rows, None] - keys < window) if window else seen
            s = s.masked_fill(~seen, -torch.inf)  # [rows, S]
            lse = s.logsumexp(-1)
            p = (s - lse[:, None]).exp()
            received[n] += p.sum(0)
            out = {"z": p @ vd, "lse": lse, "pmax": p.amax(-1), "entropy": -torch.special.xlogy(p, p).sum(-1)}
            if segments is not None:
                member = (segments[:, None] == torch.arange(n_segments, device=q.device)).double()
                out["mass"] = p @ member
            if readout is not None:
                out["read"] = p @ readout.double()
            if topk:
                out["topk_p"] = p.topk(min(topk, S)).values
            for name, value in out.items():
                found.setdefault(name, []).append(value)
    joined = {name: torch.cat(parts).unflatten(0, (len(heads), T)) for name, parts in found.items()}
    return {**joined, "received": received}


def packed(q: Tensor, ks: Tensor, vs: Tensor, ko: Tensor, vo: Tensor, rows: Tensor, which: Sequence[int]) -> Tensor:
    """z [n, H, D] of chosen packed rows, as `ops.prefix_attn` defines them."""
    group, D = q.shape[1] // ko.shape[1], q.shape[2]
    out = []
    for r in which:
        own_lo, own_hi, lo, hi = rows[r].tolist()
        k = torch.cat((ks[lo:hi], ko[own_lo:own_hi])).double().repeat_interleave(group, 1)  # [S, H, D]
        v = torch.cat((vs[lo:hi], vo[own_lo:own_hi])).double().repeat_interleave(group, 1)
        p = (torch.einsum("hd,shd->hs", q[r].double(), k) * D**-0.5).softmax(-1)
        out.append(torch.einsum("hs,shd->hd", p, v))
    return torch.stack(out)
