"""Row-wise kernels on the GPU: add_rms_norm, rope, rope_keys, swiglu. Each reads and writes every element once."""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import launch

_WHOLE_ROW = 16384
"""Up to here a row stays in registers; a longer one is read a second time."""


@triton.jit(do_not_specialize=["eps"])
def add_rms_norm_kernel(
    X, DELTA, WEIGHT, OUT, d, eps, stride_x, stride_delta, WIDE: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr,
    ADD: tl.constexpr,
):  # fmt: skip
    """One row of X: add DELTA in X's dtype, then scale the row to root mean square 1 and by WEIGHT."""
    r = tl.program_id(0).to(tl.int64)
    X += r * stride_x
    DELTA += r * stride_delta
    OUT += r * d
    total = tl.zeros([BLOCK], WIDE)
    x = tl.zeros([BLOCK], WIDE)
    for start in range(0, d, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        x = tl.load(X + offs, mask=offs < d, other=0.0)
        if ADD:
            x = (x.to(WIDE) + tl.load(DELTA + offs, mask=offs < d, other=0.0).to(WIDE)).to(x.dtype)
            tl.store(X + offs, x, mask=offs < d)
        x = x.to(WIDE)
        total += x * x
    scale = 1.0 / tl.sqrt(tl.sum(total, 0) / d + eps)
    if ONE:
        offs = tl.arange(0, BLOCK)
        y = x * scale * tl.load(WEIGHT + offs, mask=offs < d, other=0.0).to(WIDE)
        tl.store(OUT + offs, y.to(OUT.dtype.element_ty), mask=offs < d)
    else:
        tl.debug_barrier()  # the row's sums, written above, are read back
        for start in range(0, d, BLOCK):
            offs = start + tl.arange(0, BLOCK)
            y = tl.load(X + offs, mask=offs < d, other=0.0).to(WIDE) * scale
            y = y * tl.load(WEIGHT + offs, mask=offs < d, other=0.0).to(WIDE)
            tl.store(OUT + offs, y.to(OUT.dtype.element_ty), mask=offs < d)


@triton.jit(do_not_specialize=["H"])
def rope_kernel(
    X, COS, SIN, H, stride_xr, stride_xh, stride_cr, stride_sr, HALF: tl.constexpr, HP: tl.constexpr,
    BLOCK_H: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads of one row, in place: (a, b) -> (a cos - b sin, b cos + a sin) over the two halves of D_rot."""
    r = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    i = tl.arange(0, HP)
    in_half = i < HALF
    mask = (h < H)[:, None] & in_half[None, :]
    p = X + r * stride_xr + h.to(tl.int64)[:, None] * stride_xh + i[None, :]
    a = tl.load(p, mask=mask, other=0.0).to(WIDE)
    b = tl.load(p + HALF, mask=mask, other=0.0).to(WIDE)
    cos_a = tl.load(COS + r * stride_cr + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    cos_b = tl.load(COS + r * stride_cr + HALF + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    sin_a = tl.load(SIN + r * stride_sr + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    sin_b = tl.load(SIN + r * stride_sr + HALF + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    tl.store(p, (a * cos_a - b * sin_a).to(X.dtype.element_ty), mask=mask)
    tl.store(p + HALF, (b * cos_b + a * sin_b).to(X.dtype.element_ty), mask=mask)


@triton.jit
def _turned(
    FROM, TO, COS, SIN, block, H, stride_fh, stride_th, HALF: tl.constexpr, HP: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BLOCK_H: tl.constexpr, REST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads of one row from FROM to TO, rotated. REST: with the features that are not rotated."""
    h = block * BLOCK_H + tl.arange(0, BLOCK_H)
    m_h = (h < H)[:, None]
    i = tl.arange(0, HP)
    in_half = i < HALF
    mask = m_h & in_half[None, :]
    p = FROM + h.to(tl.int64)[:, None] * stride_fh + i[None, :]
    a = tl.load(p, mask=mask, other=0.0).to(WIDE)
    b = tl.load(p + HALF, mask=mask, other=0.0).to(WIDE)
    cos_a = tl.load(COS + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    cos_b = tl.load(COS + HALF + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    sin_a = tl.load(SIN + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    sin_b = tl.load(SIN + HALF + i, mask=in_half, other=0.0).to(WIDE)[None, :]
    p_to = TO + h.to(tl.int64)[:, None] * stride_th + i[None, :]
    tl.store(p_to, (a * cos_a - b * sin_a).to(TO.dtype.element_ty), mask=mask)
    tl.store(p_to + HALF, (b * cos_b + a * sin_b).to(TO.dtype.element_ty), mask=mask)
    if REST:
        j = tl.arange(0, DP)
        m_rest = m_h & ((j >= 2 * HALF) & (j < D))[None, :]
        x = tl.load(FROM + h.to(tl.int64)[:, None] * stride_fh + j[None, :], mask=m_rest, other=0.0)
        tl.store(TO + h.to(tl.int64)[:, None] * stride_th + j[None, :], x, mask=m_rest)


@triton.jit(do_not_specialize=["H", "HKV"])
def rope_keys_kernel(
    Q, K, V, COS, SIN, K_OUT, V_OUT, H, HKV, stride_qr, stride_qh, stride_kr, stride_kh, stride_vr, stride_vh, stride_kor,
    stride_koh, stride_vor, stride_voh, stride_cr, stride_sr, HALF: tl.constexpr, HP: tl.constexpr, D: tl.constexpr,
    DP: tl.constexpr, BLOCK_H: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """BLOCK_H heads of one row: of the queries, in place; after these of the keys, and of the values."""
    r = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    n_q = tl.cdiv(H, BLOCK_H)
    n_k = tl.cdiv(HKV, BLOCK_H)
    COS += r * stride_cr
    SIN += r * stride_sr
    if block < n_q:
        Q += r * stride_qr
        _turned(Q, Q, COS, SIN, block, H, stride_qh, stride_qh, HALF, HP, D, DP, BLOCK_H, False, WIDE)
    elif block < n_q + n_k:
        _turned(
            K + r * stride_kr, K_OUT + r * stride_kor, COS, SIN, block - n_q, HKV, stride_kh, stride_koh,
            HALF, HP, D, DP, BLOCK_H, D > 2 * HALF, WIDE,
        )  # fmt: skip
    else:
        h = (block - n_q - n_k) * BLOCK_H + tl.arange(0, BLOCK_H)
        i = tl.arange(0, DP)
        mask = (h < HKV)[:, None] & (i < D)[None, :]
        v = tl.load(V + r * stride_vr + h.to(tl.int64)[:, None] * stride_vh + i[None, :], mask=mask, other=0.0)
        tl.store(V_OUT + r * stride_vor + h.to(tl.int64)[:, None] * stride_voh + i[None, :], v, mask=mask)


@triton.jit(do_not_specialize=["d"])
def swiglu_kernel(GATE, UP, OUT, d, stride_g, stride_u, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """BLOCK channels of one row: silu(gate) * up."""
    r = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(GATE + r * stride_g + offs, mask=offs < d, other=0.0).to(WIDE)
    u = tl.load(UP + r * stride_u + offs, mask=offs < d, other=0.0).to(WIDE)
    y = g / (1.0 + tl.exp(-g)) * u
    tl.store(OUT + r * d + offs, y.to(OUT.dtype.element_ty), mask=offs < d)


def _wide(*tensors):
    return tl.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else tl.float32


def add_rms_norm(x, delta, weight, eps):
    """The CUDA side of `pycotmech::add_rms_norm`; the op's public function has checked the arguments."""
    R, d = x.shape
    if x.stride(1) != 1:
        raise ValueError(f"x must be contiguous in its last dim, got strides {tuple(x.stride())}")
    delta = delta.contiguous() if delta is not None else None
    out = launch.empty((R, d), weight.dtype, x)
    if out.numel() == 0:
        return out
    block = min(triton.next_power_of_2(d), _WHOLE_ROW)
    one = d <= _WHOLE_ROW
    add_rms_norm_kernel[(R,)](
        x, x if delta is None else delta, weight.contiguous(), out, d, float(eps), x.stride(0), d,
        WIDE=_wide(x), BLOCK=block if one else 4096, ONE=one, ADD=delta is not None,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
    return out


def rope(x, cos, sin):
    """The CUDA side of `pycotmech::rope`; the op's public function has checked the arguments."""
    R, H, _ = x.shape
    half = cos.shape[-1] // 2
    if x.numel() == 0 or half == 0:
        return
    if x.stride(2) != 1:
        raise ValueError(f"x must be contiguous in its last dim, got strides {tuple(x.stride())}")
    cos, sin = (t if t.stride(1) == 1 else t.contiguous() for t in (cos, sin))
    hp = triton.next_power_of_2(half)
    block_h = min(triton.next_power_of_2(H), max(1, 1024 // hp))
    rope_kernel[(R, triton.cdiv(H, block_h))](
        x, cos, sin, H, x.stride(0), x.stride(1), cos.stride(0), sin.stride(0), HALF=half, HP=hp, BLOCK_H=block_h,
        WIDE=_wide(x), num_warps=4,
    )  # fmt: skip


def rope_keys(q, k, v, cos, sin, k_out, v_out):
    """The CUDA side of `pycotmech::rope_keys`; the op's public function has checked the arguments."""
    R, HKV, D = k.shape
    half = cos.shape[-1] // 2
    if k.numel() == 0 or half == 0:
        k_out.copy_(k), v_out.copy_(v)
        return
    H = 0 if q is None else q.shape[1]
    q = k if q is None else q
    cos, sin = (t if t.stride(1) == 1 else t.contiguous() for t in (cos, sin))
    DP = triton.next_power_of_2(D)
    block_h = min(triton.next_power_of_2(max(H, HKV)), max(1, 2048 // DP))
    blocks = triton.cdiv(H, block_h) + 2 * triton.cdiv(HKV, block_h)
    rope_keys_kernel[(R, blocks)](
        q, k, v, cos, sin, k_out, v_out, H, HKV, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *k_out.stride()[:2],
        *v_out.stride()[:2], cos.stride(0), sin.stride(0), HALF=half, HP=triton.next_power_of_2(half), D=D, DP=DP,
        BLOCK_H=block_h, WIDE=_wide(k), num_warps=4,
    )  # fmt: skip


def swiglu(gate, up):
    """The CUDA side of `pycotmech::swiglu`; the op's public function has checked the arguments."""
    out = launch.empty(tuple(gate.shape), gate.dtype, gate)
    if out.numel() == 0:
        return out
    d = gate.shape[-1]
    g, u = (x.reshape(-1, d) for x in (gate, up))
    g, u = (x if x.stride(1) == 1 else x.contiguous() for x in (g, u))
    block = min(1024, triton.next_power_of_2(d))
    swiglu_kernel[(g.shape[0], triton.cdiv(d, block))](
        g, u, out, d, g.stride(0), u.stride(0), BLOCK=block, WIDE=_wide(gate), num_warps=4
    )
    return out
