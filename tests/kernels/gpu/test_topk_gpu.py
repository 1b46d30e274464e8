"""The CUDA kernel of attn_topk through the registered op, against the reference in float64: `-m gpu`."""

import math

import pytest
import torch

from pycotmech.ops import attn_extract, attn_rows, attn_topk
from tests.ops.attn_cases import Case, doubled

pytest.importorskip("triton", reason="the package of the kernels needs triton")
pytestmark = pytest.mark.gpu

CASES = {
    "plain": Case(B=2, H=4, Hkv=2, T=131, S=275, D=80),
    "D 33": Case(H=3, Hkv=1, T=70, S=70, D=33),
    "D 256": Case(H=2, Hkv=1, T=65, S=129, D=256),
    "decode": Case(B=3, H=8, Hkv=2, T=1, S=300, D=64),
    "window and padding": Case(B=3, H=2, Hkv=2, T=150, S=270, D=32, window=140, starts=(0, 200, 270)),
    "softcap": Case(H=2, Hkv=2, T=100, S=100, D=64, softcap=20.0, spread=50.0),
}


@pytest.mark.parametrize("topk", [1, 8, 9, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_against_float64(name, dtype, topk):
    from pycotmech.kernels import topk as kernel

    assert kernel.library() is not None, "the CUDA library is not built"
    x = CASES[name].inputs(dtype)
    exact = doubled(x)
    options = {n: x.get(n) for n in ("starts", "window", "softcap")}
    lse = attn_extract(**{**exact, "topk": 0, "entropy": False}).lse
    want_p, want_i = attn_topk(exact["q"], exact["k"], lse, topk=topk, **options)
    # Views into NaN: reading past an edge shows.
    views = []
    for tensor in (x["q"], x["k"]):
        B, H, N, D = tensor.shape
        room = torch.full((B + 2, N + 2, H + 2, D + 16), math.nan, dtype=dtype, device="cuda")
        views.append(room[1:-1, 1:-1, 1:-1, 8:-8].transpose(1, 2))
        views[-1].copy_(tensor)
    options["starts"] = None if options["starts"] is None else options["starts"].cuda()
    results = [attn_topk(*views, lse.float().cuda(), topk=topk, **options) for _ in range(3)]
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(results[0], r))  # no race shows
    p, i = (t.cpu() for t in results[0])
    used = want_i >= 0
    bound = 1e-4 if dtype == torch.float32 else 5e-5
    assert torch.equal(i >= 0, used) and (p[~used] == 0).all()
    assert torch.allclose(p.double(), want_p, rtol=bound, atol=1e-30)
    options["starts"] = x.get("starts")
    full = attn_rows(exact["q"], exact["k"], lse, torch.arange(x["q"].shape[2]), **options)
    assert torch.allclose(full.gather(-1, i.clamp_min(0).long())[used], want_p[used], rtol=bound, atol=1e-30)
    assert ((i != want_i) & used).sum() <= 0.01 * used.sum()
