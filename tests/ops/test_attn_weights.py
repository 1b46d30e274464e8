"""The CPU kernels of the second passes (column sums, rows, entries, top keys) against the references in float64."""

import math

import pytest
import torch

from pycotmech.ops import attn_colsum, attn_entries, attn_extract, attn_rows, attn_topk
from tests.ops.attn_cases import SMALL, Case, doubled, error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGER = {
    "odd lengths": Case(B=2, H=4, Hkv=2, T=131, S=275, D=80),
    "D 96": Case(H=3, Hkv=3, T=200, S=200, D=96),
    "D 256": Case(H=2, Hkv=1, T=65, S=129, D=256),
    "D 33": Case(H=5, Hkv=1, T=70, S=70, D=33),
    "decode": Case(B=3, H=8, Hkv=2, T=1, S=300, D=64),
    "long window": Case(H=4, Hkv=2, T=300, S=310, D=64, window=37),
    "long window and padding": Case(B=3, H=2, Hkv=2, T=150, S=270, D=32, window=140, starts=(0, 200, 133)),
    "empty rows": Case(B=2, H=2, Hkv=1, T=140, S=140, D=64, starts=(140, 129)),
    "strong softcap": Case(H=2, Hkv=2, T=100, S=100, D=64, softcap=20.0, spread=50.0),
    "peaked": Case(H=2, Hkv=2, T=150, S=150, D=64, spread=100.0),
}
CASES = {**SMALL, **LARGER}


def _inputs(name: str, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """The arguments that the second passes share, in the dtype and in float64, and the float64 weights [B, H, T, S].

    lse is the float64 one, rounded to float32: its rounding is in the error of every implementation."""
    x = CASES[name].inputs(dtype)
    options = {n: x.get(n) for n in ("starts", "window", "softcap")}
    exact = doubled(x)
    lse = attn_extract(**{**exact, "topk": 0, "entropy": False}).lse
    got = {"q": x["q"], "k": x["k"], "lse": lse.float(), **options}
    return got, {"q": exact["q"], "k": exact["k"], "lse": lse, **options}, x


def _bound(want: dict) -> float:
    """An error of the logarithm is one of the weight: the rounding of lse and of scores of its size."""
    lse = want["lse"]
    return 2e-6 + 3e-7 * float(lse[torch.isfinite(lse)].abs().max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_error(name, dtype):
    got, want, _ = _inputs(name, DTYPES[dtype])
    B, H, T, _ = got["q"].shape
    S, bound = got["k"].shape[2], _bound(want)
    g = torch.Generator().manual_seed(1)
    assert error(attn_colsum(**got), attn_colsum(**want)) < bound
    for shape in ((1, 1, T), (B, H, T), (1, H, T)):
        w = torch.randn(shape, generator=g)
        assert error(attn_colsum(**got, weights=w), attn_colsum(**want, weights=w.double())) < 4 * bound
    rows = torch.randint(T, (70,), generator=g)  # in any order, some twice, more than one tile
    p = attn_rows(**want, rows=rows)
    assert error(attn_rows(**got, rows=rows), p) < bound
    assert (attn_rows(**got, rows=rows)[p == 0] == 0).all()
    qi, ki = torch.randint(T, (600,), generator=g), torch.randint(S, (600,), generator=g)
    e = attn_entries(**want, qi=qi, ki=ki)
    assert error(attn_entries(**got, qi=qi, ki=ki), e) < bound
    assert (attn_entries(**got, qi=qi, ki=ki)[e == 0] == 0).all()


@pytest.mark.parametrize("topk", [1, 8, 9, 31, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_topk(dtype, topk):
    for name in ("decode", "long window and padding", "strong softcap", "no keys"):
        got, want, _ = _inputs(name, DTYPES[dtype])
        bound = 20 * _bound(want)
        p, i = attn_topk(**got, topk=topk)
        want_p, want_i = attn_topk(**want, topk=topk)
        used = want_i >= 0
        assert torch.equal(i >= 0, used) and (p[~used] == 0).all()
        assert torch.allclose(p.double(), want_p, rtol=bound, atol=1e-30)
        full = attn_rows(**want, rows=torch.arange(got["q"].shape[2]))
        assert torch.allclose(full.gather(-1, i.clamp_min(0).long())[used], want_p[used], rtol=bound, atol=1e-30)
        assert ((i != want_i) & used).sum() <= 0.01 * used.sum()
        assert (p.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisoned_neighbours_and_outputs(dtype):
    got, _, _ = _inputs("long window and padding", DTYPES[dtype])
    rows = torch.tensor([3, 149, 0, 77])

    def run(x: dict) -> list[torch.Tensor]:
        return [
            attn_colsum(**x),
            attn_rows(**x, rows=rows),
            attn_entries(**x, qi=rows, ki=rows + 100),
            *attn_topk(**x, topk=12),
        ]

    views = dict(got)
    for name in ("q", "k"):
        B, H, N, D = got[name].shape
        room = torch.full((B + 2, N + 2, H + 2, D + 16), math.nan, dtype=got[name].dtype)
        views[name] = room[1:-1, 1:-1, 1:-1, 8:-8].transpose(1, 2)
        views[name].copy_(got[name])
    room = torch.full((5, 4, 152), math.nan)
    views["lse"] = room[1:-1, 1:-1, 1:-1]
    views["lse"].copy_(got["lse"])
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns with NaN
    try:
        poisoned = run(views)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(poisoned, run(got)):
        assert not a.isnan().any() and torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype):
    got, _, _ = _inputs("odd lengths", DTYPES[dtype])
    rows = torch.arange(0, 131, 5)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([attn_colsum(**got), attn_rows(**got, rows=rows), *attn_topk(**got, topk=20)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_they_agree_with_one_another():
    """Rows, entries, column sums, masses and top keys of one call are views of one matrix."""
    x = Case(B=2, H=4, Hkv=2, T=90, S=140, D=64, G=5, topk=6, starts=(0, 60), window=70).inputs(torch.bfloat16)
    out = attn_extract(**x)
    shared = {n: x[n] for n in ("q", "k", "starts", "window", "softcap")}
    p = attn_rows(**shared, lse=out.lse, rows=torch.arange(90))
    seen = torch.isfinite(out.lse)
    assert torch.allclose(p.sum(-1), seen.float(), atol=2e-6)
    assert torch.allclose(p.sum(2), attn_colsum(**shared, lse=out.lse), atol=2e-6)
    assert torch.allclose(p.amax(-1), out.pmax, rtol=2e-6)
    assert torch.allclose(p.gather(-1, out.topk_i.clamp_min(0).long()), out.topk_p, atol=1e-6) or (out.topk_i < 0).any()
    for g in range(5):
        mass = torch.where(x["segments"] == g, p, 0.0).sum(-1)
        assert torch.allclose(mass, out.mass[..., g], atol=2e-6)
    qi, ki = torch.cartesian_prod(torch.arange(0, 90, 7), torch.arange(0, 140, 9)).unbind(-1)
    assert torch.allclose(attn_entries(**shared, lse=out.lse, qi=qi, ki=ki), p[:, :, qi, ki], rtol=1e-5, atol=1e-9)
