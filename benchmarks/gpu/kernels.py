"""Every kernel against float64 on the device, at the shapes of Llama-2 7B and at lengths up to 32,768.

Inputs are drawn anew for each case and lie between margins of NaN; outputs are NaN before a kernel writes them. The output of
attention may have twice the error of PyTorch's own attention in the same dtype, or what `ROUNDED` allows; statistics, which are
float32 whatever the dtype, have limits of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import truth
from benchmarks.gpu.bench import Bench, poisoned_outputs, relative, surrounded
from benchmarks.gpu.found import Found
from pycotmech import ops

STATISTICS = {"lse": 4e-6, "pmax": 2e-5, "entropy": 2e-5, "mass": 2e-5, "read": 2e-5, "topk_p": 2e-5, "received": 2e-5}
"""Relative errors in the norm."""
ROUNDED = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}
"""Of what is computed in float32 and rounded once to this dtype."""
SEGMENTS = 8


def run(bench: Bench, found: Found) -> None:
    H, Hkv, D = (4, 2, 64) if bench.small else (32, 32, 128)
    for T in (40, 96) if bench.small else (1024, 8192, 32768):
        for dtype in (torch.bfloat16, torch.float32) if T <= 1024 else (torch.bfloat16,):
            name = f"{_short(dtype)}, T = {T:,}"
            if bench.left() < 12:
                found.not_run(name)
                continue
            with found.part(f"attention, {name}"):
                _attention(bench, found, name, dtype, H, Hkv, T, D)
    for dtype in (torch.bfloat16, torch.float32):
        with found.part(f"prefix_attn, {_short(dtype)}"):
            _packed(bench, found, dtype, H, Hkv, D)
        with found.part(f"row kernels, {_short(dtype)}"):
            _rows(bench, found, dtype, H, D)


def warm(part: str, bench: Bench) -> None:
    """Runs one of `PARTS` with little data, so that its kernels are in Triton's cache; what it finds is not kept."""
    found, dtype = Found(), getattr(torch, part.split(", ")[1])
    H, Hkv, D = (4, 2, 64) if bench.small else (32, 32, 128)
    if part.startswith("attention"):
        _attention(bench, found, part, dtype, H, Hkv, 48 if bench.small else 256, D)
    elif part.startswith("prefix"):
        _packed(bench, found, dtype, H, Hkv, D)
    else:
        _rows(bench, found, dtype, H, D)


PARTS = [f"{part}, {dtype}" for part in ("attention", "prefix", "rows") for dtype in ("bfloat16", "float32")]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _normal(bench: Bench, *shape: int, dtype: torch.dtype, size: float = 1.0) -> Tensor:
    return surrounded((torch.randn(*shape, device=bench.device) * size).to(dtype))


