"""Attention of many variants' rows: each sees a range of its own keys and a range of keys that variants share."""

from __future__ import annotations

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._arguments import check_dense, check_float, check_like, check_scores
from pycotmech.ops._registry import define


def reference(
    q: Tensor,
    k_shared: Tensor,
    v_shared: Tensor,
    k_own: Tensor,
    v_own: Tensor,
    rows: Tensor,
    scale: float,
    window: int,
    softcap: float,
    cuts: Tensor | None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    H, dtype = q.shape[1], common.wide(q.dtype)
    z = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    table = rows.tolist()
    groups: dict[tuple[int, int], list[int]] = {}  # rows of one variant: equal begin of own and of shared keys
    for r, (own, _, shared, _) in enumerate(table):
        groups.setdefault((own, shared), []).append(r)
    cuts_of: dict[int, list[list[int]]] = {}
    for cut in [] if cuts is None else cuts.tolist():
        cuts_of.setdefault(cut[0], []).append(cut)
    for (own, shared), members in groups.items():
        r = torch.tensor(members, device=q.device)
        n_own, n_shared = rows[r, 1].long() - own, rows[r, 3].long() - shared
        parts = (k_shared[shared : shared + int(n_shared.max())], k_own[own : own + int(n_own.max())])
        k = torch.cat(parts).to(dtype).transpose(0, 1)[None]  # [1, Hkv, S, D]
        s = common.scores(q[r].transpose(0, 1)[None], k, scale, softcap)[0]  # [H, r, S]
        j = torch.arange(k.shape[2], device=q.device) - len(parts[0])  # own keys from 0, shared ones below
        at = torch.where(j < 0, j + len(parts[0]), j + n_shared[:, None])  # position of each key, [r, S]
        seen = torch.where(j < 0, at < n_shared[:, None], j < n_own[:, None])
        if window:
            seen = seen & ((n_shared + n_own - 1)[:, None] - at < window)
        seen = seen.expand(H, *at.shape).clone()
        for i, row in enumerate(members):
            for _, h, lo, hi in cuts_of.get(row, []):
                heads = slice(None) if h < 0 else slice(h, h + 1)
                seen[heads, i] &= ~((at[i] >= lo) & (at[i] < hi))
        s = s.masked_fill(~seen, -torch.inf)
        top = common.joined(torch.logsumexp(s, -1), sinks)  # -inf where there is neither key nor sink
        p = (s - torch.where(top.isinf(), 0.0, top)[..., None]).exp()
        v = torch.cat((v_shared[shared : shared + len(parts[0])], v_own[own : own + len(parts[1])]))
        v = common.grouped(v.to(dtype).transpose(0, 1)[None], H)[0]  # [H, S, D]
        z[r] = (p @ v).transpose(0, 1).to(q.dtype)
        lse[r] = top.T
    return z, lse


def fake(
    q: Tensor,
    k_shared: Tensor,
    v_shared: Tensor,
    k_own: Tensor,
    v_own: Tensor,
    rows: Tensor,
    scale: float,
    window: int,
    softcap: float,
    cuts: Tensor | None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:2], dtype=common.wide(q.dtype))


_op = define(
    "prefix_attn(Tensor q, Tensor k_shared, Tensor v_shared, Tensor k_own, Tensor v_own, Tensor rows, float scale, "
    "int window, float softcap, Tensor? cuts, Tensor? sinks=None) -> (Tensor z, Tensor lse)",
    reference,
    fake,
    kernel="prefix_attn:prefix_attn",
)
common.refuse_backward("prefix_attn")


def _check_table(name: str, x: Tensor, q: Tensor) -> None:
    if x.dtype != torch.int32:
        raise TypeError(f"{name} must be torch.int32, got {x.dtype}")
    if x.ndim != 2 or x.shape[1] != 4:
        raise ValueError(f"{name} must be [n, 4], got {list(x.shape)}")
    if x.device != q.device:
        raise ValueError(f"{name} is on {x.device}, q on {q.device}")


def check_rows(rows: Tensor, n_own: int, n_shared: int) -> None:
    """Raises ValueError unless all ranges of a table [R, 4] lie within so many own and shared keys.

    On a GPU these are 16 launches: check a table once, on the CPU, where many calls use it.
    """
    common.check_range("rows[:, :2]", rows[:, :2], 0, n_own, "ranges of k_own")
    common.check_range("rows[:, 2:]", rows[:, 2:], 0, n_shared, "ranges of k_shared")
    lengths = rows[:, 1::2] - rows[:, ::2]
    common.check_range("rows[:, 1::2] - rows[:, ::2]", lengths, 0, max(n_own, n_shared), "lengths of ranges")


