"""The top keys of `attn_extract` on the GPU: a launch of its own, after the one that makes z and log-sum-exp.

A program keeps the best keys so far of each of its rows. A tile of scores is gone through in rounds: each takes the best
score that is left in every row, if it beats the worst that the row keeps. The rounds of a tile end when no row of the program
has such a score. Keys are read from the last to the first, but the first tile of all comes early: near keys and the first
ones tend to have the highest scores, so that most of the other tiles take few rounds or none.
"""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.tiles import LOG2E, NEG, SEEN, load_rows, placed, scores, stretches, to_log2

MAX_TOPK = 8
_NO_KEY = tl.constexpr(0x7FFFFFFF)
_TAKEN = tl.constexpr(3.0e38)  # the score of a slot that never loses


@triton.jit
def _keep_best(b_top, o_top, b_s, o_n, TOPK: tl.constexpr):
    """The best scores and their keys b_top, o_top [BLOCK_M, KP], in no order, after the keys o_n with the scores b_s
    [BLOCK_M, BLOCK_N].

    Conditions one after the other, not a loop: a loop inside the key loop would switch its software pipelining off.
    """
    best = tl.max(b_s, 1)
    worst = tl.min(b_top, 1)
    left = tl.max((best >= worst).to(tl.int32), 0)
    for _ in tl.static_range(TOPK):
        if left > 0:
            key = tl.min(tl.where(b_s == best[:, None], o_n[None, :], _NO_KEY), 1)  # the lowest key among equals
            last = tl.max(tl.where(b_top == worst[:, None], o_top, -1), 1)  # among equal slots the highest key goes
            beats = (best > worst) | ((best == worst) & (key < last))
            put = beats[:, None] & (b_top == worst[:, None]) & (o_top == last[:, None])
            b_top = tl.where(put, best[:, None], b_top)
            o_top = tl.where(put, key[:, None], o_top)
            b_s = tl.where(o_n[None, :] == key[:, None], NEG, b_s)
            best = tl.max(b_s, 1)
            worst = tl.min(b_top, 1)
            left = tl.max((best >= worst).to(tl.int32), 0)
    return b_top, o_top


