"""Chosen rows of the attention pattern, in full."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._registry import define


def reference(
    q: Tensor, k: Tensor, lse: Tensor, rows: Tensor, starts: Tensor | None, scale: float, window: int, softcap: float
) -> Tensor:
    at = common.positions(q, k)[rows]
    return common.weights(q[:, :, rows], k, lse[:, :, rows], at, starts, scale, window, softcap)


def fake(
    q: Tensor, k: Tensor, lse: Tensor, rows: Tensor, starts: Tensor | None, scale: float, window: int, softcap: float
) -> Tensor:
    return lse.new_empty((*q.shape[:2], rows.shape[0], k.shape[2]))


_op = define(
    "attn_rows(Tensor q, Tensor k, Tensor lse, Tensor rows, Tensor? starts, float scale, int window, float softcap) -> Tensor",
    reference,
    fake,
    kernel="rows_entries:attn_rows",
)
common.refuse_backward("attn_rows")


def attn_rows(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    rows: Tensor,
    *,
    starts: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> Tensor:
    """The attention weights of R query rows over all keys: [B, H, R, S] in the dtype of lse, 0 where invisible.

    q, k, starts, scale, window, softcap: as for `attn_extract`, whose lse [B, H, T] is taken.
    rows: int64 [R], rows of q (0 to T - 1), in any order, repeats allowed; R may be 0.

    Raises TypeError and ValueError that name the argument.
    Cost: R * S * D products for each head; memory: the result.
    """
    scale = common.check_attention(q, {"k": k}, starts, scale, window, softcap)
    common.check_lse(lse, q)
    common.check_indices("rows", rows, q)
    common.check_range("rows", rows, 0, q.shape[2] - 1, "rows of q")
    run = reference if q.dtype == torch.float64 else _op
    starts = None if starts is None else starts.contiguous()
    return run(q, k, lse, rows.contiguous(), starts, scale, window, softcap)