def _check(q: Tensor, keys: dict[str, Tensor], rows: Tensor, cuts: Tensor | None, checked: bool) -> None:
    check_float("q", q)
    if q.ndim != 3 or 0 in q.shape[1:]:
        raise ValueError(f"q must be [R, H, D], got {list(q.shape)}")
    R, H, D = q.shape
    for name, x in {"q": q, **keys}.items():
        check_like(name, x, "q", q)
        if x.ndim != 3 or x.shape[2] != D or x.shape[1] == 0:
            raise ValueError(f"{name} must be [keys, Hkv, {D}] (D from q), got {list(x.shape)}")
        check_dense(name, x)
    Hkv = keys["k_own"].shape[1]
    if H % Hkv:
        raise ValueError(f"q has {H} heads, which is no multiple of the {Hkv} heads of k_own")
    for k, v in (("k_shared", "v_shared"), ("k_own", "v_own")):
        if keys[k].shape != keys[v].shape:
            raise ValueError(f"{v} must have the shape of {k}, {list(keys[k].shape)}, got {list(keys[v].shape)}")
    if keys["k_shared"].shape[1] != Hkv:
        raise ValueError(f"k_shared has {keys['k_shared'].shape[1]} heads, k_own {Hkv}")
    _check_table("rows", rows, q)
    if rows.shape[0] != R:
        raise ValueError(f"rows must be [{R}, 4] (R from q), got {list(rows.shape)}")
    if not checked:
        check_rows(rows, keys["k_own"].shape[0], keys["k_shared"].shape[0])
    if cuts is not None:
        _check_table("cuts", cuts, q)
        common.check_range("cuts[:, 0]", cuts[:, 0], 0, R - 1, "rows of q")
        common.check_range("cuts[:, 1]", cuts[:, 1], -1, H - 1, "heads of q, or -1 for all")


def prefix_attn(
    q: Tensor,
    k_shared: Tensor,
    v_shared: Tensor,
    k_own: Tensor,
    v_own: Tensor,
    rows: Tensor,
    scale: float | None = None,
    *,
    window: int = 0,
    softcap: float = 0.0,
    cuts: Tensor | None = None,
    sinks: Tensor | None = None,
    checked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of R packed query rows, each over shared keys followed by keys of its own, exactly.

    One row of the table, drawn: shared keys have the positions 0, 1, ..., own keys follow, the query is the last of them.

        k_shared  . . [s s s s s s] .          rows[r] = (own_lo, own_hi, shared_lo, shared_hi), half-open
        k_own     . . . . [o o o] . .
        positions      0 1 2 3 4 5 6 7 8       the query is at position 8

    q: [R, H, D]; query head h reads key-value head h // (H / Hkv).
    k_shared, v_shared: [P, Hkv, D], the keys of all bases one after the other; P may be 0.
    k_own, v_own: [N, Hkv, D], the packed own keys of all variants.
        All of one dtype (float32, bfloat16, float16, float64), last dim contiguous, else any strides.
    rows: int32 [R, 4], as drawn. Rows of one variant share own_lo, rows of one base share shared_lo.
    scale: of the scores; None: D**-0.5.  softcap: 0, or s = softcap * tanh(s * scale / softcap).
    window: 0, or only keys with position of query - position of key < window are seen.
    checked: whether the ranges in rows are known to be within the keys (`check_rows`); they are then not looked at.
    cuts: int32 [E, 4] = (row, head or -1 for all, lo, hi): keys at positions lo to hi - 1 are cut before the softmax.
    sinks: floating-point [H] or None; a logit of each query head that takes part of the softmax and has no value, as in
        `attn_extract`. No cut or window takes it away.

    Returns z [R, H, D] in the dtype of q and lse [R, H] (float32, natural log, of keys and sink; float64 for float64). A row
    that sees no key: z 0, lse the sink, or -inf without one. Sums in float32; a value does not depend on the other rows
    beyond rounding.

    Raises TypeError and ValueError that name the argument.
    Cost: 4 D products for each seen key of a row and head; the shared keys of a base are packed once for all its rows.
    The shared prefix is taken as in Hydragen (Juravsky et al. 2024), in one pass with the own keys.
    """
    keys = {"k_shared": k_shared, "v_shared": v_shared, "k_own": k_own, "v_own": v_own}
    _check(q, keys, rows, cuts, checked)
    scale = check_scores(scale, window, softcap, q.shape[2])
    run = reference if q.dtype == torch.float64 else _op
    sinks = common.check_sinks(sinks, q.shape[1], q)
    return run(q, k_shared, v_shared, k_own, v_own, rows, scale, window, softcap, cuts, sinks)