def _attention(bench: Bench, found: Found, name: str, dtype: torch.dtype, H: int, Hkv: int, T: int, D: int) -> None:
    q = _normal(bench, 1, H, T, D, dtype=dtype, size=2)  # peaked, or every pattern is flat
    k, v = (_normal(bench, 1, Hkv, T, D, dtype=dtype) for _ in range(2))
    segments = torch.randint(-1, SEGMENTS, (T,), device=bench.device, dtype=torch.int32)
    readout = torch.rand(1, 1, T, 2, device=bench.device)
    heads = [0, H - 1]
    long = T > 8192
    want = truth.attention(q, k, v, heads, segments=segments, n_segments=SEGMENTS, readout=readout[0, 0], topk=33)
    weights_of_top = F.pad(want.pop("topk_p"), (0, max(0, 33 - T)))
    want["topk_p"] = weights_of_top[..., :8]
    theirs = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=Hkv != H)[0, heads]
    # float32 is multiplied as three products of TF32, which moves z by up to 9e-7 (simulated); PyTorch may do it exactly.
    limit = max(2 * relative(theirs, want["z"]), ROUNDED[dtype])
    asked = {"entropy": True, "segments": segments, "n_segments": SEGMENTS}
    calls: dict[str, Callable[[], ops.Extract]] = {
        "attn_extract z": lambda: ops.attn_extract(q, k, v),
        "attn_extract all": lambda: ops.attn_extract(q, k, v, topk=8, **asked),
        "attn_extract readout": lambda: ops.attn_extract(q, k, v, readout=readout, **asked),
    }
    lse = None
    for call_name, call in calls.items():
        with poisoned_outputs():
            out = call()
        lse, good = out.lse, True
        for key in ("z", "lse", "pmax", "entropy", "mass", "read", "topk_p"):
            got = getattr(out, key)
            if got.numel():
                of_heads = relative(got[0, heads], want[key])
                whole = of_heads if bool(got.isfinite().all()) else float("nan")
                good &= found.check(f"{call_name}, {name}: {key}", whole, limit if key == "z" else STATISTICS[key])
        found.figure(f"{call_name}, {name}", bench.timed(call, times=3).median * 1e3, "ms", checked=good)
    assert lse is not None
    with poisoned_outputs():
        got = ops.attn_colsum(q, k, lse)
    good = found.check(f"attn_colsum, {name}", relative(got[0, heads], want["received"]), STATISTICS["received"])
    found.figure(
        f"attn_colsum, {name}", bench.timed(lambda: ops.attn_colsum(q, k, lse), times=3).median * 1e3, "ms", checked=good
    )
    rows = torch.tensor([0, T // 2, T - 1], device=bench.device)
    with poisoned_outputs():
        p = ops.attn_rows(q, k, lse, rows)
    # The weights of a row are those with which the truth's z is made: against the identity they are the row itself.
    s = (q[0, heads][:, rows].double() @ k[0, [h * Hkv // H for h in heads]].double().mT) * D**-0.5
    seen = torch.arange(T, device=bench.device) <= rows[:, None]
    weights = torch.where(seen, (s - want["lse"][:, rows, None]).exp(), 0.0)
    found.check(f"attn_rows, {name}", relative(p[0, heads], weights), STATISTICS["pmax"])
    keys = torch.tensor([0, T // 3, T - 1], device=bench.device)
    with poisoned_outputs():
        e = ops.attn_entries(q, k, lse, rows, keys)
    found.check(f"attn_entries, {name}", relative(e[0, heads], weights[:, torch.arange(3), keys]), STATISTICS["pmax"])
    if not long:
        with poisoned_outputs():
            top, _ = ops.attn_topk(q, k, lse, topk=33)
        found.check(f"attn_topk 33, {name}", relative(top[0, heads], weights_of_top), STATISTICS["topk_p"])
    if T <= 1024:
        for what, options in {"window": {"window": max(5, T // 7)}, "soft-cap": {"softcap": 5.0}}.items():
            w = truth.attention(q, k, v, heads, **options)
            with poisoned_outputs():
                out = ops.attn_extract(q, k, v, entropy=True, **options)
            for key in ("lse", "entropy"):
                found.check(
                    f"attn_extract {what}, {name}: {key}", relative(getattr(out, key)[0, heads], w[key]), STATISTICS[key]
                )
            found.check(f"attn_extract {what}, {name}: z", relative(out.z[0, heads], w["z"]), ROUNDED[dtype])


def _packed(bench: Bench, found: Found, dtype: torch.dtype, H: int, Hkv: int, D: int) -> None:
    """The staircase's launches: single rows and suffixes of 40 on a shared prefix; a long prefix; whole prompts."""
    small = {"one position": (64, 1, 40), "suffixes": (6, 9, 40)}
    long = {"few rows, long prefix": (64, 1, 32768), "4 rows, long prefix": (4, 1, 32768), "prompt": (1, 2048, 0)}
    cases = small if bench.small else {"one position": (1024, 1, 472), "suffixes": (100, 40, 600), **long}
    for name, (variants, own, prefix) in cases.items():
        R = variants * own
        q = _normal(bench, R, H, D, dtype=dtype)
        ks, vs = (_normal(bench, prefix, Hkv, D, dtype=dtype) for _ in range(2))
        ko, vo = (_normal(bench, R, Hkv, D, dtype=dtype) for _ in range(2))
        row = torch.arange(R)
        first = row - row % own
        table = torch.stack((first, row + 1, torch.zeros_like(row), torch.full_like(row, prefix)), 1).int().to(bench.device)
        which = sorted({*range(0, R, max(1, R // 24)), R - 1})
        want = truth.packed(q, ks, vs, ko, vo, table, which)
        with poisoned_outputs():
            z, _ = ops.prefix_attn(q, ks, vs, ko, vo, table)
        error = relative(z[which], want) if bool(z.isfinite().all()) else float("nan")
        # Weights are rounded to the dtype before they meet the values, and what is summed once more.
        good = found.check(f"prefix_attn {name}, {_short(dtype)}", error, ROUNDED[dtype] * 1.5)
        t = bench.timed(lambda q=q, ks=ks, vs=vs, ko=ko, vo=vo, table=table: ops.prefix_attn(q, ks, vs, ko, vo, table), times=3)
        found.figure(f"prefix_attn {name}, {_short(dtype)}", t.median * 1e3, "ms", checked=good)


def _rows(bench: Bench, found: Found, dtype: torch.dtype, H: int, D: int) -> None:
    """What goes over rows of the residual stream once: limited by memory, so the figures are TB/s."""
    R, d, mlp = (33, H * D, 3 * H * D) if bench.small else (8192, H * D, 11008)
    limit, name = ROUNDED[dtype], _short(dtype)

    x, delta, gain = torch.randn(R, d, device=bench.device), _normal(bench, R, d, dtype=dtype), _normal(bench, d, dtype=dtype)
    added = x.double() + delta.double()
    want = added * (added.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain.double()
    with poisoned_outputs():
        y = ops.add_rms_norm(x, delta, gain, 1e-5)
    good = found.check(f"add_rms_norm, {name}", relative(y, want), limit)
    good &= found.check(f"add_rms_norm, {name}: x", relative(x, added), 1e-7)
    t = bench.timed(lambda: ops.add_rms_norm(x, delta, gain, 1e-5)).median
    found.figure(f"add_rms_norm, {name}", (2 * x.nbytes + delta.nbytes + y.nbytes) / t / 1e12, "TB/s", checked=good)

    x, angle = _normal(bench, R, H, D, dtype=dtype), torch.randn(R, D, device=bench.device)
    cos, sin = angle.cos(), angle.sin()
    a, b = x.double().chunk(2, -1)
    turned = torch.cat((-b, a), -1) * sin[:, None].double() + x.double() * cos[:, None].double()
    ops.rope(x, cos, sin)
    good = found.check(f"rope, {name}", relative(x, turned), limit)
    t = bench.timed(lambda: ops.rope(x, cos, sin)).median
    found.figure(f"rope, {name}", 2 * x.nbytes / t / 1e12, "TB/s", checked=good)

    q, k, v = (_normal(bench, R, H, D, dtype=dtype) for _ in range(3))
    a, b = torch.stack((q, k)).double().chunk(2, -1)
    turned = torch.cat((-b, a), -1) * sin[:, None].double() + torch.stack((q, k)).double() * cos[:, None].double()
    with poisoned_outputs():
        kept = torch.empty_like(k), torch.empty_like(v)
    ops.rope_keys(q, k, v, cos, sin, *kept)
    good = found.check(f"rope_keys, {name}: queries and keys", relative(torch.stack((q, kept[0])), turned), limit)
    good &= found.check(f"rope_keys, {name}: values that differ", float((kept[1] != v).sum()), 0)
    t = bench.timed(lambda: ops.rope_keys(q, k, v, cos, sin, *kept)).median
    found.figure(f"rope_keys, {name}", 6 * k.nbytes / t / 1e12, "TB/s", checked=good)

    gate, up = (_normal(bench, R, mlp, dtype=dtype) for _ in range(2))
    with poisoned_outputs():
        y = ops.swiglu(gate, up)
    good = found.check(f"swiglu, {name}", relative(y, F.silu(gate.double()) * up.double()), limit)
    t = bench.timed(lambda: ops.swiglu(gate, up)).median
    found.figure(f"swiglu, {name}", 3 * y.nbytes / t / 1e12, "TB/s", checked=good)

    dz, w_o = _normal(bench, 1024 if not bench.small else R, D, dtype=dtype), _normal(bench, d, H * D, dtype=dtype)
    heads = torch.randint(H, (len(dz),), device=bench.device)
    want = torch.stack([w_o[:, h * D : (h + 1) * D].double() @ dz[r].double() for r, h in enumerate(heads[:32].tolist())])
    with poisoned_outputs():
        y = ops.head_delta(dz, heads, w_o)
    good = found.check(f"head_delta, {name}", relative(y[:32], want), limit * 2)
    found.figure(f"head_delta, {name}", bench.timed(lambda: ops.head_delta(dz, heads, w_o)).median * 1e3, "ms", checked=good)
