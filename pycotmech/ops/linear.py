"""x W^T + b with the faster of PyTorch's two CPU libraries, and in float32 where a processor has no bfloat16 products."""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import Tensor
from torch.nn import Parameter

# In float32 torch.nn.functional.linear calls MKL, which leaves AVX-512 unused on AMD processors: there oneDNN is faster from
# this many rows on, twice as fast from 64 on, and slower below (figures: docs/decisions.md). On Intel's they are equal.
_LEAST_ROWS = 4
_X86 = platform.machine().lower() in ("x86_64", "amd64")

_SLICE_BYTES = 2**22
"""Of a weight in float32 that exist at once: they stay in the processor's cache until they are used."""

_WITH_UNITS = ("avx512_bf16", "amx")


def _onednn():
    """oneDNN's product with the weight as it lies in memory (nothing is packed or cached); None where it is not built."""
    if not (_X86 and torch.backends.mkldnn.is_available()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_product = _onednn()


@cache
def widens_bfloat16() -> bool:
    """Whether products of bfloat16 on the CPU are computed in float32 here: the processor is an x86 without units for them
    (AVX2, or AVX-512 without bfloat16), or is held to such a set by PYCOTMECH_ISA."""
    if not _X86:
        return False
    try:
        from pycotmech import _core
    except ImportError:
        return torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return _core.isa() not in _WITH_UNITS


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if x.dtype != torch.float32 or x.device.type != "cpu" or not torch.backends.mkldnn.enabled:
        return False
    if weight.dtype != torch.float32 or x.numel() < _LEAST_ROWS * max(x.shape[-1], 1):
        return False
    return _is_plain(x, weight, bias)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether a product of these needs their values alone: no gradient, no compilation, no tensors that stand for others."""
    if torch.compiler.is_compiling():
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in (Tensor, Parameter):  # a subclass (fake, quantised) has its own linear
            return False
        if grad and tensor.requires_grad:
            return False
    return True


def _is_widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not widens_bfloat16() or x.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        return False
    return x.device.type == "cpu" and _is_plain(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., d_in] @ weight[d_out, d_in].T + bias [d_out] -> [..., d_out], as torch.nn.functional.linear.

    float32 on x86 CPUs from 4 rows on goes through oneDNN: the same sums in another order. bfloat16 on an x86 CPU without
    units for it is multiplied in float32, a slice of the weight widened at a time, and rounded once. Everything else, and
    whatever needs a gradient, is torch.nn.functional.linear itself. The weight is never copied as a whole.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"x must be [..., {weight.shape[-1]}] (d_in of weight {list(weight.shape)}), got {list(x.shape)}")
    if _is_widened(x, weight, bias):
        return _widened(x, weight, bias)
    if _product is not None and _suits_onednn(x, weight, bias):
        return _product(x, weight, bias, "none", [], "")
    return torch.nn.functional.linear(x, weight, bias)


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [R, d_in] @ weight [d_in, d_out] + bias [d_out], as torch.addmm, or as `linear` where that widens. Any strides."""
    if _is_widened(x, weight, bias):
        return _widened(x, weight.T, bias)
    return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)


def _widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """bfloat16 x [..., d_in], weight [d_out, d_in] -> the product in float32, rounded once."""
    rows, (d_out, d_in) = x.reshape(-1, x.shape[-1]).float(), weight.shape
    out = torch.empty(len(rows), d_out, dtype=x.dtype, device=x.device)
    step = max(64, _SLICE_BYTES // (4 * max(d_in, 1)))
    for a in range(0, d_out, step):
        part = linear(rows, weight[a : a + step].float())
        if bias is not None:
            part += bias[a : a + step]
        out[:, a : a + step] = part
    return out.view(*x.shape[:-1], d_out)
