"""Top keys without a bound: the best keys so far of each row, and tiles of scores gone through in rounds.

A round takes the best score that is left in every row, if it beats the worst that the row keeps. The rounds of a tile end when
no row of the program has such a score. Keys are read from the last to the first, but the first tile of all comes early: near
keys and the first ones tend to have the highest scores, so that most of the other tiles take few rounds or none.
"""

import triton
import triton.language as tl
from pycotmech.kernels.tiles import NEG, NO_KEY, SEEN, scores

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
            key = tl.min(tl.where(b_s == best[:, None], o_n[None, :], NO_KEY), 1)  # the lowest key among equals
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


@triton.jit
def rounds(
    b_q, K, b, hk, at, m_row, lo, full_lo, full_hi, hi, first, S, window, stride_kt, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    PREC: tl.constexpr, TOPK: tl.constexpr, KP: tl.constexpr, BANDED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Scores and keys [BLOCK_M, KP] of the TOPK best keys, in no order. An empty slot has the score SEEN."""
    o_k = tl.arange(0, KP)
    # An invisible key is no better than an empty slot. Slots beyond K, and rows beyond T, take nothing.
    b_top = tl.where(m_row[:, None] & (o_k < TOPK)[None, :], SEEN + 0.0, _TAKEN)
    o_top = tl.zeros([BLOCK_M, KP], tl.int32) + (o_k + 0x40000000)[None, :]  # distinct: one slot goes at a time
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
    return b_top, o_top
