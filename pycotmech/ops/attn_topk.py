"""The heaviest keys of each query row, with the normaliser known from an earlier pass."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._registry import define

MAX_TOPK = 64


def reference(
    q: Tensor, k: Tensor, lse: Tensor, topk: int, starts: Tensor | None, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    seen = common.visible(common.positions(q, k), k.shape[2], starts, window)
    return common.best(common.scores(q, k, scale, softcap), lse, seen, topk)


def fake(
    q: Tensor, k: Tensor, lse: Tensor, topk: int, starts: Tensor | None, scale: float, window: int, softcap: float
) -> tuple[Tensor, Tensor]:
    shape = (*q.shape[:3], topk)
    return lse.new_empty(shape), q.new_empty(shape, dtype=torch.int32)


_op = define(
    "attn_topk(Tensor q, Tensor k, Tensor lse, int topk, Tensor? starts, float scale, int window, float softcap) -> "
    "(Tensor topk_p, Tensor topk_i)",
    reference,
    fake,
    kernel="topk:attn_topk",
)
common.refuse_backward("attn_topk")


def attn_topk(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    topk: int,
    starts: Tensor | None = None,
    scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The `topk` heaviest keys of every query row: (weights, keys), descending, ties to the lowest key.

    q, k, starts, scale, window, softcap: as for `attn_extract`, whose lse [B, H, T] is taken.
    topk: K, 1 to 64; more than S is allowed.

    Returns weights [B, H, T, K] in the dtype of lse and keys int32 [B, H, T, K]; unused slots 0 and -1.
    Raises TypeError and ValueError that name the argument.
    Cost: the scores once more (half of the attention's products); memory O(S D) besides the results.
    """
    scale = common.check_attention(q, {"k": k}, starts, scale, window, softcap)
    common.check_lse(lse, q)
    if not 1 <= topk <= MAX_TOPK:
        raise ValueError(f"topk must be 1 to {MAX_TOPK}, got {topk}")
    run = reference if q.dtype == torch.float64 else _op
    starts = None if starts is None else starts.contiguous()
    return run(q, k, lse, topk, starts, scale, window, softcap)
