"""The gated activation of Llama's MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._registry import define

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def reference(gate: Tensor, up: Tensor) -> Tensor:
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (torch.nn.functional.silu(gate.to(wide)) * up.to(wide)).to(gate.dtype)


def fake(gate: Tensor, up: Tensor) -> Tensor:
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


_op = define("swiglu(Tensor gate, Tensor up) -> Tensor", reference, fake, kernel="rows:swiglu")


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020), in float32 (float64 if they are), rounded once: [R, d] contiguous, dtype of gate.

    gate, up: [R, d], same dtype, last dim contiguous; rows may be strided (the halves of one fused product).
    Cost: one read of both, one write of the result.

    Raises TypeError and ValueError that name the argument.
    """
    if gate.dtype not in FLOATS:
        raise TypeError(f"gate must be float32, bfloat16, float16 or float64, got {gate.dtype}")
    if up.dtype != gate.dtype or up.device != gate.device:
        raise TypeError(f"up must be {gate.dtype} on {gate.device} like gate, got {up.dtype} on {up.device}")
    if gate.ndim != 2 or up.shape != gate.shape:
        raise ValueError(f"gate and up must be [R, d] of one shape, got {list(gate.shape)} and {list(up.shape)}")
    for name, t in (("gate", gate), ("up", up)):
        if t.numel() and t.shape[1] > 1 and t.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dim (stride 1), got stride {t.stride(-1)}")
    return reference(gate, up) if gate.dtype == torch.float64 else _op(gate, up)
