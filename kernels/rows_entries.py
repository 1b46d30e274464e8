"""attn_rows and attn_entries on the GPU: chosen rows and chosen entries of the pattern, from lse of an earlier pass."""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.tiles import LOG2E, capped, load_rows, visible


@triton.jit(do_not_specialize=["H", "R", "T", "S", "window"])
def rows_kernel(
    Q, K, LSE, ROWS, STARTS, OUT, stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    H, R, T, S, scale, softcap, window,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PREC: tl.constexpr, PADDED: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    """One [BLOCK_M rows, BLOCK_N keys] tile of one head's chosen rows."""
    n0 = tl.program_id(0) * BLOCK_N
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    Q += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    K += b.to(tl.int64) * stride_kb + (h // GROUP).to(tl.int64) * stride_kh
    r = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = n0 + tl.arange(0, BLOCK_N)
    i = tl.load(ROWS + r, mask=r < R, other=-1).to(tl.int32)
    b_q = load_rows(Q, i, 0, T, stride_qt, D, DP, True)
    b_k = load_rows(K, o_n, 0, S, stride_kt, D, DP, True)
    b_lse = tl.load(LSE + bh.to(tl.int64) * T + i, mask=(i >= 0) & (i < T), other=0.0)
    b_s = tl.dot(b_q, b_k.T, input_precision=PREC)  # [BLOCK_M, DP] [DP, BLOCK_N] -> [BLOCK_M, BLOCK_N]
    if CAP:
        b_x = capped(b_s, scale, softcap) * LOG2E
    else:
        b_x = b_s * (scale * LOG2E)
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    m_seen = visible((i + S - T)[:, None], o_n[None, :], first, window)
    b_p = tl.where(m_seen, tl.exp2(b_x - (b_lse * LOG2E)[:, None]), 0.0)
    p_out = OUT + (bh.to(tl.int64) * R + r)[:, None] * S + o_n[None, :]
    tl.store(p_out, b_p, mask=(r < R)[:, None] & (o_n < S)[None, :])


@triton.jit(do_not_specialize=["H", "E", "T", "S", "window"])
def entries_kernel(
    Q, K, LSE, QI, KI, STARTS, OUT, stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    H, E, T, S, scale, softcap, window,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr,
    CAP: tl.constexpr,
):  # fmt: skip
    """BLOCK entries of one head: two gathered rows each and their scalar product in float32."""
    bh = tl.program_id(1)
    b = bh // H
    h = bh % H
    Q += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    K += b.to(tl.int64) * stride_kb + (h // GROUP).to(tl.int64) * stride_kh
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.load(QI + e, mask=e < E, other=-1).to(tl.int32)
    j = tl.load(KI + e, mask=e < E, other=-1).to(tl.int32)
    b_q = load_rows(Q, i, 0, T, stride_qt, D, DP, True).to(tl.float32)
    b_k = load_rows(K, j, 0, S, stride_kt, D, DP, True).to(tl.float32)
    b_lse = tl.load(LSE + bh.to(tl.int64) * T + i, mask=(i >= 0) & (i < T), other=0.0)
    b_s = tl.sum(b_q * b_k, 1)  # [BLOCK, DP] -> [BLOCK]
    if CAP:
        b_x = capped(b_s, scale, softcap) * LOG2E
    else:
        b_x = b_s * (scale * LOG2E)
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    b_p = tl.where(visible(i + S - T, j, first, window), tl.exp2(b_x - b_lse * LOG2E), 0.0)
    tl.store(OUT + bh.to(tl.int64) * E + e, b_p, mask=e < E)


def attn_rows(q, k, lse, rows, starts, scale, window, softcap):
    """The CUDA side of `pycotmech::attn_rows`; the op's public function has checked the arguments."""
    q, scale = launch.positive_scale(q, scale)
    B, H, T, D = q.shape
    S, R = k.shape[2], rows.shape[0]
    out = launch.empty((B, H, R, S), torch.float32, q)
    if out.numel() == 0:
        return out
    config = configs.pick("rows", q.dtype, D)
    rows_kernel[(triton.cdiv(S, config.block_n), B * H, triton.cdiv(R, config.block_m))](
        q, k, lse.contiguous(), rows.contiguous(), lse if starts is None else starts, out,
        *q.stride()[:3], *k.stride()[:3], H, R, T, S, scale, softcap, window or launch.NO_WINDOW,
        GROUP=H // k.shape[1], D=D, DP=configs.padded(D), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        PREC=config.precision, PADDED=starts is not None, CAP=softcap > 0, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
    return out


def attn_entries(q, k, lse, qi, ki, starts, scale, window, softcap):
    """The CUDA side of `pycotmech::attn_entries`; the op's public function has checked the arguments."""
    q, scale = launch.positive_scale(q, scale)
    B, H, T, D = q.shape
    S, E = k.shape[2], qi.shape[0]
    out = launch.empty((B, H, E), torch.float32, q)
    if out.numel() == 0:
        return out
    config = configs.pick("entries", q.dtype, D)
    entries_kernel[(triton.cdiv(E, config.block_m), B * H)](
        q, k, lse.contiguous(), qi.contiguous(), ki.contiguous(), lse if starts is None else starts, out,
        *q.stride()[:3], *k.stride()[:3], H, E, T, S, scale, softcap, window or launch.NO_WINDOW,
        GROUP=H // k.shape[1], D=D, DP=configs.padded(D), BLOCK=config.block_m, PADDED=starts is not None,
        CAP=softcap > 0, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    return out
