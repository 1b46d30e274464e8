"""Chosen entries of the attention pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._registry import define


def reference(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    qi: Tensor,
    ki: Tensor,
    starts: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    dtype = common.wide(q.dtype)
    dots = (q[:, :, qi].to(dtype) * common.grouped(k[:, :, ki].to(dtype), q.shape[1])).sum(-1)  # [B, H, E]
    p = (common.capped(dots * scale, softcap) - lse[:, :, qi]).exp()
    at = common.positions(q, k)[qi]
    seen = ki <= at
    if window:
        seen = seen & (at - ki < window)
    seen = seen[None, None]
    if starts is not None:
        seen = seen & (ki >= starts[:, None, None])
    return torch.where(seen, p, 0.0)


def fake(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    qi: Tensor,
    ki: Tensor,
    starts: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    return lse.new_empty((*q.shape[:2], qi.shape[0]))


_op = define(
    "attn_entries(Tensor q, Tensor k, Tensor lse, Tensor qi, Tensor ki, Tensor? starts, float scale, int window, "
    "float softcap) -> Tensor",
    reference,
    fake,
    kernel="rows_entries:attn_entries",
)
common.refuse_backward("attn_entries")


def attn_entries(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    qi: Tensor,
    ki: Tensor,
    *,
    starts: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """The attention weights of E pairs (query row qi[e], key ki[e]): [B, H, E] in the dtype of lse, 0 where invisible.

    q, k, starts, scale, window, softcap: as for `attn_extract`, whose lse [B, H, T] is taken.
    qi, ki: int64 [E], rows of q (0 to T - 1) and keys (0 to S - 1); E may be 0.

    Raises TypeError and ValueError that name the argument.
    Cost: E * D products for each head.
    """
    scale = common.check_attention(q, {"k": k}, starts, scale, window, softcap)
    common.check_lse(lse, q)
    common.check_indices("qi", qi, q)
    common.check_integers("ki", ki, torch.int64, (tuple(qi.shape),), q)
    common.check_range("qi", qi, 0, q.shape[2] - 1, "rows of q")
    common.check_range("ki", ki, 0, k.shape[2] - 1, "keys")
    run = reference if q.dtype == torch.float64 else _op
    starts = None if starts is None else starts.contiguous()
    return run(q, k, lse, qi.contiguous(), ki.contiguous(), starts, scale, window, softcap)
