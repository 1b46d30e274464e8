"""The top keys of `attn_extract` on the GPU: a launch of its own, after the one that makes z and log-sum-exp.

The pass before puts the keys of a row into bins, by the last bits of their position, and stores the best score of each bin. At
least K scores are no lower than the K-th best of these: it is a bound, below which no key is among the top K. Few others reach
it. A program computes the scores once more, appends those that reach the bound to lists, and ranks the lists, so that the
work in a tile does not depend on what the scores are.

Nothing rests on the bound. A program that finds a list too long, or fewer than K scores that reach the bound (a score that is
computed again might differ in the last bit), takes all its rows through `topk_rounds`, which needs none.
"""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.tiles import LOG2E, NEG, NO_KEY, SEEN, load_rows, placed, scores, stretches, to_log2
from pycotmech.kernels.topk_rounds import rounds

MAX_TOPK = 8
BINS = 16
"""Key j is in bin j % 16: neighbours, which are often the best keys together, are in separate bins."""
SLOTS = 20
"""Pairs of keys that a list has room for."""
LISTS = 256 * 2**20
"""Bytes of lists of a launch; more heads take several launches."""
_WORDS = tl.constexpr(4)  # of a pair: the two scores, the lower key, and one that is not used, for aligned stores
_RECORD = 4 * SLOTS * 4 * 4  # bytes of the lists of a row
_BINS = tl.constexpr(BINS)
_SLOTS = tl.constexpr(SLOTS)
# A row of a product lies in four lanes of a warp: lane c has the keys j with j % 8 // 2 = c. Each lane has a list of its own.
_LANES = tl.constexpr(4)
# A list that holds more than this takes no more. A half tile adds up to 4 pairs of a lane, and the last slot is for the length.
_FULL = tl.constexpr(15)


@triton.jit
def _ordered(a, b, KEYED: tl.constexpr):
    """The higher and the lower of two scores; KEYED: of two (score, key), of equal scores the lower key first."""
    if KEYED:
        x, j = a
        y, k = b
        m = (y > x) | ((y == x) & (k < j))
        return (tl.where(m, y, x), tl.where(m, k, j)), (tl.where(m, x, y), tl.where(m, j, k))
    else:
        return tl.maximum(a, b), tl.minimum(a, b)


@triton.jit
def _merged8(a, b, c, d, e, f, g, h, KEYED: tl.constexpr):
    """Eight that fall and then rise, or rise and then fall: the highest first."""
    a, e = _ordered(a, e, KEYED)
    b, f = _ordered(b, f, KEYED)
    c, g = _ordered(c, g, KEYED)
    d, h = _ordered(d, h, KEYED)
    a, c = _ordered(a, c, KEYED)
    b, d = _ordered(b, d, KEYED)
    e, g = _ordered(e, g, KEYED)
    f, h = _ordered(f, h, KEYED)
    a, b = _ordered(a, b, KEYED)
    c, d = _ordered(c, d, KEYED)
    e, f = _ordered(e, f, KEYED)
    g, h = _ordered(g, h, KEYED)
    return a, b, c, d, e, f, g, h


@triton.jit
def _sorted8(a, b, c, d, e, f, g, h, KEYED: tl.constexpr):
    """Eight, the highest first: Batcher's network of 19 comparisons."""
    a, b = _ordered(a, b, KEYED)
    c, d = _ordered(c, d, KEYED)
    e, f = _ordered(e, f, KEYED)
    g, h = _ordered(g, h, KEYED)
    a, c = _ordered(a, c, KEYED)
    b, d = _ordered(b, d, KEYED)
    e, g = _ordered(e, g, KEYED)
    f, h = _ordered(f, h, KEYED)
    b, c = _ordered(b, c, KEYED)
    f, g = _ordered(f, g, KEYED)
    a, e = _ordered(a, e, KEYED)
    b, f = _ordered(b, f, KEYED)
    c, g = _ordered(c, g, KEYED)
    d, h = _ordered(d, h, KEYED)
    c, e = _ordered(c, e, KEYED)
    d, f = _ordered(d, f, KEYED)
    b, c = _ordered(b, c, KEYED)
    d, e = _ordered(d, e, KEYED)
    f, g = _ordered(f, g, KEYED)
    return a, b, c, d, e, f, g, h


