"""x W^T + b with the faster of PyTorch's two CPU libraries."""

from __future__ import annotations

import platform

import torch
from torch import Tensor
from torch.nn import Parameter

# In float32 torch.nn.functional.linear calls MKL, which leaves AVX-512 unused on AMD processors: there oneDNN is faster from
# this many rows on, twice as fast from 64 on, and slower below (figures: docs/decisions.md). On Intel's they are equal.
_LEAST_ROWS = 4
_X86 = platform.machine().lower() in ("x86_64", "amd64")


def _onednn():
    """oneDNN's product with the weight as it lies in memory (nothing is packed or cached); None where it is not built."""
    if not (_X86 and torch.backends.mkldnn.is_available()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_product = _onednn()


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.dtype != torch.float32 or x.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    if weight.dtype != torch.float32 or x.numel() < _LEAST_ROWS * max(x.shape[-1], 1) or torch.compiler.is_compiling():
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    if not all(type(t) in (Tensor, Parameter) for t in tensors):  # a subclass (fake, quantised) has its own linear
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., d_in] @ weight[d_out, d_in].T + bias [d_out] -> [..., d_out], as torch.nn.functional.linear.

    float32 on x86 CPUs from 4 rows on goes through oneDNN: the same sums in another order. Everything else, and whatever
    needs a gradient, is torch.nn.functional.linear itself. The weight is never copied.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must be [..., {weight.shape[-1]}] (d_in of weight {list(weight.shape)}), got {list(x.shape)}")
    if _product is not None and _suits_onednn(x, weight, bias):
        return _product(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)
