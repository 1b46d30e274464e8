"""attn_colsum on the GPU: attention received. A second pass with lse known, one program per key block, no atomics."""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.tiles import LOG2E, capped, load_rows, placed, to_log2, visible


@triton.jit
def _add_rows(
    b_sum, b_k, Q, LSE, W, b, h, o_n, lo, hi, first, shift, T, window, stride_qt, c, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    WEIGHTED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """b_sum [BLOCK_N] plus what the query rows lo to hi give to the keys b_k [BLOCK_N, DP], BLOCK_M rows at a time."""
    for m0 in tl.range(lo, hi, BLOCK_M, num_stages=STAGES):
        o_m = m0 + tl.arange(0, BLOCK_M)
        if TMA:
            b_q = Q.load([b, h, m0, 0]).reshape(BLOCK_M, DP)
        else:
            b_q = load_rows(Q, o_m, 0, T, stride_qt, D, DP, MASKED)
        if MASKED:
            b_lse = tl.load(LSE + o_m, mask=o_m < T, other=float("inf"))  # rows beyond T weigh exp(-inf) = 0
        else:
            b_lse = tl.load(LSE + o_m)
        b_s = tl.dot(b_k, b_q.T, input_precision=PREC)  # [BLOCK_N, DP] [DP, BLOCK_M] -> [BLOCK_N, BLOCK_M]
        if CAP:
            b_s = capped(b_s, scale, softcap)
        b_p = tl.exp2(b_s * c - (b_lse * LOG2E)[None, :])
        if MASKED:
            m_seen = visible((o_m + shift)[None, :], o_n[:, None], first, window)
            b_p = tl.where(m_seen & (o_m < T)[None, :], b_p, 0.0)
        if WEIGHTED:
            if MASKED:
                b_w = tl.load(W + o_m, mask=o_m < T, other=0.0)
            else:
                b_w = tl.load(W + o_m)
            b_p = b_p * b_w[None, :]
        b_sum += tl.sum(b_p, 1)
    return b_sum


@triton.jit(do_not_specialize=["H", "T", "S", "window", "together"])
def colsum_kernel(
    Q, K, LSE, W, STARTS, OUT,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_wb, stride_wh,
    H, T, S, scale, softcap, window, together,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, PREC: tl.constexpr, WEIGHTED: tl.constexpr, PADDED: tl.constexpr, BANDED: tl.constexpr,
    CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What BLOCK_N keys of one head of one sequence receive. Names: p_ pointers, b_ tiles, o_ offsets, m_ masks."""
    tile, bh = placed(tl.program_id(0), tl.cdiv(S, BLOCK_N), together)
    n0 = tile * BLOCK_N  # the first keys are seen by the most rows, and come first
    b = bh // H
    h = bh % H
    hk = h // GROUP
    o_n = n0 + tl.arange(0, BLOCK_N)
    if TMA:
        b_k = K.load([b, hk, n0, 0]).reshape(BLOCK_N, DP)
    else:
        b_k = load_rows(K + b.to(tl.int64) * stride_kb + hk.to(tl.int64) * stride_kh, o_n, 0, S, stride_kt, D, DP, True)
        Q += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    LSE += bh.to(tl.int64) * T
    W += b.to(tl.int64) * stride_wb + h.to(tl.int64) * stride_wh
    c = to_log2(scale, CAP)
    shift = S - T
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    last = tl.minimum(n0 + BLOCK_N, S) - 1
    lo = tl.maximum(tl.maximum(n0, first) - shift, 0) // BLOCK_M * BLOCK_M
    # Rows from full_lo on see every key of the block; with a window, only those before full_hi.
    full_lo = tl.cdiv(tl.maximum(last - shift, 0), BLOCK_M) * BLOCK_M
    hi = T
    full_hi = T // BLOCK_M * BLOCK_M
    if BANDED:
        hi = tl.maximum(tl.minimum(T, last + window - shift), 0)
        full_hi = tl.maximum(tl.minimum(T, n0 + window - shift), 0) // BLOCK_M * BLOCK_M
        if n0 < first:  # padding among the keys: no block is full
            full_hi = 0
    full_lo = tl.maximum(lo, tl.minimum(full_lo, tl.cdiv(hi, BLOCK_M) * BLOCK_M))
    b_sum = tl.zeros([BLOCK_N], tl.float32)
    b_sum = _add_rows(
        b_sum, b_k, Q, LSE, W, b, h, o_n, lo, tl.minimum(full_lo, hi), first, shift, T, window, stride_qt, c, scale,
        softcap, D, DP, BLOCK_M, STAGES, PREC, WEIGHTED, CAP, TMA, True,
    )  # fmt: skip
    b_sum = _add_rows(
        b_sum, b_k, Q, LSE, W, b, h, o_n, full_lo, full_hi, first, shift, T, window, stride_qt, c, scale, softcap,
        D, DP, BLOCK_M, STAGES, PREC, WEIGHTED, CAP, TMA, False,
    )  # fmt: skip
    b_sum = _add_rows(
        b_sum, b_k, Q, LSE, W, b, h, o_n, tl.maximum(full_lo, full_hi), hi, first, shift, T, window, stride_qt, c, scale,
        softcap, D, DP, BLOCK_M, STAGES, PREC, WEIGHTED, CAP, TMA, True,
    )  # fmt: skip
    tl.store(OUT + bh.to(tl.int64) * S + o_n, b_sum, mask=o_n < S)


def attn_colsum(q, k, lse, weights, starts, scale, window, softcap):
    """The CUDA side of `pycotmech::attn_colsum`; the op's public function has checked the arguments."""
    q, scale = launch.positive_scale(q, scale)
    B, H, T, D = q.shape
    S = k.shape[2]
    out = launch.empty((B, H, S), torch.float32, q)
    if out.numel() == 0:
        return out
    config = configs.pick("colsum", q.dtype, D, descriptors=launch.describable(q, k))
    DP = configs.padded(D)
    args = [q, k]
    if config.tma:
        args = [launch.descriptor(x, [1, 1, n, DP]) for x, n in ((q, config.block_m), (k, config.block_n))]
    weight_strides = (0, 0)
    if weights is not None:
        weights = weights if weights.stride(2) == 1 else weights.contiguous()
        weight_strides = tuple(weights.stride(i) if weights.shape[i] > 1 else 0 for i in (0, 1))
    together = launch.heads_together(B * H, T, D, 1, q.element_size())  # each head has queries of its own
    colsum_kernel[(triton.cdiv(S, config.block_n) * B * H,)](
        *args, lse.contiguous(), lse if weights is None else weights, lse if starts is None else starts, out,
        *q.stride()[:3], *k.stride()[:3], *weight_strides, H, T, S, scale, softcap, window or launch.NO_WINDOW, together,
        GROUP=H // k.shape[1], D=D, DP=DP, BLOCK_M=config.block_m, BLOCK_N=config.block_n, STAGES=config.stages,
        PREC=config.precision, WEIGHTED=weights is not None, PADDED=starts is not None,
        BANDED=starts is not None or window > 0, CAP=softcap > 0, TMA=config.tma, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
    return out
