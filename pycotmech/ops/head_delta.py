"""What a change of one head's output adds to the residual stream: dz W_O[h], row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops.linear import matmul


def reference(dz: Tensor, heads: Tensor, w_o: Tensor) -> Tensor:
    """One product of all of W_O with rows that are zero outside their head."""
    R, D = dz.shape
    rows = torch.zeros(R, w_o.shape[1] // D, D, dtype=dz.dtype, device=dz.device)
    rows[torch.arange(R, device=dz.device), heads] = dz
    return torch.nn.functional.linear(rows.view(R, w_o.shape[1]), w_o)


def _by_head(dz: Tensor, heads: Tensor, w_o: Tensor) -> Tensor:
    """One product for each head that occurs, on its columns of W_O as they lie."""
    D = dz.shape[1]
    order = torch.argsort(heads, stable=True)
    sorted_dz, out = dz[order], torch.empty(len(dz), w_o.shape[0], dtype=dz.dtype, device=dz.device)
    start = 0
    for h, n in enumerate(torch.bincount(heads).tolist()):
        if n:
            out[start : start + n] = matmul(sorted_dz[start : start + n], w_o[:, h * D : (h + 1) * D].T)
        start += n
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return out[back]


def head_delta(dz: Tensor, heads: Tensor, w_o: Tensor) -> Tensor:
    """dz [R, D] of heads [R] -> dz[r] @ w_o[:, heads[r] * D : (heads[r] + 1) * D].T, [R, d], in the dtype of w_o.

    dz: changes of a head's output before W_O, in the dtype of w_o.
    heads: int64 [R], the head of each row, in any order.
    w_o: [d, H * D], the output projection's weight; never copied.

    Raises TypeError and ValueError that name the argument.
    Cost: on CPU R D d products, one call for each head that occurs. Elsewhere H times as many in a single call, which does
    not ask the device how many rows each head has.
    """
    if dz.ndim != 2 or w_o.ndim != 2 or dz.shape[1] == 0 or w_o.shape[1] % dz.shape[1]:
        raise ValueError(f"dz must be [R, D] and w_o [d, H * D], got {list(dz.shape)} and {list(w_o.shape)}")
    if dz.dtype != w_o.dtype or not w_o.is_floating_point():
        raise TypeError(f"dz must be of w_o's dtype {w_o.dtype} (a floating one), got {dz.dtype}")
    if heads.shape != dz.shape[:1] or heads.dtype != torch.int64:
        raise ValueError(f"heads must be int64 [{dz.shape[0]}] (R of dz), got {heads.dtype} {list(heads.shape)}")
    for name, x in (("heads", heads), ("w_o", w_o)):
        if x.device != dz.device:
            raise ValueError(f"{name} is on {x.device}, dz on {dz.device}")
    if dz.device.type != "cpu":
        return reference(dz, heads, w_o)
    H = w_o.shape[1] // dz.shape[1]
    if len(heads) and not 0 <= int(heads.min()) <= int(heads.max()) < H:
        raise ValueError(f"heads must be in 0..{H - 1}, got {int(heads.min())} to {int(heads.max())}")
    return _by_head(dz, heads, w_o)
