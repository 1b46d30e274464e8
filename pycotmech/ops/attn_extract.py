"""Attention and what is asked of its weights, in one pass that never holds the T x S matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pycotmech.ops import _attention as common
from pycotmech.ops._registry import define
from pycotmech.ops.attn_topk import MAX_TOPK, attn_topk

INLINE_TOPK = 8
"""Up to here the top keys are kept during the one pass; more of them are found by `attn_topk` in a second one."""


class Extract(NamedTuple):
    """What `attn_extract` found. Statistics are float32 (float64 for float64 inputs); what was not asked has size 0."""

    z: Tensor  # [B, H, T, D] sum_j p_j v_j, in the dtype of q
    lse: Tensor  # [B, H, T] log of the sum of exponentials of the scores and the sink; -inf: neither key nor sink
    pmax: Tensor  # [B, H, T] largest weight of a key
    entropy: Tensor  # [B, H, T] -sum_j p_j ln p_j over the keys, nats
    mass: Tensor  # [B, H, T, G] weight on the keys of each segment
    read: Tensor  # [B, H, T, C] sum_j p_j readout_j
    topk_p: Tensor  # [B, H, T, K] largest weights, descending; unused slots 0
    topk_i: Tensor  # [B, H, T, K] int32, their keys, ties to the lowest; unused slots -1


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor | None,
    n_segments: int,
    readout: Tensor | None,
    starts: Tensor | None,
    scale: float,
    entropy: bool,
    topk: int,
    window: int,
    softcap: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, H, T, _ = q.shape
    dtype = common.wide(q.dtype)
    seen = common.visible(common.positions(q, k), k.shape[2], starts, window)  # [B|1, 1, T, S]
    s = common.scores(q, k, scale, softcap)  # [B, H, T, S]
    lse = common.joined(s.masked_fill(~seen, -torch.inf).logsumexp(-1), sinks)
    log_p = torch.where(seen, s - lse[..., None], 0.0)
    p = torch.where(seen, log_p.exp(), 0.0)
    z = (p @ common.grouped(v.to(dtype), H)).to(q.dtype)
    mass = q.new_empty((B, H, T, 0), dtype=dtype)
    if segments is not None:
        labels = segments if segments.ndim == 2 else segments[None]  # [B|1, S]
        member = labels[:, None, :, None] == torch.arange(n_segments, device=q.device)
        mass = p @ member.to(dtype)
    read = q.new_empty((B, H, T, 0), dtype=dtype) if readout is None else p @ readout.to(dtype)
    top = (p.new_empty((B, H, T, 0)), q.new_empty((B, H, T, 0), dtype=torch.int32))
    if topk:
        top = common.best(s, lse, seen, topk)
    return z, lse, p.amax(-1), -(p * log_p).sum(-1) if entropy else p.new_empty(0), mass, read, *top


def fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    segments: Tensor | None,
    n_segments: int,
    readout: Tensor | None,
    starts: Tensor | None,
    scale: float,
    entropy: bool,
    topk: int,
    window: int,
    softcap: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, rows = common.wide(q.dtype), q.shape[:3]
    wide = [
        q.new_empty(shape, dtype=dtype)
        for shape in (
            rows,
            rows,
            rows if entropy else (0,),
            (*rows, 0 if segments is None else n_segments),
            (*rows, 0 if readout is None else readout.shape[-1]),
            (*rows, topk),
        )
    ]
    return q.new_empty(q.shape), *wide, q.new_empty((*rows, topk), dtype=torch.int32)  # type: ignore[return-value]


_op = define(
    "attn_extract(Tensor q, Tensor k, Tensor v, Tensor? segments, int n_segments, Tensor? readout, Tensor? starts, "
    "float scale, bool entropy, int topk, int window, float softcap, Tensor? sinks=None) -> "
    "(Tensor z, Tensor lse, Tensor pmax, Tensor entropy, Tensor mass, Tensor read, Tensor topk_p, Tensor topk_i)",
    reference,
    fake,
    kernel="extract:attn_extract",
)
common.refuse_backward("attn_extract")


def attn_extract(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    segments: Tensor | None = None,
    n_segments: int | None = None,
    readout: Tensor | None = None,
    starts: Tensor | None = None,
    scale: float | None = None,
    entropy: bool = False,
    topk: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
) -> Extract:
    """Causal attention with statistics of its weights: the output z, and of each row what its weights look like.

    q: [B, H, T, D]; k, v: [B, Hkv, S, D] with T <= S (the queries are the last T of S positions) and H a multiple of
        Hkv; float32, bfloat16 or float16 (float64 runs on the reference), contiguous in D.
    segments: int32 [S] or [B, S], the segment of each key, 0 to n_segments - 1, or -1 for none.
    n_segments: G; by default one more than the largest label (which waits for the device).
    readout: float32 [B or 1, H or 1, S, C], any per-key feature, such as the norms of the values.
    starts: int32 [B], the first valid key of each sequence (left padding); None: 0.
    scale: of the scores, by default D ** -0.5.
    topk: how many of the heaviest keys to name, 0 to 64; above 8 they are found in a second pass (`attn_topk`).
    window: a query sees only this many keys, itself included; 0: all before it.
    softcap: scores become softcap * tanh(score / softcap); 0: left as they are.
    sinks: floating-point [H] or None; a logit of each query head that takes part of the softmax and has no value (gpt-oss). It
        is neither scaled nor capped, and no window takes it away. It is part of lse and of no other statistic: the weights of a
        row add up to 1 - exp(sink - lse), and so do its masses over all keys; entropy is the sum over the keys alone.
        `attn_colsum`, `attn_rows`, `attn_entries` and `attn_topk` take this lse, and need no sinks of their own.

    Returns `Extract`. A row that sees no key: z 0, lse -inf (the sink, if there is one), pmax, entropy and masses 0, index -1.
    Raises TypeError and ValueError that name the argument.
    Cost: that of flash attention plus a few per cent; memory O(S D) besides the results. Entropy is accumulated about the
    running maximum (Dao 2023, FlashAttention-2, for the maximum; the shifted sum keeps full relative precision).
    """
    scale = common.check_attention(q, {"k": k, "v": v}, starts, scale, window, softcap)
    B, H, _, _ = q.shape
    S = k.shape[2]
    if segments is None:
        if n_segments:
            raise ValueError(f"n_segments is {n_segments} but segments is None")
        n_segments = 0
    else:
        segments = segments.contiguous()
        common.check_integers("segments", segments, torch.int32, ((S,), (B, S)), q)
        if n_segments is None:
            n_segments = int(segments.max()) + 1
        if n_segments < 1:
            raise ValueError(f"n_segments must be at least 1, got {n_segments}")
        common.check_range("segments", segments, -1, n_segments - 1, "labels below n_segments, or -1 for none")
    if readout is not None:
        if readout.dtype != common.wide(q.dtype) or readout.device != q.device:
            want = common.wide(q.dtype)
            raise TypeError(f"readout must be {want} on {q.device}, got {readout.dtype} on {readout.device}")
        if list(readout.shape[:-1]) not in ([b, h, S] for b in (1, B) for h in (1, H)) or readout.shape[-1] < 1:
            raise ValueError(f"readout must be [{B} or 1, {H} or 1, {S}, C], got {list(readout.shape)}")
        if readout.stride(-1) != 1:
            raise ValueError(f"readout must be contiguous in its last dim, got stride {readout.stride(-1)}")
    if not 0 <= topk <= MAX_TOPK:
        raise ValueError(f"topk must be 0 to {MAX_TOPK}, got {topk}")
    inline = topk if topk <= INLINE_TOPK else 0
    run = reference if q.dtype == torch.float64 else _op
    starts = None if starts is None else starts.contiguous()
    sinks = common.check_sinks(sinks, H, q)
    options = (readout, starts, scale, entropy, inline, window, softcap, sinks)
    out = Extract(*run(q, k, v, segments, n_segments, *options))
    if topk > inline:
        p, i = attn_topk(q, k, out.lse, topk=topk, starts=starts, scale=scale, window=window, softcap=softcap)
        out = out._replace(topk_p=p, topk_i=i)
    return out
