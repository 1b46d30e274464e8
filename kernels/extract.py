"""attn_extract on the GPU: flash attention that keeps entropy and segment masses; readouts and top keys in further launches.

One program takes BLOCK_M query rows of one head, heaviest first, and walks over the keys in up to three stretches: a
masked head (only with left padding or a window), the blocks every row sees in full, and the masked diagonal. Scores
stay raw; weights are exp2 of their shifted, scaled value t, so that the largest is exactly 1, and the entropy is
accumulated about the running maximum, H = ln l - sum(p t) / l, which does not cancel where log-sum-exp minus the mean
score would.

Readouts and more than 32 segments come from launches of the same kernel without the values: beside the values their
registers would spill, or halve the tiles of everything. The top keys come from a kernel of their own (`extract_topk`); to
help it, the pass that makes z keeps the best score of each bin of keys (b_bins).
"""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.extract_topk import BINS, MAX_TOPK, best_of_bins, top_keys
from pycotmech.kernels.tiles import LN2, NEG, SEEN, bf16_part, joined, load_rows, placed, scores, stretches, to_log2

FUSED_SEGMENTS = 32
"""Up to here the masses come from the launch that makes z; more, and all readouts, from launches of their own."""
MAX_COLUMNS = 64
"""Segments, and readout features, of one such launch."""


@triton.jit
def _weigh(acc, p, x, alpha, PARTS: tl.constexpr, ONE_HOT: tl.constexpr):
    """acc * alpha + p @ x with p, and x unless it is 0 or 1, in PARTS bfloat16 parts (8 bits of mantissa each)."""
    acc = acc * alpha[:, None]
    p0, p_rest = bf16_part(p)
    if ONE_HOT:
        acc = tl.dot(p0, x, acc)
        if PARTS > 1:
            p1, p_rest = bf16_part(p_rest)
            acc = tl.dot(p1, x, acc)
        if PARTS > 2:
            acc = tl.dot(p_rest.to(tl.bfloat16), x, acc)
    else:
        x0, x_rest = bf16_part(x)
        x1, x_rest = bf16_part(x_rest)
        p1, p_rest = bf16_part(p_rest)
        if PARTS > 2:
            p2 = p_rest.to(tl.bfloat16)
            acc = tl.dot(p2, x0, acc)
            acc = tl.dot(p1, x1, acc)
            acc = tl.dot(p0, x_rest.to(tl.bfloat16), acc)
        acc = tl.dot(p1, x0, acc)
        acc = tl.dot(p0, x1, acc)
        acc = tl.dot(p0, x0, acc)
    return acc


