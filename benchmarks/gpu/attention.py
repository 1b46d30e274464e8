"""`attn_extract` at T = 1k to 16k, with and without statistics, beside PyTorch's attention (z alone) and an eager one that
makes the same statistics; as shares of what the device's matrix products reach."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import truth
from benchmarks.gpu.bench import Bench, relative
from benchmarks.gpu.ceilings import product_name
from benchmarks.gpu.found import Found
from pycotmech import ops

SEGMENTS = 8
EAGER_UP_TO = 4096
"""An eager attention holds several matrices of 32 x T x T numbers."""


def run(bench: Bench, found: Found) -> None:
    H, D = (4, 64) if bench.small else (32, 128)
    ceiling = bench.figure_of("ceilings", product_name(torch.bfloat16))
    for T in (128,) if bench.small else (1024, 2048, 4096, 8192, 16384):
        if bench.left() < 10:
            found.not_run(f"T = {T:,}")
            continue
        with found.part(f"T = {T:,}"):
            _length(bench, found, H, D, T, ceiling)


def _length(bench: Bench, found: Found, H: int, D: int, T: int, ceiling: float | None) -> None:
    q, k, v = (torch.randn(1, H, T, D, device=bench.device).bfloat16() for _ in range(3))
    labels = torch.randint(0, SEGMENTS, (T,), device=bench.device, dtype=torch.int32)
    flop = 4 * H * (T * (T + 1) / 2) * D
    heads = [0, H - 1]
    want = truth.attention(q, k, v, heads, segments=labels, n_segments=SEGMENTS, topk=8)
    masses = {"segments": labels, "n_segments": SEGMENTS, "entropy": True}

    def received() -> None:
        ops.attn_colsum(q, k, ops.attn_extract(q, k, v, **masses).lse)

    out = ops.attn_extract(q, k, v, topk=8, **masses)
    good = True
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    good &= found.check(f"T = {T:,}: z", relative(out.z[0, heads], want["z"]), 2 * relative(plain[0, heads], want["z"]))
    for name in ("lse", "entropy", "mass", "topk_p"):
        good &= found.check(f"T = {T:,}: {name}", relative(getattr(out, name)[0, heads], want[name]), 2e-5)
    good &= found.check(f"T = {T:,}: received", relative(ops.attn_colsum(q, k, out.lse)[0, heads], want["received"]), 2e-5)

    best = _theirs(bench, found, q, k, v, T, flop)
    calls = {
        "z and lse": lambda: ops.attn_extract(q, k, v),
        "entropy": lambda: ops.attn_extract(q, k, v, entropy=True),
        "8 masses, entropy": lambda: ops.attn_extract(q, k, v, **masses),
        "8 masses, entropy, received": received,
        "8 masses, entropy, top 4": lambda: ops.attn_extract(q, k, v, topk=4, **masses),
        "8 masses, entropy, top 8": lambda: ops.attn_extract(q, k, v, topk=8, **masses),
    }
    own = None
    for name, call in calls.items():
        t = bench.timed(call)
        what = f"T = {T:,}, attn_extract, {name}"
        found.figure(
            what, flop / t.median / 1e12, "TFLOP/s of z", checked=good, spread=(flop / t.high / 1e12, flop / t.low / 1e12)
        )
        own = own or t.median
        if name != "z and lse":
            found.figure(f"{what}, against z and lse", t.median / own, "times", checked=good)
        elif ceiling:
            found.figure(f"{what}, of the product of matrices", flop / t.median / 1e10 / ceiling, "%", checked=good)
        if best:
            found.figure(f"{what}, against the fastest of PyTorch (z alone)", t.median / best, "times", checked=good)
    if T <= EAGER_UP_TO:
        eager = _eager(q, k, v, labels)
        same = found.check(f"T = {T:,}, eager: mass", relative(eager[0][0, heads], want["mass"]), 2e-2)
        t = bench.timed(lambda: _eager(q, k, v, labels), times=3)
        found.figure(
            f"T = {T:,}, eager, 8 masses, entropy, received, top 8", flop / t.median / 1e12, "TFLOP/s of z", checked=same
        )


def _theirs(bench: Bench, found: Found, q: Tensor, k: Tensor, v: Tensor, T: int, flop: float) -> float | None:
    """The seconds of PyTorch's fastest attention."""
    best = None
    backends = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION") if bench.cuda else ("FLASH_ATTENTION",)
    for name in backends:
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                t = bench.timed(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        except (RuntimeError, AttributeError) as error:
            found.not_run(f"T = {T:,}, PyTorch {name}", str(error).strip().splitlines()[0][:120])
            continue
        good = found.check(f"T = {T:,}, PyTorch {name}: values that are not finite", float((~z.isfinite()).sum()), 0)
        found.figure(f"T = {T:,}, PyTorch {name}, z alone", flop / t.median / 1e12, "TFLOP/s of z", checked=good)
        best = min(best or t.median, t.median)
    return best


def _eager(q: Tensor, k: Tensor, v: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The same statistics from the whole matrix of weights, as one writes them."""
    T, D = q.shape[2:]
    s = (q @ k.mT).float() * D**-0.5
    s = s.masked_fill(torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    p = s.softmax(-1)
    member = torch.nn.functional.one_hot(labels.long(), SEGMENTS).float()
    entropy = -torch.special.xlogy(p, p).sum(-1)
    return p @ member, entropy, p.sum(2), p.topk(min(8, T)).values, p.to(v.dtype) @ v
