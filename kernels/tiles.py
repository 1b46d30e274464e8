"""What the attention kernels share on the device: constants, masked tile loads, soft-capping, who sees whom."""

import triton
import triton.language as tl

NEG = tl.constexpr(-1.0e30)
"""Score of an invisible key. Finite, so that 0 * (NEG - NEG) and 0 * NEG are 0 where an infinity would give NaN."""
SEEN = tl.constexpr(-1.0e29)
"""A running maximum below this belongs to a row that has seen no key."""
NO_KEY = tl.constexpr(0x7FFFFFFF)
"""After every key."""
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def placed(pid, tiles, together):
    """(tile, head) of a program: the first tile of `together` heads, then their second, ..., then those of the next heads.

    Under a causal mask tiles take unequal time. If the longest come first the last ones to end are short, and if that is so
    of several heads at once, all multiprocessors end together; not more heads than the second-level cache holds.
    """
    within = pid % (tiles * together)
    return within // together, pid // (tiles * together) * together + within % together


@triton.jit
def load_rows(X, offs, low, high, stride, D: tl.constexpr, DP: tl.constexpr, MASKED: tl.constexpr):
    """[rows, DP] tile of the rows `offs` of X; columns D to DP, and rows outside [low, high) if MASKED, are 0."""
    offs_d = tl.arange(0, DP)
    ptrs = X + offs.to(tl.int64)[:, None] * stride + offs_d[None, :]
    if MASKED:
        ok = (offs >= low) & (offs < high)
        if D == DP:
            return tl.load(ptrs, mask=ok[:, None], other=0.0)
        return tl.load(ptrs, mask=ok[:, None] & (offs_d < D)[None, :], other=0.0)
    if D == DP:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=(offs_d < D)[None, :], other=0.0)


@triton.jit
def capped(s, scale, softcap):
    """softcap * tanh(s * scale / softcap) in float32: a polynomial near 0, where the quotient form cancels."""
    x = s * (scale / softcap)
    a = tl.abs(x)
    e = tl.exp2(a * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    y = a * a
    near = a * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    t = tl.where(a < 0.25, near, far)
    return softcap * tl.where(x < 0.0, -t, t)


@triton.jit
def to_log2(scale, CAP: tl.constexpr):
    """By what a score is multiplied before exp2. CAP: scores are `capped`, which has applied the scale."""
    if CAP:
        return LOG2E + 0.0 * scale
    return scale * LOG2E


@triton.jit
def visible(at, key, first, window):
    """Whether the query at key position `at` sees `key`: first <= key <= at, and key within the window."""
    return (key <= at) & (key >= first) & (at - key < window)


@triton.jit
def scores(
    b_q, K, b, hk, start, o_n, at, first, S, window, stride_kt, scale, softcap,
    D: tl.constexpr, DP: tl.constexpr, BLOCK_N: tl.constexpr, PREC: tl.constexpr, CAP: tl.constexpr, TMA: tl.constexpr,
    MASKED: tl.constexpr, BANDED: tl.constexpr = True,
):  # fmt: skip
    """Scores [BLOCK_M, BLOCK_N] of the queries b_q [BLOCK_M, DP] at the key positions `at`, over the keys o_n from `start` on.
    TMA: K is a descriptor of all keys; otherwise it points to those of the head. MASKED: NEG where a query sees no key; not
    BANDED: it sees all keys up to its own."""
    if TMA:
        b_k = K.load([b, hk, start, 0]).reshape(BLOCK_N, DP)
    else:
        b_k = load_rows(K, o_n, first, S, stride_kt, D, DP, MASKED)
    b_s = tl.dot(b_q, b_k.T, input_precision=PREC)  # [BLOCK_M, DP] [DP, BLOCK_N] -> [BLOCK_M, BLOCK_N]
    if CAP:
        b_s = capped(b_s, scale, softcap)
    if MASKED:
        if BANDED:
            b_s = tl.where(visible(at[:, None], o_n[None, :], first, window), b_s, NEG)
        else:
            b_s = tl.where(o_n[None, :] <= at[:, None], b_s, NEG)
    return b_s


@triton.jit
def stretches(m0, m1, shift, first, window, BLOCK_N: tl.constexpr, BANDED: tl.constexpr):
    """(lo, full_lo, full_hi, hi): the keys that the query rows m0 to m1 - 1 see lie in lo to hi, and every row sees all of
    full_lo to full_hi. Before and after these only some rows see a key. BANDED: rows may not see the first keys."""
    hi = m1 + shift
    full_hi = (m0 + shift + 1) // BLOCK_N * BLOCK_N
    full_lo = 0
    lo = 0
    if BANDED:
        full_lo = tl.cdiv(tl.maximum(first, hi - window), BLOCK_N) * BLOCK_N
        full_lo = tl.minimum(full_lo, tl.cdiv(hi, BLOCK_N) * BLOCK_N)
        lo = tl.maximum(first, tl.maximum(m0 + shift - window + 1, 0)) // BLOCK_N * BLOCK_N
    return lo, full_lo, full_hi, hi


@triton.jit
def joined(b_log, m_empty, sink):
    """A row's normaliser over its keys, joined by its head's sink: (log2 of both, by how much the sink raised it, the share
    of the weights that the keys keep). b_log: log2 of the keys' sum of exponentials; m_empty: rows that see no key."""
    b_sink = sink * LOG2E
    above = b_sink - b_log
    rise = tl.maximum(above, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(above)))
    return tl.where(m_empty, b_sink, b_log + rise), rise, tl.exp2(-rise)


@triton.jit
def bf16_part(x):
    """The leading bfloat16 part of a float32 value, and what is left of it."""
    hi = x.to(tl.bfloat16)
    return hi, x - hi.to(tl.float32)
