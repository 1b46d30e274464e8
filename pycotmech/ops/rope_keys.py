"""Rotary position embedding of queries in place, and of keys on their way to where they are kept, as their values are."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops._arguments import check_angles, check_dense, check_float, check_like
from pycotmech.ops._registry import define
from pycotmech.ops.rope import rope


def reference(q: Tensor | None, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    if q is not None:
        rope(q, cos, sin)
    k_out.copy_(k)
    rope(k_out, cos, sin)
    v_out.copy_(v)


def fake(q: Tensor | None, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    return None


_op = define(
    "rope_keys(Tensor(a!)? q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor(b!) k_out, Tensor(c!) v_out) -> ()",
    reference,
    fake,
    kernel="rows:rope_keys",
)


def rope_keys(q: Tensor | None, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, k_out: Tensor, v_out: Tensor) -> None:
    """Rotates q in place, and writes rotated k to k_out and v to v_out, as `rope` and two copies do.

    q: [R, H, D], or None: only keys and values. k, v: [R, Hkv, D], left as they are. k_out, v_out: [R, Hkv, D], where they are
        kept, which share no memory with k and v. All of one floating dtype, last dim contiguous, else any strides.
    cos, sin: [R, D_rot], as in `rope`.
    On a GPU one launch in place of three, which reads and writes each key once and not twice.
    Cost: one read and one write of q, k and v.

    Raises TypeError and ValueError that name the argument.
    """
    check_float("k", k)
    for name, x in (("q", q), ("k", k), ("v", v), ("k_out", k_out), ("v_out", v_out)):
        if x is None:
            continue
        check_like(name, x, "k", k)
        if x.ndim != 3 or len(x) != len(k) or x.shape[2] != k.shape[2] or (name != "q" and x.shape != k.shape):
            raise ValueError(f"{name} must be [R, heads, D] as k, {list(k.shape)}, got {list(x.shape)}")
        check_dense(name, x)
    check_angles(cos, sin, "k", k)
    if k.dtype == torch.float64:
        reference(q, k, v, cos, sin, k_out, v_out)
    else:
        _op(q, k, v, cos.float(), sin.float(), k_out, v_out)
