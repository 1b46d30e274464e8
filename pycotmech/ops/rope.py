"""Rotary position embedding, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._registry import define

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def reference(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    half = cos.shape[-1] // 2
    a, b = x[..., :half].to(wide), x[..., half : 2 * half].to(wide)
    cos, sin = cos.to(wide)[:, None], sin.to(wide)[:, None]
    # Both halves before the first is written: a and b are x itself where it is wide already.
    left, right = a * cos[..., :half] - b * sin[..., :half], b * cos[..., half:] + a * sin[..., half:]
    x[..., :half], x[..., half : 2 * half] = left, right


def fake(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    return None


_op = define("rope(Tensor(a!) x, Tensor cos, Tensor sin) -> ()", reference, fake, kernel="rows:rope")


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotates the rows of x in place by the angles whose cosines and sines are given (Su et al. 2021, Llama's halves).

    x: [R, H, D], any floating dtype, last dim contiguous, else any strides (a part of a fused projection). Feature
        i < D_rot / 2 turns with feature i + D_rot / 2; features from D_rot on stay.
    cos, sin: [R, D_rot], D_rot even and at most D; float32 (float64 in exact runs).
    Arithmetic in float32 (float64 if x is), rounded once. Cost: one read and one write of x.

    Raises TypeError and ValueError that name the argument.
    """
    if x.dtype not in FLOATS:
        raise TypeError(f"x must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.ndim != 3:
        raise ValueError(f"x must be [R, H, D], got {list(x.shape)}")
    if x.numel() and x.stride(-1) != 1:
        raise ValueError(f"x must be contiguous in its last dim (stride 1), got stride {x.stride(-1)}")
    for name, t in (("cos", cos), ("sin", sin)):
        if t.ndim != 2 or t.shape[0] != x.shape[0] or t.shape[1] > x.shape[2] or t.shape[1] % 2:
            want = f"[{x.shape[0]}, D_rot] with D_rot even and at most {x.shape[2]}"
            raise ValueError(f"{name} must be {want}, got {list(t.shape)}")
        if t.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name} must be float32 (or float64), got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}")
    if cos.shape != sin.shape:
        raise ValueError(f"sin must have the shape of cos, {list(cos.shape)}, got {list(sin.shape)}")
    if x.dtype == torch.float64:
        reference(x, cos, sin)
    else:
        _op(x, cos.float(), sin.float())
