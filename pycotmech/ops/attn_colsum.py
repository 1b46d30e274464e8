"""Attention received: for each key, the sum of its weights over the query rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._registry import define


def reference(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor | None,
    starts: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    p = common.weights(q, k, lse, common.positions(q, k), starts, scale, window, softcap)  # [B, H, T, S]
    return (p if weights is None else p * weights[..., None]).sum(2)


def fake(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor | None,
    starts: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    return lse.new_empty((*q.shape[:2], k.shape[2]))


_op = define(
    "attn_colsum(Tensor q, Tensor k, Tensor lse, Tensor? weights, Tensor? starts, float scale, int window, "
    "float softcap) -> Tensor",
    reference,
    fake,
    kernel="colsum:attn_colsum",
)
common.refuse_backward("attn_colsum")


def attn_colsum(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    weights: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """Sum over the query rows i of weights[i] p[i, j]: [B, H, S] in the dtype of lse.

    q, k, starts, scale, window, softcap: as for `attn_extract`, whose lse [B, H, T] is taken.
    weights: one per query row, [B or 1, H or 1, T] in the dtype of lse; None: 1. A mask of rows is weights of 0 and 1.

    Raises TypeError and ValueError that name the argument.
    Cost: the scores once more (half of the attention's products); memory O(S D) besides the result. The order of the
    additions is fixed, so that the sums do not depend on the number of threads.
    """
    scale = common.check_attention(q, {"k": k}, starts, scale, window, softcap)
    common.check_lse(lse, q)
    if weights is not None:
        if weights.dtype != lse.dtype or weights.device != q.device:
            raise TypeError(f"weights must be {lse.dtype} on {q.device}, got {weights.dtype} on {weights.device}")
        B, H, T, _ = q.shape
        if list(weights.shape) not in ([b, h, T] for b in (1, B) for h in (1, H)):
            raise ValueError(f"weights must be [{B} or 1, {H} or 1, {T}], got {list(weights.shape)}")
    run = reference if q.dtype == torch.float64 else _op
    starts = None if starts is None else starts.contiguous()
    return run(q, k, lse, weights, starts, scale, window, softcap)
