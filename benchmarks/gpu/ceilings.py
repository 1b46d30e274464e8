"""What the device can do at most: matrix products in bfloat16 and float32, and copies."""

from __future__ import annotations

import torch

from benchmarks.gpu.bench import Bench, relative
from benchmarks.gpu.found import Found

PRODUCTS = {"bfloat16": 4e-3, "float32": 2e-5}
"""Relative errors of a product: results rounded to bfloat16; sums of float32. With TF32 the second would be 3e-4."""


def product_name(dtype: torch.dtype) -> str:
    """What the figure of a product is called."""
    return f"product of matrices, {str(dtype).removeprefix('torch.')}"


COPY = "copy, read and written"


def run(bench: Bench, found: Found) -> None:
    n = 512 if bench.small else 8192
    for name, limit in PRODUCTS.items():
        dtype = getattr(torch, name)
        with found.part(product_name(dtype)):
            a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
            out = torch.empty(n, n, dtype=dtype, device=bench.device)
            torch.mm(a, b, out=out)
            good = found.check(f"{name}: 16 rows against float64", relative(out[:16], a[:16].double() @ b.double()), limit)
            t = bench.timed(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), times=10, warm=3)
            spread = tuple(2 * n**3 / s / 1e12 for s in (t.high, t.low))
            found.figure(product_name(dtype), 2 * n**3 / t.median / 1e12, "TFLOP/s", checked=good, spread=spread)
    with found.part(COPY):
        x = torch.randn(2**20 if bench.small else 2**29, device=bench.device)
        y = torch.empty_like(x)
        y.copy_(x)
        good = found.check("copy: unequal values", float((x != y).sum()), 0)
        t = bench.timed(lambda: y.copy_(x), times=10, warm=3)
        found.figure(COPY, 2 * x.nbytes / t.median / 1e12, "TB/s", checked=good)
