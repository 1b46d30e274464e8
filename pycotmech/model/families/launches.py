"""Fewer launches on a GPU: products that share a buffer, and one kernel over what lies side by side.

With few rows a GPU is done with a kernel before the program has launched the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def products_in_one_buffer(x: Tensor, modules: Sequence[nn.Linear], *, only_joint: bool = False) -> list[Tensor] | None:
    """Projections of rows x [R, in] by modules with nothing attached, side by side in one buffer [R, all out]: a view [R, out]
    for each. None where a gradient or another dtype may be asked for, or a weight is more than a parameter.

    only_joint: None also where these are several products, because the weights do not follow one another in memory.
    """
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"):
        return None
    if any(type(m.weight) is not nn.Parameter or m.weight.dtype != x.dtype for m in modules):
        return None
    joint = joint_weights(modules)
    if only_joint and joint is None:
        return None
    widths = [len(m.weight) for m in modules]
    out = x.new_empty(len(x), sum(widths))
    parts = list(out.split(widths, 1))
    if joint is not None:
        weight, bias = joint
        torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)
        return parts
    for module, part in zip(modules, parts, strict=True):
        if module.bias is None:
            torch.mm(x, module.weight.T, out=part)
        else:
            torch.addmm(module.bias, x, module.weight.T, out=part)
    return parts


def joint_weights(modules: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None] | None:
    """The weights [all out, in] and biases [all out] of these projections as one tensor each, where they follow one another in
    memory (`model.fused`); otherwise None."""
    weight, bias = one_after_another([m.weight for m in modules]), None
    if weight is None:
        return None
    biases = [m.bias for m in modules if m.bias is not None]
    if biases:
        bias = one_after_another(biases) if len(biases) == len(modules) else None
        if bias is None:
            return None
    return weight, bias


def one_after_another(tensors: Sequence[Tensor]) -> Tensor | None:
    """Tensors [n, ...] that follow one another in memory as one tensor [sum of n, ...], a view; None if they do not."""
    first = tensors[0]
    at, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    for t in tensors:
        alike = t.dtype == first.dtype and t.shape[1:] == first.shape[1:] and t.is_contiguous()
        if not alike or t.storage_offset() != at or t.untyped_storage().data_ptr() != storage:
            return None
        at += t.numel()
    return first.as_strided((sum(map(len, tensors)), *first.shape[1:]), first.stride())


def side_by_side(heads: Sequence[Tensor]) -> list[Tensor]:
    """Tensors [R, heads, D], with those that follow one another in every row of one buffer taken together."""
    out: list[Tensor] = []
    for x in heads:
        if out and _continues(out[-1], x):
            out[-1] = out[-1].as_strided((len(x), out[-1].shape[1] + x.shape[1], x.shape[2]), x.stride())
        else:
            out.append(x)
    return out


def _continues(a: Tensor, b: Tensor) -> bool:
    """Whether in every row the heads of b lie right after those of a."""
    alike = len(a) == len(b) and a.shape[2] == b.shape[2] and a.stride() == b.stride() and a.dtype == b.dtype
    follow = b.storage_offset() - a.storage_offset() == a.shape[1] * a.stride(1) and b.shape[1] > 0
    return alike and follow and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
