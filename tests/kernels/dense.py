"""The truth: every op written out in float64 with the whole matrix of weights, one head and one row at a time where
that is plainer. Independent of the references in pycotmech/ops, so that a kernel and its op cannot be wrong in the
same way."""

from __future__ import annotations

import torch
from torch import Tensor


def pattern(q, k, *, starts, scale, window, softcap, sinks=None) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, scores, lse), float64: [B, H, T, S], the same with -inf where invisible, [B, H, T]."""
    B, H, T, _ = q.shape
    S, group = k.shape[2], H // k.shape[1]
    scores = torch.full((B, H, T, S), -torch.inf, dtype=torch.float64)
    for b in range(B):
        for i in range(T):
            at = i + S - T
            low = max(0 if starts is None else int(starts[b]), at - window + 1 if window else 0)
            for h in range(H):
                s = k[b, h // group, low : at + 1].double() @ q[b, h, i].double() * scale
                scores[b, h, i, low : at + 1] = softcap * torch.tanh(s / softcap) if softcap else s
    lse = scores.logsumexp(-1)
    if sinks is not None:
        sink = sinks.double()[None, :, None, None].expand(B, H, T, 1)
        lse = torch.cat((scores, sink), -1).logsumexp(-1)
    weights = torch.where(scores.isfinite(), (scores - lse[..., None]).exp(), 0.0)
    return weights, scores, lse


def extract(
    q, k, v, segments, n_segments, readout, starts, scale, entropy, topk, window, softcap, sinks=None
) -> dict[str, Tensor]:
    """Everything attn_extract returns by name, and the weights and scores it never holds."""
    B, H = q.shape[:2]
    S, group = k.shape[2], H // k.shape[1]
    p, scores, lse = pattern(q, k, starts=starts, scale=scale, window=window, softcap=softcap, sinks=sinks)
    out = {"weights": p, "scores": scores, "lse": lse, "pmax": p.amax(-1)}
    out["z"] = torch.stack([p[:, h] @ v[:, h // group].double() for h in range(H)], 1)
    if entropy:
        out["entropy"] = -torch.special.xlogy(p, p).sum(-1)
    if segments is not None:
        labels = segments.expand(B, S)
        masses = [(p * (labels == g)[:, None, None, :]).sum(-1) for g in range(n_segments)]
        out["mass"] = torch.stack(masses, -1)
    if readout is not None:
        out["read"] = p @ readout.double().expand(B, H, S, readout.shape[-1])
    if topk:
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :topk]
        order = torch.nn.functional.pad(order, (0, topk - order.shape[-1]))
        used = torch.arange(topk) < scores.isfinite().sum(-1, keepdim=True)
        out["topk_p"] = torch.where(used, p.gather(-1, order), 0.0)
        out["topk_i"] = torch.where(used, order, -1)
    return out


def prefix(q, k_shared, v_shared, k_own, v_own, rows, scale, window, softcap, cuts, sinks=None) -> tuple[Tensor, Tensor]:
    R, H, D = q.shape
    group = H // k_own.shape[1]
    z = torch.zeros(R, H, D, dtype=torch.float64)
    lse = torch.full((R, H), -torch.inf, dtype=torch.float64)
    for r, (own_lo, own_hi, lo, hi) in enumerate(rows.tolist()):
        k = torch.cat([k_shared[lo:hi], k_own[own_lo:own_hi]]).double()
        v = torch.cat([v_shared[lo:hi], v_own[own_lo:own_hi]]).double()
        for h in range(H):
            keep = torch.ones(len(k), dtype=torch.bool)
            if window:
                keep[: max(0, len(k) - window)] = False
            for row, head, first, last in [] if cuts is None else cuts.tolist():
                if row == r and head in (-1, h):
                    keep[first:last] = False
            if sinks is not None:
                lse[r, h] = sinks[h].double()
            if keep.any():
                s = k[keep, h // group] @ q[r, h].double() * scale
                s = softcap * torch.tanh(s / softcap) if softcap else s
                lse[r, h] = torch.logaddexp(lse[r, h], s.logsumexp(0))
                z[r, h] = (s - lse[r, h]).exp() @ v[keep, h // group]
    return z, lse
