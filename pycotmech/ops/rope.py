"""Rotary position embedding, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._arguments import check_angles, check_dense, check_float
from pycotmech.ops._registry import define


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
    check_float("x", x)
    if x.ndim != 3:
        raise ValueError(f"x must be [R, H, D], got {list(x.shape)}")
    check_dense("x", x)
    check_angles(cos, sin, "x", x)
    if x.dtype == torch.float64:
        reference(x, cos, sin)
    else:
        _op(x, cos.float(), sin.float())