@triton.jit
def _bound(BEST, TOPK: tl.constexpr):
    """The TOPK-th best of the bins at BEST [BLOCK_M] pointers."""
    lead = _sorted8(
        tl.load(BEST), tl.load(BEST + 1),
        tl.load(BEST + 2), tl.load(BEST + 3),
        tl.load(BEST + 4), tl.load(BEST + 5),
        tl.load(BEST + 6), tl.load(BEST + 7), False,
    )  # fmt: skip
    rest = _sorted8(
        tl.load(BEST + 8), tl.load(BEST + 9),
        tl.load(BEST + 10), tl.load(BEST + 11),
        tl.load(BEST + 12), tl.load(BEST + 13),
        tl.load(BEST + 14), tl.load(BEST + 15), False,
    )  # fmt: skip
    # The best TOPK of two sorted lists are the larger ones of the i-th and the (TOPK - 1 - i)-th.
    bound = tl.maximum(lead[0], rest[TOPK - 1])
    for i in tl.static_range(1, TOPK):
        bound = tl.minimum(bound, tl.maximum(lead[i], rest[TOPK - 1 - i]))
    return bound


@triton.jit
def _before(x):
    """The next lower float32."""
    bits = x.to(tl.int32, bitcast=True)
    bits = tl.where(x > 0, bits - 1, tl.where(x < 0, bits + 1, -2147483647))
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _halves(x):
    """[M, 2 N] -> two of [M, N]."""
    return x.reshape(x.shape[0], 2, x.shape[1] // 2).permute(0, 2, 1).split()


@triton.jit
def _put(x, key, above, n, p_lists):
    """Appends the scores x [lists, N], two neighbours at a time, to the lists, if one of the two is above the threshold
    [lists]. Returns n, how many words the lists have."""
    if x.shape[1] > 2:
        a, b = _halves(x)
        n = _put(a, key, above, n, p_lists)
        n = _put(b, key + x.shape[1] * 2, above, n, p_lists)
    else:
        a, b = x.split()
        m = tl.maximum(a, b) > above
        p_pair = p_lists + n
        tl.store(p_pair[:, None] + tl.arange(0, 2)[None, :], x.to(tl.int32, bitcast=True), mask=m[:, None])
        tl.store(p_pair + 2, key, mask=m)
        n += m.to(tl.int32) * _WORDS
    return n


@triton.jit
def _dealt(o, BLOCK_M: tl.constexpr):
    """The o-th row of a tile in the order in which lists are written: eight of each warp, then the other eight. These are the
    rows that a warp has of a product: list o % 4 of row o / 4 is written by the thread that has its scores."""
    return o // 8 % (BLOCK_M // 16) * 16 + o // (BLOCK_M // 2) * 8 + o % 8


@triton.jit
def _threshold(b_bound, b_below, n, TOPK: tl.constexpr):
    """Scores above it go into a list. A list of TOPK pairs takes no more scores that only equal the bound, since lower keys
    come first. A full one takes none."""
    above = tl.where(n >= TOPK * _WORDS, b_bound, b_below)
    return tl.where(n > _FULL * _WORDS, float("inf"), above)


@triton.jit
def _walk_up(
    n, p_lists, b_bound, b_below, b_q, K, b, hk, at, lo, hi, first, S, window, stride_kt, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
    PREC: tl.constexpr, TOPK: tl.constexpr, BANDED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Lists the keys lo to hi, BLOCK_N at a time; returns the words of the lists. n, bounds: [4 BLOCK_M], of each list."""
    for start in tl.range(lo, hi, BLOCK_N, num_stages=STAGES):
        o_n = start + tl.arange(0, BLOCK_N)
        b_s = scores(
            b_q, K, b, hk, start, o_n, at, first, S, window, stride_kt, scale, softcap, D, DP, BLOCK_N, PREC, CAP, TMA,
            MASKED, BANDED,
        )  # fmt: skip
        # [BLOCK_M, BLOCK_N] -> [4 BLOCK_M, BLOCK_N / 4]: rows in the order of `_dealt`, the keys of a list in theirs
        b_x = b_s.reshape(BLOCK_M // 16, 2, 8, BLOCK_N // 8, _LANES, 2).permute(1, 0, 2, 4, 3, 5)
        b_x = b_x.reshape(BLOCK_M * _LANES, BLOCK_N // _LANES)
        key = start + 2 * (tl.arange(0, BLOCK_M * _LANES) % _LANES)
        if BLOCK_N == 64:
            b_x, b_y = _halves(b_x)
            n = _put(b_x, key, _threshold(b_bound, b_below, n, TOPK), n, p_lists)
            n = _put(b_y, key + 32, _threshold(b_bound, b_below, n, TOPK), n, p_lists)
        else:
            n = _put(b_x, key, _threshold(b_bound, b_below, n, TOPK), n, p_lists)
    return n


@triton.jit
def _pair(i, p_row, n0, n1, n2, n3):
    """The i-th pair of all lists of a row, whose lengths add up to n0, n1, n2, n3: two of (score, key)."""
    skipped = tl.where(i < n0, 0, tl.where(i < n1, _SLOTS - n0, tl.where(i < n2, 2 * _SLOTS - n1, 3 * _SLOTS - n2)))
    p_pair = p_row + (i + skipped) * _WORDS
    m = i < n3
    x = tl.load(p_pair, mask=m, other=0).to(tl.float32, bitcast=True)
    y = tl.load(p_pair + 1, mask=m, other=0).to(tl.float32, bitcast=True)
    j = tl.load(p_pair + 2, mask=m, other=0)
    return (tl.where(m & (x > SEEN), x, NEG), j), (tl.where(m & (y > SEEN), y, NEG), j + 1)  # a NaN ranks as if not seen


@triton.jit
def _four_pairs(i, p_row, n0, n1, n2, n3):
    """Eight of (score, key), the highest first."""
    a, b = _pair(i, p_row, n0, n1, n2, n3)
    c, d = _pair(i + 1, p_row, n0, n1, n2, n3)
    e, f = _pair(i + 2, p_row, n0, n1, n2, n3)
    g, h = _pair(i + 3, p_row, n0, n1, n2, n3)
    return _sorted8(a, b, c, d, e, f, g, h, True)


@triton.jit
def _stored(p):
    """The (score, key) at p."""
    return tl.load(p).to(tl.float32, bitcast=True), tl.load(p + 1)


@triton.jit
def _best_of(s, t):
    """The best eight of two times eight, each with the highest first."""
    a, _ = _ordered(s[0], t[7], True)
    b, _ = _ordered(s[1], t[6], True)
    c, _ = _ordered(s[2], t[5], True)
    d, _ = _ordered(s[3], t[4], True)
    e, _ = _ordered(s[4], t[3], True)
    f, _ = _ordered(s[5], t[2], True)
    g, _ = _ordered(s[6], t[1], True)
    h, _ = _ordered(s[7], t[0], True)
    return _merged8(a, b, c, d, e, f, g, h, True)


@triton.jit(do_not_specialize=["H", "T", "S", "window", "together", "before"])
def topk_kernel(
    Q, K, STARTS, LSE, BEST, LISTS, TOP_P, TOP_I, stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    H, T, S, scale, softcap, window, together, before,
    GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr, PREC: tl.constexpr, TOPK: tl.constexpr, KP: tl.constexpr, PADDED: tl.constexpr,
    BANDED: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr, BOUNDED: tl.constexpr,
):  # fmt: skip
    """BLOCK_M query rows of one head of one sequence; `before` heads are those of launches before. Names as in
    `extract_kernel`. BOUNDED: the best scores of the bins are known."""
    tiles = tl.cdiv(T, BLOCK_M)
    tile, bh = placed(tl.program_id(0), tiles, together)
    m0 = (tiles - 1 - tile) * BLOCK_M  # the longest rows first
    o_m = m0 + tl.arange(0, BLOCK_M)
    m_row = o_m < T
    bh += before
    b = bh // H
    h = bh % H
    hk = h // GROUP
    if TMA:
        b_q = Q.load([b, h, m0, 0]).reshape(BLOCK_M, DP)
    else:
        b_q = load_rows(Q + b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh, o_m, 0, T, stride_qt, D, DP, True)
        K += b.to(tl.int64) * stride_kb + hk.to(tl.int64) * stride_kh
    c = to_log2(scale, CAP)
    shift = S - T
    at = o_m + shift
    first = 0
    if PADDED:
        first = tl.load(STARTS + b)
    lo, full_lo, full_hi, hi = stretches(m0, tl.minimum(m0 + BLOCK_M, T), shift, first, window, BLOCK_N, BANDED)

    failed = 1
    if BOUNDED:
        o_list = tl.arange(0, BLOCK_M * _LANES)
        o_r = m0 + _dealt(o_list // _LANES, BLOCK_M)
        m_r = o_r < T
        here = (bh - before).to(tl.int64) * T  # the first row of the head among those of the launch
        p_lists = LISTS + ((here + o_r) * _LANES + o_list % _LANES) * (_SLOTS * _WORDS)
        o_row = tl.minimum(m0 + _dealt(tl.arange(0, BLOCK_M), BLOCK_M), T - 1)
        bound = tl.maximum(_bound(BEST + (bh.to(tl.int64) * T + o_row) * _BINS, TOPK), SEEN)
        # [BLOCK_M] -> [4 BLOCK_M]
        b_bound = tl.broadcast_to(bound[:, None], (BLOCK_M, _LANES)).reshape(BLOCK_M * _LANES)
        b_below = tl.where(b_bound > SEEN, _before(b_bound), SEEN)
        b_bound = tl.where(m_r, b_bound, float("inf"))
        b_below = tl.where(m_r, b_below, float("inf"))
        n = tl.zeros([BLOCK_M * _LANES], tl.int32)
        if BANDED:
            n = _walk_up(
                n, p_lists, b_bound, b_below, b_q, K, b, hk, at, lo, tl.minimum(full_lo, hi), first, S, window, stride_kt,
                scale, softcap, D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, TOPK, BANDED, CAP, TMA, True,
            )  # fmt: skip
        n = _walk_up(
            n, p_lists, b_bound, b_below, b_q, K, b, hk, at, full_lo, full_hi, first, S, window, stride_kt,
            scale, softcap, D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, TOPK, BANDED, CAP, TMA, False,
        )  # fmt: skip
        n = _walk_up(
            n, p_lists, b_bound, b_below, b_q, K, b, hk, at, tl.maximum(full_lo, full_hi), hi, first, S, window, stride_kt,
            scale, softcap, D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, TOPK, BANDED, CAP, TMA, True,
        )  # fmt: skip
        tl.store(p_lists + (_SLOTS * _WORDS - 1), n // _WORDS, mask=m_r)
        tl.store(p_lists + (_SLOTS * _WORDS - 2), b_bound.to(tl.int32, bitcast=True), mask=m_r)
        tl.debug_barrier()  # from here on a thread reads what others stored
        # Two threads to a row: the first half of [2 BLOCK_M] ranks four pairs of the lists, the second the next four.
        o_two = tl.arange(0, 2 * BLOCK_M)
        later = o_two // BLOCK_M * 4
        o_two = tl.minimum(m0 + _dealt(o_two % BLOCK_M, BLOCK_M), T - 1)
        p_row = LISTS + (here + o_two) * (_LANES * _SLOTS * _WORDS)
        n0 = tl.load(p_row + (1 * _SLOTS * _WORDS - 1))
        n1 = tl.load(p_row + (2 * _SLOTS * _WORDS - 1))
        n2 = tl.load(p_row + (3 * _SLOTS * _WORDS - 1))
        n3 = tl.load(p_row + (4 * _SLOTS * _WORDS - 1))
        longest = tl.maximum(tl.maximum(n0, n1), tl.maximum(n2, n3))
        n1 += n0
        n2 += n1
        n3 += n2
        failed = tl.max((longest > _FULL).to(tl.int32), 0)
        if failed == 0:
            best = _four_pairs(later, p_row, n0, n1, n2, n3)
            for i in range(8, tl.max(n3, 0), 8):
                best = _best_of(best, _four_pairs(i + later, p_row, n0, n1, n2, n3))
            tl.debug_barrier()  # the lists have been read
            for slot in tl.static_range(8):
                x, key = best[slot]
                tl.store(p_row + 2 * slot, x.to(tl.int32, bitcast=True), mask=later > 0)
                tl.store(p_row + 2 * slot + 1, key, mask=later > 0)
            tl.debug_barrier()
            best = _best_of(best, (
                _stored(p_row), _stored(p_row + 2), _stored(p_row + 4), _stored(p_row + 6),
                _stored(p_row + 8), _stored(p_row + 10), _stored(p_row + 12), _stored(p_row + 14),
            ))  # fmt: skip
            row_r = bh.to(tl.int64) * T + o_two
            kth, _ = best[TOPK - 1]
            wanted = tl.load(p_row + (2 * _SLOTS * _WORDS - 2)).to(tl.float32, bitcast=True)  # the row's bound
            short = (later == 0) & (wanted > SEEN) & (kth < wanted)
            failed = tl.max(short.to(tl.int32), 0)
            if failed == 0:
                log = tl.load(LSE + row_r) * LOG2E
                for slot in tl.static_range(TOPK):
                    x, key = best[slot]
                    found = x > SEEN
                    tl.store(TOP_P + row_r * TOPK + slot, tl.where(found, tl.exp2(x * c - log), 0.0), mask=later == 0)
                    tl.store(TOP_I + row_r * TOPK + slot, tl.where(found, key, -1), mask=later == 0)
    if failed > 0:
        b_top, o_top = rounds(
            b_q, K, b, hk, at, m_row, lo, full_lo, full_hi, hi, first, S, window, stride_kt, scale, softcap,
            D, DP, BLOCK_M, BLOCK_N, STAGES, PREC, TOPK, KP, BANDED, CAP, TMA,
        )  # fmt: skip
        row = bh.to(tl.int64) * T + o_m
        log = tl.load(LSE + row, mask=m_row, other=0.0) * LOG2E
        used = (b_top > SEEN) & (tl.arange(0, KP) < TOPK)[None, :]
        for slot in tl.static_range(TOPK):  # the slots hold the best keys in no order: pick them by score, then key
            best = tl.max(tl.where(used, b_top, NEG), 1)
            key = tl.min(tl.where(used & (b_top == best[:, None]), o_top, NO_KEY), 1)
            found = best > SEEN
            m_taken = used & (b_top == best[:, None]) & (o_top == key[:, None])
            tl.store(TOP_P + row * TOPK + slot, tl.where(found, tl.exp2(best * c - log), 0.0), mask=m_row)
            tl.store(TOP_I + row * TOPK + slot, tl.where(found, key, -1), mask=m_row)
            used = used & (~m_taken)


def best_of_bins(q: torch.Tensor, k: torch.Tensor, topk: int) -> torch.Tensor | None:
    """Memory, float32 [B, H, T, BINS], where the pass before stores the best score of each bin; None if that is of no use."""
    if not topk or not configs.bounded(q.dtype, descriptors=launch.describable(q, k)):
        return None
    return launch.empty((*q.shape[:3], BINS), torch.float32, q)


def top_keys(out: tuple[torch.Tensor, torch.Tensor], q, k, lse, best, starts, scale, window, softcap, topk):
    """Weights and positions of the topk heaviest keys into `out`, float32 and int32 [B, H, T, topk]; lse of the same rows.

    best: what `best_of_bins` returned, filled.
    """
    B, H, T, D = q.shape
    config = configs.pick("extract_topk", q.dtype, D, descriptors=launch.describable(q, k))
    DP = configs.padded(D)
    tensors = [q, k]
    if config.tma:
        tensors = [launch.descriptor(x, [1, 1, n, DP]) for x, n in zip(tensors, (config.block_m, config.block_n))]
    heads = B * H if best is None else min(B * H, max(1, LISTS // (_RECORD * T)))
    lists = lse if best is None else launch.empty((heads * T * _RECORD // 4,), torch.int32, q)
    for before in range(0, B * H, heads):
        n = min(heads, B * H - before)
        together = launch.heads_together(n, k.shape[2], D, H // k.shape[1], q.element_size())
        topk_kernel[(triton.cdiv(T, config.block_m) * n,)](
            *tensors, lse if starts is None else starts, lse, lse if best is None else best, lists, *out,
            *q.stride()[:3], *k.stride()[:3], H, T, k.shape[2], scale, softcap, window or launch.NO_WINDOW, together, before,
            GROUP=H // k.shape[1], D=D, DP=DP, BLOCK_M=config.block_m, BLOCK_N=config.block_n, STAGES=config.stages,
            PREC=config.precision, TOPK=topk, KP=triton.next_power_of_2(topk), PADDED=starts is not None,
            BANDED=starts is not None or window > 0, CAP=softcap > 0, TMA=config.tma, BOUNDED=best is not None,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
