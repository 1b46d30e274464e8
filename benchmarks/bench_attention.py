"""Attention with statistics of its weights at the shape of Llama-2 7B: 32 heads of 128, 1,024 tokens, one layer.

Ours: z, lse, the largest weight, entropy, mass on 8 segments and the 4 heaviest keys of every row, in one pass.
Against: PyTorch's fused attention, which gives z alone, and eager attention with the same statistics from its matrix.
Every figure is taken after the results were found right; both sides have the same inputs, dtype and threads.

    pytest benchmarks/bench_attention.py --benchmark-only [--threads 1]
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import best_of
from pycotmech.ops import attn_colsum, attn_extract, attn_topk

pytestmark = [pytest.mark.benchmark(group="attention"), getattr(pytest.mark, "7b")]

H, T, D, G, K = 32, 1024, 128, 8, 4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs(dtype: torch.dtype) -> dict:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, H, T, D, generator=generator).to(dtype) for _ in range(3))
    return {"q": q, "k": k, "v": v, "segments": (torch.arange(T) * G // T).int()}


def ours(x: dict):
    return attn_extract(**x, n_segments=G, entropy=True, topk=K)


def fused(x: dict) -> torch.Tensor:
    return F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True)


def eager(x: dict):
    """Transformers' eager attention (softmax in float32), and the statistics from its weights."""
    s = x["q"] @ x["k"].mT * D**-0.5
    s = s.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), torch.finfo(s.dtype).min)
    p = torch.softmax(s, -1, dtype=torch.float32)
    z = p.to(s.dtype) @ x["v"]
    mass = p @ F.one_hot(x["segments"].long(), G).float()
    return z, s.float().logsumexp(-1), p.amax(-1), torch.special.entr(p).sum(-1), mass, p.topk(K, -1)


def ratio_of_norms(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


def check(x: dict) -> None:
    """Two heads against float64: z within twice the error of eager attention, the statistics tight."""
    heads = slice(0, H, H // 2)
    part = {n: t if n == "segments" else t[:, heads] for n, t in x.items()}
    exact = eager({n: t.double() if t.is_floating_point() else t for n, t in part.items()})
    got, other = ours(x), eager(part)
    assert ratio_of_norms(got.z[:, heads], exact[0]) <= 2 * ratio_of_norms(other[0], exact[0])
    for name, want in zip(("lse", "pmax", "entropy", "mass"), exact[1:5]):
        assert ratio_of_norms(getattr(got, name)[:, heads], want) < 5e-6, name
    assert ratio_of_norms(got.topk_p[:, heads], exact[5].values) < 5e-6
    visible = exact[5].values > 0
    same = (got.topk_i[:, heads] == exact[5].indices)[visible]
    assert same.double().mean() > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_extract(benchmark, report, dtype):
    x = inputs(DTYPES[dtype])
    check(x)
    benchmark.pedantic(ours, args=(x,), rounds=7, warmup_rounds=1)
    seconds = benchmark.stats.stats.min
    sdpa, matrix = best_of(5, lambda: fused(x)), best_of(2, lambda: eager(x))
    note = f"(z alone; ours / SDPA {seconds / sdpa:.2f})"
    report(f"attn_extract, {dtype}, all statistics", seconds, baseline="SDPA", baseline_seconds=sdpa, note=note)
    report(f"attn_extract, {dtype}, all statistics", seconds, baseline="eager + statistics", baseline_seconds=matrix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_second_passes(benchmark, report, dtype):
    """Column sums and the 16 heaviest keys, against the same from the matrix."""
    x = inputs(DTYPES[dtype])
    q, k, lse = x["q"], x["k"], ours(x).lse

    def matrix() -> torch.Tensor:
        s = q @ k.mT * D**-0.5
        s = s.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), torch.finfo(s.dtype).min)
        return torch.softmax(s, -1, dtype=torch.float32)

    exact = torch.softmax((q[:, :2].double() @ k[:, :2].double().mT * D**-0.5).masked_fill(
        torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf), -1)  # fmt: skip
    assert ratio_of_norms(attn_colsum(q, k, lse)[:, :2], exact.sum(2)) < 5e-6
    assert ratio_of_norms(attn_topk(q, k, lse, topk=16)[0][:, :2], exact.topk(16, -1).values) < 5e-6
    benchmark.pedantic(attn_colsum, args=(q, k, lse), rounds=5, warmup_rounds=1)
    against = best_of(2, lambda: matrix().sum(2))
    report(f"attn_colsum, {dtype}", benchmark.stats.stats.min, baseline="eager", baseline_seconds=against)
    against = best_of(2, lambda: matrix().topk(16, -1))
    seconds = best_of(3, lambda: attn_topk(q, k, lse, topk=16))
    report(f"attn_topk, K = 16, {dtype}", seconds, baseline="eager", baseline_seconds=against)