@triton.jit
def _walk(
    b_z, b_mass, b_read, b_m, b_l, b_u, b_bins, b_q, K, V, SEG, READ, b, hk, at, lo, hi, first, S, window,
    stride_kt, stride_vt, stride_rt, c, scale, softcap, seg_base, n_read,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    PREC: tl.constexpr, WITH_Z: tl.constexpr, ENTROPY: tl.constexpr, GP: tl.constexpr, CP: tl.constexpr, BINS: tl.constexpr,
    PARTS: tl.constexpr, BANDED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The keys lo to hi, BLOCK_N at a time, for BLOCK_M query rows; returns the running sums. MASKED: a row may miss a key."""
    for start in tl.range(lo, hi, BLOCK_N, num_stages=STAGES):
        o_n = start + tl.arange(0, BLOCK_N)
        b_s = scores(
            b_q, K, b, hk, start, o_n, at, first, S, window, stride_kt, scale, softcap, D, DP, BLOCK_N, PREC, CAP, TMA,
            MASKED, BANDED,
        )  # fmt: skip
        if WITH_Z or GP > 0 or CP > 0:
            if BINS > 0:
                # [BLOCK_M, BLOCK_N] -> [BLOCK_M, BLOCK_N / BINS, BINS]: a few steps more than the maximum of the row alone
                b_bins = tl.maximum(b_bins, tl.max(b_s.reshape(BLOCK_M, BLOCK_N // BINS, BINS), 1))
                m_new = tl.max(b_bins, 1)
            else:
                m_new = tl.maximum(b_m, tl.max(b_s, 1))
            alpha = tl.exp2((b_m - m_new) * c)
            b_t = (b_s - m_new[:, None]) * c
            b_p = tl.exp2(b_t)
            if ENTROPY:
                b_u = alpha * (b_u + b_l * ((b_m - m_new) * c)) + tl.sum(b_p * b_t, 1)
            b_l = b_l * alpha + tl.sum(b_p, 1)
            if WITH_Z:
                if TMA:
                    b_v = V.load([b, hk, start, 0]).reshape(BLOCK_N, DP)
                else:
                    b_v = load_rows(V, o_n, first, S, stride_vt, D, DP, MASKED)
                # [BLOCK_M, BLOCK_N] [BLOCK_N, DP] -> [BLOCK_M, DP]
                b_z = tl.dot(b_p.to(b_v.dtype), b_v, b_z * alpha[:, None], input_precision=PREC)
            if GP > 0:
                if MASKED:
                    b_seg = tl.load(SEG + o_n, mask=o_n < S, other=-1)
                else:
                    b_seg = tl.load(SEG + o_n)
                m_seg = (b_seg[:, None] - seg_base) == tl.arange(0, GP)[None, :]
                # [BLOCK_M, BLOCK_N] [BLOCK_N, GP] -> [BLOCK_M, GP]
                b_mass = _weigh(b_mass, b_p, m_seg.to(tl.bfloat16), alpha, PARTS, True)
            if CP > 0:
                o_c = tl.arange(0, CP)
                m_c = (o_c < n_read)[None, :]
                if MASKED:
                    m_c = m_c & ((o_n >= first) & (o_n < S))[:, None]
                x = tl.load(READ + o_n.to(tl.int64)[:, None] * stride_rt + o_c[None, :], mask=m_c, other=0.0)
                # [BLOCK_M, BLOCK_N] [BLOCK_N, CP] -> [BLOCK_M, CP]
                b_read = _weigh(b_read, b_p, x, alpha, PARTS, False)
            b_m = m_new
    return b_z, b_mass, b_read, b_m, b_l, b_u, b_bins


@triton.jit(do_not_specialize=["H", "T", "S", "window", "seg_base", "n_seg", "n_read", "G", "C", "together"])
def extract_kernel(
    Q, K, V, SEG, READ, STARTS, SINKS, Z, LSE, PMAX, ENT, MASS, OUT, BEST,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_sb, stride_rb, stride_rh, stride_rt, stride_zb, stride_zh, stride_zt,
    H, T, S, scale, softcap, window, seg_base, n_seg, G, n_read, C, together,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, PREC: tl.constexpr, WITH_Z: tl.constexpr, ENTROPY: tl.constexpr, GP: tl.constexpr,
    CP: tl.constexpr, BINS: tl.constexpr, PARTS: tl.constexpr, PADDED: tl.constexpr,
    BANDED: tl.constexpr, CAP: tl.constexpr, SINK: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """BLOCK_M query rows of one head of one sequence.

    Names: p_ pointers, b_ tiles, o_ offsets, m_ masks; b_m running maximum, b_l sum of weights, b_u entropy about the maximum.
    """
    tiles = tl.cdiv(T, BLOCK_M)
    tile, bh = placed(tl.program_id(0), tiles, together)
    pid = tiles - 1 - tile  # the longest rows first
    b = bh // H
    h = bh % H
    hk = h // GROUP
    m0 = pid * BLOCK_M
    o_m = m0 + tl.arange(0, BLOCK_M)
    m_row = o_m < T
    if TMA:
        b_q = Q.load([b, h, m0, 0]).reshape(BLOCK_M, DP)
    else:
        b_q = load_rows(Q + b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh, o_m, 0, T, stride_qt, D, DP, True)
        K += b.to(tl.int64) * stride_kb + hk.to(tl.int64) * stride_kh
        V += b.to(tl.int64) * stride_vb + hk.to(tl.int64) * stride_vh
    SEG += b.to(tl.int64) * stride_sb
    READ += b.to(tl.int64) * stride_rb + h.to(tl.int64) * stride_rh
    c = to_log2(scale, CAP)
    GQ: tl.constexpr = GP if GP > 0 else 16
    CQ: tl.constexpr = CP if CP > 0 else 16
    b_m = tl.full([BLOCK_M], NEG, tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_u = tl.zeros([BLOCK_M], tl.float32)
    b_z = tl.zeros([BLOCK_M, DP], tl.float32)
    b_mass = tl.zeros([BLOCK_M, GQ], tl.float32)
    b_read = tl.zeros([BLOCK_M, CQ], tl.float32)
    b_bins = tl.full([BLOCK_M, BINS if BINS > 0 else 16], NEG, tl.float32)

    shift = S - T
    at = o_m + shift
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    lo, full_lo, full_hi, hi = stretches(m0, tl.minimum(m0 + BLOCK_M, T), shift, first, window, BLOCK_N, BANDED)
    if BANDED:
        b_z, b_mass, b_read, b_m, b_l, b_u, b_bins = _walk(
            b_z, b_mass, b_read, b_m, b_l, b_u, b_bins, b_q, K, V, SEG, READ, b, hk, at, lo, tl.minimum(full_lo, hi),
            first, S, window, stride_kt, stride_vt, stride_rt, c, scale, softcap, seg_base, n_read,
            D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, WITH_Z, ENTROPY, GP, CP, BINS, PARTS, BANDED, CAP, TMA, True,
        )  # fmt: skip
    b_z, b_mass, b_read, b_m, b_l, b_u, b_bins = _walk(
        b_z, b_mass, b_read, b_m, b_l, b_u, b_bins, b_q, K, V, SEG, READ, b, hk, at, full_lo, full_hi, first, S,
        window, stride_kt, stride_vt, stride_rt, c, scale, softcap, seg_base, n_read,
        D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, WITH_Z, ENTROPY, GP, CP, BINS, PARTS, BANDED, CAP, TMA, False,
    )  # fmt: skip
    b_z, b_mass, b_read, b_m, b_l, b_u, b_bins = _walk(
        b_z, b_mass, b_read, b_m, b_l, b_u, b_bins, b_q, K, V, SEG, READ, b, hk, at, tl.maximum(full_lo, full_hi), hi,
        first, S, window, stride_kt, stride_vt, stride_rt, c, scale, softcap, seg_base, n_read,
        D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, WITH_Z, ENTROPY, GP, CP, BINS, PARTS, BANDED, CAP, TMA, True,
    )  # fmt: skip

    row = bh.to(tl.int64) * T + o_m
    m_empty = b_m < SEEN
    alone = tl.where(m_empty, 0.0, 1.0 / b_l)
    inv = alone
    b_log = b_m * c + tl.log2(b_l)
    if SINK:
        b_all, rise, share = joined(b_log, m_empty, tl.load(SINKS + h))
        inv = alone * share
    else:
        b_all = tl.where(m_empty, float("-inf"), b_log)
    if WITH_Z:
        o_d = tl.arange(0, DP)
        z = tl.where(m_empty[:, None], 0.0, b_z * inv[:, None])
        p_z = Z + b.to(tl.int64) * stride_zb + h.to(tl.int64) * stride_zh + o_m.to(tl.int64)[:, None] * stride_zt
        tl.store(p_z + o_d[None, :], z.to(Z.dtype.element_ty), mask=m_row[:, None] & (o_d < D)[None, :])
        tl.store(LSE + row, b_all * LN2, mask=m_row)
        tl.store(PMAX + row, inv, mask=m_row)
    if BINS > 0:
        tl.store(BEST + row[:, None] * BINS + tl.arange(0, BINS)[None, :], b_bins, mask=m_row[:, None])
    if ENTROPY:
        ent = (tl.log2(b_l) - b_u * alone) * LN2
        if SINK:  # weights w p of a softmax p, w the keys' share: -sum w p ln (w p) = w (entropy of p - ln w)
            ent = (ent + rise * LN2) * share
        tl.store(ENT + row, tl.where(m_empty, 0.0, ent), mask=m_row)
    if GP > 0:
        o_g = tl.arange(0, GP)
        mass = tl.where(m_empty[:, None], 0.0, b_mass * inv[:, None])
        tl.store(MASS + row[:, None] * G + seg_base + o_g[None, :], mass, mask=m_row[:, None] & (o_g < n_seg)[None, :])
    if CP > 0:
        o_c = tl.arange(0, CP)
        read = tl.where(m_empty[:, None], 0.0, b_read * inv[:, None])
        tl.store(OUT + row[:, None] * C + o_c[None, :], read, mask=m_row[:, None] & (o_c < n_read)[None, :])


def _launch(
    out, q, k, v, segments, readout, starts, scale, window, softcap, sinks, *, kind, g0=0, g=0, c0=0, c=0, best=None
):  # fmt: skip
    """One launch into `out`: g segments from g0 on, c readout features from c0 on, and z unless the kind is columns.
    best: [B, H, T, BINS] for the best score of each bin of keys."""
    z, lse, pmax, ent, mass, read = out
    B, H, T, D = q.shape
    with_z = kind != "columns"
    config = configs.pick(f"extract_{kind}", q.dtype, D, descriptors=launch.describable(q, k, v))
    DP = configs.padded(D)
    tensors = [q, k, v]
    if config.tma:
        blocks = (config.block_m, config.block_n, config.block_n)
        tensors = [launch.descriptor(x, [1, 1, n, DP]) for x, n in zip(tensors, blocks)]
    segment_stride = segments.stride(0) if segments is not None and segments.ndim == 2 else 0
    read_strides = (0, 0, 0)
    if c:
        read_strides = (*(readout.stride(i) if readout.shape[i] > 1 else 0 for i in (0, 1)), readout.stride(2))
    together = launch.heads_together(B * H, k.shape[2], D, H // k.shape[1], q.element_size())
    extract_kernel[(triton.cdiv(T, config.block_m) * B * H,)](
        *tensors, segments if g else lse, readout[..., c0:] if c else lse, lse if starts is None else starts,
        lse if sinks is None else sinks, z, lse, pmax, ent, mass, read[..., c0:] if c else lse,
        lse if best is None else best,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], segment_stride, *read_strides, *z.stride()[:3],
        H, T, k.shape[2], scale, softcap, window or launch.NO_WINDOW, g0, g, mass.shape[-1], c, read.shape[-1], together,
        GROUP=H // k.shape[1], D=D, DP=DP, BLOCK_M=config.block_m, BLOCK_N=config.block_n, STAGES=config.stages,
        PREC=config.precision, WITH_Z=with_z, ENTROPY=with_z and ent.numel() > 0, GP=configs.columns(g, q.dtype),
        CP=configs.columns(c, q.dtype), BINS=0 if best is None else BINS, PARTS=config.parts, PADDED=starts is not None,
        BANDED=starts is not None or window > 0, CAP=softcap > 0, SINK=sinks is not None, TMA=config.tma,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip


def attn_extract(q, k, v, segments, n_segments, readout, starts, scale, entropy, topk, window, softcap, sinks=None):
    """The CUDA side of `pycotmech::attn_extract`; the op's public function has checked the arguments."""
    if not 0 <= topk <= MAX_TOPK:
        raise ValueError(f"topk must be 0 to {MAX_TOPK} in the one pass (attn_topk finds more), got {topk}")
    q, scale = launch.positive_scale(q, scale)
    G = 0 if segments is None else n_segments
    C = 0 if readout is None else readout.shape[-1]
    rows = q.shape[:3]
    out = (
        launch.empty(q.shape, q.dtype, q),
        launch.empty(rows, torch.float32, q),
        launch.empty(rows, torch.float32, q),
        launch.empty(rows if entropy else (0,), torch.float32, q),
        launch.empty((*rows, G), torch.float32, q),
        launch.empty((*rows, C), torch.float32, q),
    )
    top = tuple(launch.empty((*rows, topk), dtype, q) for dtype in (torch.float32, torch.int32))
    if q.numel() == 0:
        return *out, *top
    if segments is not None:
        segments = segments.contiguous()
    args = (out, q, k, v, segments, readout, starts, scale, window, softcap, sinks)
    fused = G if G <= FUSED_SEGMENTS else 0
    best = best_of_bins(q, k, topk)
    _launch(*args, kind="segments" if fused else "plain", g=fused, best=best)
    for at in range(0, max(G - fused, C), MAX_COLUMNS):
        g, c = (max(0, min(n - at, MAX_COLUMNS)) for n in (G - fused, C))
        _launch(*args, kind="columns", g0=at, g=g, c0=at, c=c)
    if topk:
        top_keys(top, q, k, out[1], best, starts, scale, window, softcap, topk)
    return *out, *top
