"""prefix_attn on the GPU: attention of packed rows of many variants, own causal suffix first, then the shared prefix.

A tile holds BLOCK_R rows times the query heads of one key head. Each row carries its own ranges, so one tile may hold
rows of several variants and of several bases: own keys are walked over flat, with a mask; the part of the prefix that
all rows of the tile share runs without one; what only part of them see comes last, masked. A window only moves the
ranges.

Few rows after a long prefix give fewer programs than there are multiprocessors. The shared keys are then split among programs
(Dao et al. 2023, Flash-Decoding), and a second kernel joins what they found.
"""

import torch
import triton
import triton.language as tl
from pycotmech.kernels import configs, launch
from pycotmech.kernels.tiles import LN2, NEG, SEEN, capped, joined, load_rows, to_log2

MANY_ROWS = 128 * 128
"""From so many rows times heads on, the larger tiles occupy every multiprocessor."""
SPLIT_KEYS = 128
"""Shared keys that a program reads at least where they are split."""
JOIN_KEYS = 512
"""Shared keys that a program reads while a second kernel is launched and joins the parts, about: splitting must save these."""
KEYS_ALIKE = 256
MAX_SPLITS = 64
_FAR = tl.constexpr(0x7FFFFFFF)


def splits(programs: int, keys: int, multiprocessors: int) -> int:
    """Into how many parts the shared keys are cut for so many programs: as many as occupy every multiprocessor once, if that
    saves more than joining the parts costs. Lengths that round up to one multiple of KEYS_ALIKE are cut alike, so that a pass
    sums in one order whether it is replayed in a larger buffer or not."""
    keys = -(-keys // KEYS_ALIKE) * KEYS_ALIKE
    n = max(1, min(multiprocessors // programs, keys // SPLIT_KEYS, MAX_SPLITS))
    return n if keys - keys // n > JOIN_KEYS else 1


def own_stages(config: configs.Config, DP: int) -> int:
    """Stages of the pipeline that reads own keys: two where the compiler shows that they cost no memory and no spills."""
    return 2 if config.tma and DP <= 128 else 1


@triton.jit
def _uncut(m_seen, pos, row, h, CUTS, e_lo, e_hi):
    """`m_seen` without what the cuts e_lo to e_hi take out. Only launches with cuts have this inner loop."""
    for e in range(e_lo, e_hi):
        cut = CUTS + e * 4
        head = tl.load(cut + 1)
        m_cut = (row == tl.load(cut)) & ((head < 0) | (head == h))
        m_seen = m_seen & ~(m_cut[:, None] & (pos >= tl.load(cut + 2)) & (pos < tl.load(cut + 3)))
    return m_seen


@triton.jit
def _attend(
    b_z, b_m, b_l, b_q, K, V, hk, start, first, end, key_lo, key_hi, base, row, h, CUTS, e_lo, e_hi, stride_kt, stride_vt,
    c, scale, softcap, D: tl.constexpr, DP: tl.constexpr, BLOCK_N: tl.constexpr, PREC: tl.constexpr, CAP: tl.constexpr,
    TMA: tl.constexpr, HAS_CUTS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block of keys from `start` on; a row sees keys key_lo to key_hi, and key j is at its position j + base."""
    key = start + tl.arange(0, BLOCK_N)
    if TMA:
        b_k = K.load([start, hk, 0]).reshape(BLOCK_N, DP)
        b_v = V.load([start, hk, 0]).reshape(BLOCK_N, DP)
    else:
        b_k = load_rows(K, key, first, end, stride_kt, D, DP, MASKED)
        b_v = load_rows(V, key, first, end, stride_vt, D, DP, MASKED)
    b_s = tl.dot(b_q, b_k.T, input_precision=PREC)  # [BLOCK_M, DP] [DP, BLOCK_N] -> [BLOCK_M, BLOCK_N]
    if CAP:
        b_s = capped(b_s, scale, softcap)
    if MASKED:
        m_seen = (key[None, :] >= key_lo[:, None]) & (key[None, :] < key_hi[:, None])
        if HAS_CUTS:
            m_seen = _uncut(m_seen, key[None, :] + base[:, None], row, h, CUTS, e_lo, e_hi)
        b_s = tl.where(m_seen, b_s, NEG)
    m_new = tl.maximum(b_m, tl.max(b_s, 1))
    alpha = tl.exp2((b_m - m_new) * c)
    b_p = tl.exp2((b_s - m_new[:, None]) * c)
    b_l = b_l * alpha + tl.sum(b_p, 1)
    # [BLOCK_M, BLOCK_N] [BLOCK_N, DP] -> [BLOCK_M, DP]
    b_z = tl.dot(b_p.to(b_v.dtype), b_v, b_z * alpha[:, None], input_precision=PREC)
    return b_z, m_new, b_l


@triton.jit(do_not_specialize=["R", "H", "window"])
def prefix_kernel(
    Q, KF, VF, KS, VS, KO, VO, ROWS, CUTS, CUT_LO, SINKS, Z, LSE,
    stride_qr, stride_qh, stride_kst, stride_ksh, stride_vst, stride_vsh, stride_kot, stride_koh, stride_vot,
    stride_voh, stride_zr, stride_zh, R, H, scale, softcap, window,
    GROUP: tl.constexpr, GROUP_P: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr, STAGES: tl.constexpr, OWN_STAGES: tl.constexpr, PREC: tl.constexpr, HAS_CUTS: tl.constexpr,
    CAP: tl.constexpr, SINK: tl.constexpr, TMA: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows times the query heads of one key head: BLOCK_M query vectors, lane by lane.

    SPLIT: of one part of the shared keys, and in the first part of the own ones; Z and LSE then get the part's float32 z and
    the log2 of its sum, part after part, and the sinks come later (`join_kernel`).

    Names: p_ pointers, b_ tiles, o_ offsets, m_ masks; b_m running maximum, b_l sum of weights.
    """
    BLOCK_M: tl.constexpr = BLOCK_R * GROUP_P
    r0 = tl.program_id(0) * BLOCK_R
    hk = tl.program_id(1)
    lane = tl.arange(0, BLOCK_M)
    row = r0 + lane // GROUP_P
    g = lane % GROUP_P
    h = hk * GROUP + g
    m_row = (row < R) & (g < GROUP)
    o_d = tl.arange(0, DP)
    m_d = (o_d < D)[None, :]
    p_q = Q + row.to(tl.int64) * stride_qr + h.to(tl.int64) * stride_qh
    b_q = tl.load(p_q[:, None] + o_d[None, :], mask=m_row[:, None] & m_d, other=0.0)
    if not TMA:  # KF, VF: what all rows of a tile see, by descriptor where there are any; the rest goes by pointers
        KF += hk.to(tl.int64) * stride_ksh
        VF += hk.to(tl.int64) * stride_vsh
    KS += hk.to(tl.int64) * stride_ksh
    VS += hk.to(tl.int64) * stride_vsh
    KO += hk.to(tl.int64) * stride_koh
    VO += hk.to(tl.int64) * stride_voh
    own_lo = tl.load(ROWS + row * 4, mask=m_row, other=0)
    own_hi = tl.load(ROWS + row * 4 + 1, mask=m_row, other=0)
    sh_lo = tl.load(ROWS + row * 4 + 2, mask=m_row, other=0)
    sh_hi = tl.load(ROWS + row * 4 + 3, mask=m_row, other=0)
    n_shared = sh_hi - sh_lo
    own_base = n_shared - own_lo  # position of own key j: j + own_base; of shared key j: j - the range's first
    sh_base = -sh_lo
    gone = tl.maximum(n_shared + own_hi - own_lo - window, 0)  # positions before the window
    sh_lo = tl.minimum(sh_lo + gone, sh_hi)
    own_lo = tl.minimum(own_lo + tl.maximum(gone - n_shared, 0), own_hi)
    part = tl.program_id(2)
    if SPLIT:
        own_hi = tl.where(part == 0, own_hi, own_lo)
    e_lo = 0
    e_hi = 0
    if HAS_CUTS:
        e_lo = tl.load(CUT_LO + r0)
        e_hi = tl.load(CUT_LO + tl.minimum(r0 + BLOCK_R, R))
    c = to_log2(scale, CAP)
    b_m = tl.full([BLOCK_M], NEG, tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_z = tl.zeros([BLOCK_M, DP], tl.float32)

    n_own = own_hi - own_lo
    lo = tl.min(tl.where(m_row & (n_own > 0), own_lo, _FAR), 0)
    hi = tl.max(tl.where(m_row & (n_own > 0), own_hi, 0), 0)
    if not HAS_CUTS:  # noqa: SIM102  decided at compile time; the condition inside, at run time
        # Where every row has one own key (one-position sweeps) it is read row by row, without a walk over its
        # neighbours' keys.
        if (tl.max(tl.where(m_row, n_own, 1), 0) == 1) & (tl.min(tl.where(m_row, n_own, 1), 0) == 1):
            b_k1 = load_rows(KO, own_lo, lo, hi, stride_kot, D, DP, True)
            b_v1 = load_rows(VO, own_lo, lo, hi, stride_vot, D, DP, True)
            b_m = tl.sum(b_q.to(tl.float32) * b_k1.to(tl.float32), 1)
            if CAP:
                b_m = capped(b_m, scale, softcap)
            b_l = tl.full([BLOCK_M], 1.0, tl.float32)
            b_z = b_v1.to(tl.float32)
            hi = lo
    for start in tl.range(lo, hi, BLOCK_N, num_stages=OWN_STAGES):
        b_z, b_m, b_l = _attend(
            b_z, b_m, b_l, b_q, KO, VO, hk, start, lo, hi, own_lo, own_hi, own_base, row, h, CUTS, e_lo, e_hi,
            stride_kot, stride_vot, c, scale, softcap, D, DP, BLOCK_N, PREC, CAP, False, HAS_CUTS, True,
        )  # fmt: skip

    m_sees = m_row & (sh_hi > sh_lo)
    lo = tl.min(tl.where(m_sees, sh_lo, _FAR), 0)
    hi = tl.max(tl.where(m_sees, sh_hi, 0), 0)
    full_lo = tl.max(tl.where(m_row, sh_lo, 0), 0)  # every row of the tile sees full_lo to full_hi, and masks nothing there
    full_hi = tl.min(tl.where(m_row, sh_hi, _FAR), 0)
    lo = tl.minimum(lo, hi)
    if SPLIT:
        n_part = tl.cdiv(tl.cdiv(hi - lo, BLOCK_N), tl.num_programs(2)) * BLOCK_N
        lo = tl.minimum(lo + part * n_part, hi)
        hi = tl.minimum(lo + n_part, hi)
        full_hi = tl.minimum(full_hi, hi)
    full_lo = tl.minimum(lo + tl.cdiv(tl.maximum(full_lo - lo, 0), BLOCK_N) * BLOCK_N, lo + tl.cdiv(hi - lo, BLOCK_N) * BLOCK_N)
    full_hi = full_lo + tl.maximum(full_hi - full_lo, 0) // BLOCK_N * BLOCK_N
    if HAS_CUTS:
        full_hi = full_lo
    for start in tl.range(full_lo, full_hi, BLOCK_N, num_stages=STAGES):
        b_z, b_m, b_l = _attend(
            b_z, b_m, b_l, b_q, KF, VF, hk, start, lo, hi, sh_lo, sh_hi, sh_base, row, h, CUTS, e_lo, e_hi,
            stride_kst, stride_vst, c, scale, softcap, D, DP, BLOCK_N, PREC, CAP, TMA, HAS_CUTS, False,
        )  # fmt: skip
    head = (full_lo - lo) // BLOCK_N
    tail = tl.cdiv(tl.maximum(hi - full_hi, 0), BLOCK_N)
    for i in tl.range(0, head + tail, num_stages=1):
        start = tl.where(i < head, lo + i * BLOCK_N, full_hi + (i - head) * BLOCK_N)
        b_z, b_m, b_l = _attend(
            b_z, b_m, b_l, b_q, KS, VS, hk, start, lo, hi, sh_lo, sh_hi, sh_base, row, h, CUTS, e_lo, e_hi,
            stride_kst, stride_vst, c, scale, softcap, D, DP, BLOCK_N, PREC, CAP, False, HAS_CUTS, True,
        )  # fmt: skip

    m_empty = b_m < SEEN
    b_log = b_m * c + tl.log2(b_l)
    z = b_z / b_l[:, None]
    if SINK:
        b_all, _, share = joined(b_log, m_empty, tl.load(SINKS + h, mask=m_row, other=0.0))
        z = z * share[:, None]
    else:
        b_all = tl.where(m_empty, float("-inf"), b_log)
    z = tl.where(m_empty[:, None], 0.0, z)
    if SPLIT:
        Z += part.to(tl.int64) * R * stride_zr
        LSE += part.to(tl.int64) * R * H
    else:
        b_all = b_all * LN2
    p_z = Z + row.to(tl.int64) * stride_zr + h.to(tl.int64) * stride_zh
    tl.store(p_z[:, None] + o_d[None, :], z.to(Z.dtype.element_ty), mask=m_row[:, None] & m_d)
    tl.store(LSE + row.to(tl.int64) * H + h, b_all, mask=m_row)


@triton.jit(do_not_specialize=["H", "n"])
def join_kernel(
    Z_PART, LOG_PART, SINKS, Z, LSE, stride_zr, stride_zh, H, n,
    D: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr, SINK: tl.constexpr,
):  # fmt: skip
    """One head of one row: its n parts, of normalised z and log2 of the sum, joined in their order."""
    row, h = tl.program_id(0), tl.program_id(1)
    lane = row.to(tl.int64) * H + h
    n_lanes = tl.num_programs(0).to(tl.int64) * H
    o_p = tl.arange(0, PARTS)
    o_d = tl.arange(0, DP)
    m_p = o_p < n
    b_log = tl.load(LOG_PART + o_p * n_lanes + lane, mask=m_p, other=float("-inf"))
    b_max = tl.max(b_log, 0)
    m_empty = b_max == float("-inf")
    b_w = tl.exp2(b_log - tl.where(m_empty, 0.0, b_max))
    b_l = tl.sum(b_w, 0)
    p_z = Z_PART + (o_p * n_lanes + lane)[:, None] * D + o_d[None, :]
    b_z = tl.load(p_z, mask=m_p[:, None] & (o_d < D)[None, :], other=0.0)
    z = tl.sum(b_z * b_w[:, None], 0) / b_l
    b_log = b_max + tl.log2(b_l)
    if SINK:
        b_all, _, share = joined(b_log, m_empty, tl.load(SINKS + h))
        z = z * share
    else:
        b_all = tl.where(m_empty, float("-inf"), b_log)
    z = tl.where(m_empty, 0.0, z)
    tl.store(Z + row.to(tl.int64) * stride_zr + h * stride_zh + o_d, z.to(Z.dtype.element_ty), mask=o_d < D)
    tl.store(LSE + lane, b_all * LN2)


def _by_row(cuts, n_rows):
    """The cuts sorted by row, and where each row's begin [R + 1]: made on the device, so that nothing waits for it."""
    cuts = cuts[torch.argsort(cuts[:, 0], stable=True)].contiguous()
    at = torch.arange(n_rows + 1, dtype=torch.int32, device=cuts.device)
    return cuts, torch.searchsorted(cuts[:, 0].contiguous(), at, out_int32=True)


def prefix_attn(q, k_shared, v_shared, k_own, v_own, rows, scale, window, softcap, cuts, sinks=None):
    """The CUDA side of `pycotmech::prefix_attn`; the op's public function has checked the arguments."""
    q, scale = launch.positive_scale(q, scale)
    R, H, D = q.shape
    Hkv = k_own.shape[1]
    z, lse = launch.empty((R, H, D), q.dtype, q), launch.empty((R, H), torch.float32, q)
    if z.numel() == 0:
        return z, lse
    group = H // Hkv
    group_p = triton.next_power_of_2(group)
    has_cuts = cuts is not None and cuts.shape[0] > 0
    kind = "prefix_cuts" if has_cuts else "prefix" if R * group_p * Hkv >= MANY_ROWS else "prefix_few"
    config = configs.pick(kind, q.dtype, D, descriptors=launch.describable(k_shared, v_shared))
    DP = configs.padded(D)
    block_r = max(1, config.block_m // group_p)
    shared = [k_shared, v_shared]
    if config.tma:
        shared = [launch.descriptor(x, [config.block_n, 1, DP]) for x in shared]
    cut_args = _by_row(cuts, R) if has_cuts else (rows, rows)
    tiles = triton.cdiv(R, block_r)
    n = splits(tiles * Hkv, k_shared.shape[0], launch.multiprocessors(q))
    out = (z, lse)
    if n > 1:
        out = launch.empty((n, R, H, D), torch.float32, q), launch.empty((n, R, H), torch.float32, q)
    prefix_kernel[(tiles, Hkv, n)](
        q, *shared, k_shared, v_shared, k_own, v_own, rows.contiguous(), *cut_args, lse if sinks is None else sinks, *out,
        *q.stride()[:2], *k_shared.stride()[:2], *v_shared.stride()[:2], *k_own.stride()[:2], *v_own.stride()[:2],
        *out[0].stride()[-3:-1], R, H, scale, softcap, window or launch.NO_WINDOW,
        GROUP=group, GROUP_P=group_p, D=D, DP=DP, BLOCK_R=block_r, BLOCK_N=config.block_n, STAGES=config.stages,
        OWN_STAGES=own_stages(config, DP), PREC=config.precision, HAS_CUTS=has_cuts, CAP=softcap > 0,
        SINK=sinks is not None and n == 1, TMA=config.tma, SPLIT=n > 1, num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
    if n > 1:
        join_kernel[(R, H)](
            *out, lse if sinks is None else sinks, z, lse, *z.stride()[:2], H, n,
            D=D, DP=DP, PARTS=triton.next_power_of_2(n), SINK=sinks is not None, num_warps=4,
        )  # fmt: skip
    return z, lse
