"""The gated activation of Llama's MLP."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._arguments import check_dense, check_float, check_like
from pycotmech.ops._registry import define


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
    check_float("gate", gate)
    check_like("up", up, "gate", gate)
    if gate.ndim != 2 or up.shape != gate.shape:
        raise ValueError(f"gate and up must be [R, d] of one shape, got {list(gate.shape)} and {list(up.shape)}")
    check_dense("gate", gate)
    check_dense("up", up)
    return reference(gate, up) if gate.dtype == torch.float64 else _op(gate, up)
