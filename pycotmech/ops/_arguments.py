"""Checks of arguments that several ops have alike."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_float(name: str, x: Tensor) -> None:
    """Raises TypeError unless the ops compute in the dtype of x."""
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {x.dtype}")


def check_like(name: str, x: Tensor, first: str, like: Tensor) -> None:
    """Raises TypeError unless x is of the dtype and on the device of the argument `first`."""
    if x.dtype != like.dtype or x.device != like.device:
        raise TypeError(f"{name} must be {like.dtype} on {like.device} like {first}, got {x.dtype} on {x.device}")


def check_dense(name: str, x: Tensor) -> None:
    """Raises ValueError unless the values of a row of x follow one another."""
    if x.numel() and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} must be contiguous in its last dim (stride 1), got stride {x.stride(-1)}")


def check_angles(cos: Tensor, sin: Tensor, name: str, x: Tensor) -> None:
    """Raises TypeError and ValueError unless cos and sin [R, D_rot] are angles of the rows of x [R, heads, D], called
    `name`."""
    for which, t in (("cos", cos), ("sin", sin)):
        if t.ndim != 2 or len(t) != len(x) or t.shape[1] > x.shape[2] or t.shape[1] % 2:
            want = f"[{len(x)}, D_rot] with D_rot even and at most {x.shape[2]}"
            raise ValueError(f"{which} must be {want}, got {list(t.shape)}")
        if t.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{which} must be float32 (or float64), got {t.dtype}")
        if t.device != x.device:
            raise ValueError(f"{which} is on {t.device}, {name} on {x.device}")
    if cos.shape != sin.shape:
        raise ValueError(f"sin must have the shape of cos, {list(cos.shape)}, got {list(sin.shape)}")


def check_scores(scale: float | None, window: int, softcap: float, D: int) -> float:
    """The scale of scores of heads of size D, D**-0.5 by default. Raises ValueError for it, the window or the soft-cap."""
    if window < 0:
        raise ValueError(f"window must be 0 (none) or a number of keys, got {window}")
    if not 0 <= softcap < float("inf"):
        raise ValueError(f"softcap must be 0 (none) or positive, got {softcap}")
    scale = float(D**-0.5) if scale is None else float(scale)
    if not abs(scale) < float("inf"):
        raise ValueError(f"scale must be finite, got {scale}")
    return scale