@triton.jit
def _walk_down(
    b_top, o_top, b_q, K, b, hk, at, lo, hi, first, S, window, stride_kt, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, PREC: tl.constexpr,
    TOPK: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The keys hi to lo, BLOCK_N at a time, the last ones first. MASKED: a row may miss a key; otherwise the first tile comes
    second."""
    top = lo + (tl.cdiv(hi - lo, BLOCK_N) - 1) * BLOCK_N  # where the last tile begins
    for done in tl.range(0, hi - lo, BLOCK_N, num_stages=STAGES):
        start = top - done
        if not MASKED:
            start = tl.where(done == BLOCK_N, lo, start + tl.where(done > BLOCK_N, BLOCK_N, 0))
        o_n = start + tl.arange(0, BLOCK_N)
        b_s = scores(
            b_q, K, b, hk, start, o_n, at, first, S, window, stride_kt, scale, softcap, D, DP, BLOCK_N, PREC, CAP, TMA, MASKED
        )
        b_top, o_top = _keep_best(b_top, o_top, b_s, o_n, TOPK)
    return b_top, o_top


@triton.jit(do_not_specialize=["H", "T", "S", "window", "together"])
def topk_kernel(
    Q, K, STARTS, LSE, TOP_P, TOP_I, stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    H, T, S, scale, softcap, window, together,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, PREC: tl.constexpr, TOPK: tl.constexpr, KP: tl.constexpr, PADDED: tl.constexpr,
    BANDED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """BLOCK_M query rows of one head of one sequence. Names as in `extract_kernel`."""
    tiles = tl.cdiv(T, BLOCK_M)
    tile, bh = placed(tl.program_id(0), tiles, together)
    m0 = (tiles - 1 - tile) * BLOCK_M  # the longest rows first
    b = bh // H
    h = bh % H
    hk = h // GROUP
    o_m = m0 + tl.arange(0, BLOCK_M)
    m_row = o_m < T
    if TMA:
        b_q = Q.load([b, h, m0, 0]).reshape(BLOCK_M, DP)
    else:
        b_q = load_rows(Q + b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh, o_m, 0, T, stride_qt, D, DP, True)
        K += b.to(tl.int64) * stride_kb + hk.to(tl.int64) * stride_kh
    c = to_log2(scale, CAP)
    o_k = tl.arange(0, KP)
    # An invisible key is no better than an empty slot. Slots beyond K, and rows beyond T, take nothing.
    b_top = tl.where(m_row[:, None] & (o_k < TOPK)[None, :], SEEN + 0.0, _TAKEN)
    o_top = tl.zeros([BLOCK_M, KP], tl.int32) + (o_k + 0x40000000)[None, :]  # distinct: one slot goes at a time

    shift = S - T
    at = o_m + shift
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    lo, full_lo, full_hi, hi = stretches(m0, tl.minimum(m0 + BLOCK_M, T), shift, first, window, BLOCK_N, BANDED)
    b_top, o_top = _walk_down(
        b_top, o_top, b_q, K, b, hk, at, tl.maximum(full_lo, full_hi), hi, first, S, window, stride_kt, scale, softcap,
        D, DP, BLOCK_N, STAGES, PREC, TOPK, CAP, TMA, True,
    )  # fmt: skip
    b_top, o_top = _walk_down(
        b_top, o_top, b_q, K, b, hk, at, full_lo, full_hi, first, S, window, stride_kt, scale, softcap,
        D, DP, BLOCK_N, STAGES, PREC, TOPK, CAP, TMA, False,
    )  # fmt: skip
    if BANDED:
        b_top, o_top = _walk_down(
            b_top, o_top, b_q, K, b, hk, at, lo, tl.minimum(full_lo, hi), first, S, window, stride_kt, scale, softcap,
            D, DP, BLOCK_N, STAGES, PREC, TOPK, CAP, TMA, True,
        )  # fmt: skip

    row = bh.to(tl.int64) * T + o_m
    top = tl.load(LSE + row, mask=m_row, other=0.0) * LOG2E
    used = (b_top > SEEN) & (o_k < TOPK)[None, :]
    for slot in tl.static_range(TOPK):  # the slots hold the best keys in no order: pick them by score, then key
        best = tl.max(tl.where(used, b_top, NEG), 1)
        key = tl.min(tl.where(used & (b_top == best[:, None]), o_top, _NO_KEY), 1)
        found = best > SEEN
        m_taken = used & (b_top == best[:, None]) & (o_top == key[:, None])
        tl.store(TOP_P + row * TOPK + slot, tl.where(found, tl.exp2(best * c - top), 0.0), mask=m_row)
        tl.store(TOP_I + row * TOPK + slot, tl.where(found, key, -1), mask=m_row)
        used = used & (~m_taken)


def top_keys(out: tuple[torch.Tensor, torch.Tensor], q, k, lse, starts, scale, window, softcap, topk):
    """Weights and positions of the topk heaviest keys into `out`, float32 and int32 [B, H, T, topk]; lse of the same rows."""
    B, H, T, D = q.shape
    config = configs.pick("extract_topk", q.dtype, D, descriptors=launch.describable(q, k))
    DP = configs.padded(D)
    tensors = [q, k]
    if config.tma:
        tensors = [launch.descriptor(x, [1, 1, n, DP]) for x, n in zip(tensors, (config.block_m, config.block_n))]
    together = launch.heads_together(B * H, k.shape[2], D, H // k.shape[1], q.element_size())
    topk_kernel[(triton.cdiv(T, config.block_m) * B * H,)](
        *tensors, lse if starts is None else starts, lse, *out, *q.stride()[:3], *k.stride()[:3],
        H, T, k.shape[2], scale, softcap, window or launch.NO_WINDOW, together,
        GROUP=H // k.shape[1], D=D, DP=DP, BLOCK_M=config.block_m, BLOCK_N=config.block_n, STAGES=config.stages,
        PREC=config.precision, TOPK=topk, KP=triton.next_power_of_2(topk), PADDED=starts is not None,
        BANDED=starts is not None or window > 0, CAP=softcap > 0, TMA=config.tma, num_warps=config.warps,
        num_stages=config.stages,
    )  # fmt: skip
