"""Add to the residual stream and normalise it, in one pass over the rows."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._registry import define


def reference(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    if delta is not None:
        x.add_(delta)
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * scale * weight.to(wide.dtype)).to(weight.dtype)


def fake(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    return torch.empty(x.shape, dtype=weight.dtype, device=x.device)


_op = define(
    "add_rms_norm(Tensor(a!) x, Tensor? delta, Tensor weight, float eps) -> Tensor",
    reference,
    fake,
    kernel="rows:add_rms_norm",
)


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += delta in place (if given), then RMSNorm(x) * weight (Zhang & Sennrich 2019), rounded once.

    x: [R, d] residual rows, float32 (float64 in exact runs), contiguous; changed in place.
    delta: [R, d] of any floating dtype, or None.
    weight: [d]; the result has its dtype, [R, d].
    Cost: one read of x and delta, one write of x and of the result. The square mean is taken in float32 (float64 if x is).

    Raises TypeError and ValueError that name the argument.
    """
    if weight.ndim != 1 or x.ndim != 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(f"x must be [R, d] and weight [d], got {list(x.shape)} and {list(weight.shape)}")
    if delta is not None and delta.shape != x.shape:
        raise ValueError(f"delta must have the shape of x, {list(x.shape)}, got {list(delta.shape)}")
    for name, t in (("x", x), ("delta", delta), ("weight", weight)):
        if t is not None and not t.dtype.is_floating_point:
            raise TypeError(f"{name} must be of a floating dtype, got {t.dtype}")
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}")
    fused = x.dtype == torch.float32 and weight.dtype in _FLOATS and (delta is None or delta.dtype in _FLOATS)
    dense = all(t is None or t.stride(-1) == 1 or t.shape[-1] == 1 for t in (x, delta, weight))
    return (_op if fused and dense else reference)(x, delta, weight, eps)
