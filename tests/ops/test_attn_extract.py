"""The CPU kernel of attn_extract against the reference in float64, for every storage type."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pycotmech.ops import Extract, attn_extract, attn_rows, cpp_missing
from tests.ops.attn_cases import SMALL, Case, doubled, error, pytorch_error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ROOT = Path(__file__).parent.parent.parent

# Odd lengths, one and several tiles and blocks of keys, all head sizes; scattered segments take the matrix path.
LARGER = {
    "D 32": Case(H=4, Hkv=4, T=130, S=130, D=32, G=5, topk=4),
    "D 64": Case(B=2, H=4, Hkv=2, T=65, S=257, D=64, G=3, C=5, topk=8),
    "D 80": Case(H=6, Hkv=2, T=131, S=131, D=80, G=17, topk=2),
    "D 96": Case(H=3, Hkv=3, T=1, S=300, D=96, G=2, C=17, topk=8),
    "D 128": Case(H=8, Hkv=2, T=200, S=333, D=128, G=8, topk=4),
    "D 256": Case(B=2, H=2, Hkv=1, T=77, S=129, D=256, G=2, C=1, topk=1),
    "D 33": Case(H=2, Hkv=1, T=70, S=70, D=33, G=40),
    "group of 7": Case(H=7, Hkv=1, T=40, S=150, D=64, C=3, readout_heads=True, G=2, topk=3),
    "group of 71": Case(H=71, Hkv=1, T=3, S=20, D=16, C=2, readout_heads=True, G=2, topk=3),
    "long window": Case(H=4, Hkv=2, T=300, S=300, D=64, window=37, G=4, topk=5),
    "long window and padding": Case(B=3, H=2, Hkv=2, T=150, S=270, D=64, window=140, starts=(0, 200, 133), G=3, topk=3),
    "empty rows": Case(B=2, H=2, Hkv=1, T=140, S=140, D=64, starts=(140, 129), G=2, C=2, topk=2),
    "strong softcap": Case(H=2, Hkv=2, T=100, S=100, D=64, softcap=20.0, spread=50.0, topk=4, G=2),
    "peaked": Case(H=2, Hkv=2, T=150, S=150, D=64, spread=300.0, topk=4, G=3),
    "sinks": Case(B=2, H=6, Hkv=2, T=150, S=210, D=64, topk=8, G=4, C=3, sinks=4.0),
    "sinks that take all": Case(H=4, Hkv=1, T=70, S=140, D=80, topk=3, G=50, sinks=60.0),
    "sinks that take nothing": Case(H=4, Hkv=1, T=70, S=140, D=64, topk=9, G=5, spread=300.0, sinks=-900.0),
    "sinks, window and empty rows": Case(
        B=2, H=2, Hkv=1, T=140, S=140, D=128, starts=(140, 60), window=33, softcap=5.0, G=2, C=2, topk=2, sinks=1.0
    ),
}


def check(out: Extract, x: dict, tight: float = 2e-6) -> None:
    """Against the same inputs in float64: z at most twice PyTorch's error, the statistics tight, the top keys equal."""
    want = attn_extract(**doubled(x))
    seen = torch.isfinite(want.lse)
    assert error(out.z, want.z) <= 2 * pytorch_error(x, want.z)
    assert torch.equal(torch.isfinite(out.lse), seen)
    # An error of lse is one of the logarithm of every weight: absolute, beside the rounding of lse itself.
    bound = tight + 3e-7 * float(want.lse[seen].abs().max())
    assert float((out.lse[seen].double() - want.lse[seen]).abs().max()) < bound
    for name in ("pmax", "mass", "read"):
        got = getattr(out, name)
        assert error(got, getattr(want, name)) < bound, name
    if want.entropy.numel():
        assert float((out.entropy.double() - want.entropy).abs().max()) < 2 * bound
        assert float(out.entropy.min()) >= 0
    check_topk(out.topk_p, out.topk_i, x, want, bound)


def check_topk(p: torch.Tensor, i: torch.Tensor, x: dict, want: Extract, bound: float) -> None:
    """The keys of the reference, but for neighbours in rank that float32 cannot tell apart, with their own weights."""
    used = want.topk_i >= 0
    assert torch.equal(i >= 0, used) and (p[~used] == 0).all()
    assert error(p, want.topk_p) < bound
    full = slow_weights_of_all_rows(doubled(x))
    own = full.gather(-1, i.clamp_min(0).long())
    assert torch.allclose(p.double()[used], own[used], rtol=20 * bound, atol=1e-30)
    differ = (i != want.topk_i) & used
    assert torch.allclose(own[differ], want.topk_p[differ], rtol=20 * bound, atol=1e-30)
    assert differ.sum() <= 0.01 * used.sum()
    ordered = i.masked_fill(~used, 10**6).sort(-1).values
    assert (ordered.diff(dim=-1) > 0)[ordered[..., 1:] < 10**6].all()  # no key twice


def slow_weights_of_all_rows(x: dict) -> torch.Tensor:
    rows, lse = torch.arange(x["q"].shape[2]), attn_extract(**{**x, "topk": 0}).lse
    options = {name: x.get(name) for name in ("starts", "window", "softcap")}
    return attn_rows(x["q"], x["k"], lse, rows, **options)


def test_the_kernel_runs():
    assert cpp_missing is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*LARGER, *SMALL])
def test_error(name, dtype):
    case = {**SMALL, **LARGER}[name]
    x = case.inputs(DTYPES[dtype])
    check(attn_extract(**x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_stay_exact_where_rows_are_peaked(dtype):
    """Scores of standard deviation 300: lse - E[s] would have an error of 1e-4 and turn negative."""
    x = Case(H=2, Hkv=2, T=200, S=200, D=128, spread=300.0).inputs(DTYPES[dtype])
    got, want = attn_extract(**x), attn_extract(**doubled(x))
    assert float(want.lse.abs().max()) > 500
    # Differences of two scores carry the rounding of the scores, 3e-5 here; nothing is added to it.
    assert float((got.entropy - want.entropy).abs().max()) < 2e-4
    exact = want.entropy < 1e-8
    assert exact.sum() > 20 and float(got.entropy[exact].max()) < 1e-6 and float(got.entropy.min()) >= 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisoned_neighbours_and_outputs(dtype):
    """Inputs are views into NaN: reading past an edge shows. Uninitialised outputs are NaN: leaving one shows."""
    case = Case(B=2, H=6, Hkv=2, T=67, S=141, D=80, G=3, C=3, readout_batch=True, topk=4, starts=(3, 130), window=90, sinks=2.0)
    x = case.inputs(DTYPES[dtype])
    views = dict(x)
    for name in ("q", "k", "v"):
        B, H, N, D = x[name].shape
        room = torch.full((B + 2, N + 2, H + 2, D + 16), math.nan, dtype=x[name].dtype)
        views[name] = room[1:-1, 1:-1, 1:-1, 8:-8].transpose(1, 2)
        views[name].copy_(x[name])
    B, _, S, C = x["readout"].shape
    room = torch.full((B + 2, 3, S + 2, C + 2), math.nan)
    views["readout"] = room[1:-1, 1:-1, 1:-1, 1:-1]
    views["readout"].copy_(x["readout"])
    torch.use_deterministic_algorithms(True)  # fills what torch.empty returns
    try:
        assert torch.empty(3).isnan().all()
        out = attn_extract(**views)
    finally:
        torch.use_deterministic_algorithms(False)
    check(out, x)
    for a, b in zip(out, attn_extract(**x)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_negative_and_zero_scales(dtype):
    x = Case(H=2, Hkv=1, T=70, S=133, D=64, G=2, topk=3).inputs(DTYPES[dtype])
    q = x["q"]
    flipped = attn_extract(**{**x, "q": -q}, scale=0.1)
    for a, b in zip(attn_extract(**x, scale=-0.1), flipped):
        assert torch.equal(a, b)
    even = attn_extract(**x, scale=0.0)
    count = torch.arange(64, 134).double()
    assert float((even.lse.double() - count.log()).abs().max()) < 1e-6
    assert float((even.entropy.double() - count.log()).abs().max()) < 1e-6
    assert torch.equal(even.topk_i, torch.arange(3, dtype=torch.int32).expand(1, 2, 70, 3))


def test_exact_ties_go_to_the_lowest_key():
    g = torch.Generator().manual_seed(0)
    x = Case(H=2, Hkv=1, T=150, S=290, D=32).inputs(torch.float32)
    for name in ("q", "k"):  # small integers: every product is exact and many are equal
        x[name] = torch.randint(-1, 2, x[name].shape, generator=g).float()
    for topk in (1, 4, 8, 9, 33, 64):
        got, want = attn_extract(**{**x, "topk": topk}), attn_extract(**doubled({**x, "topk": topk}))
        assert torch.equal(got.topk_i, want.topk_i)
        assert error(got.topk_p, want.topk_p) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype):
    x = Case(B=2, H=6, Hkv=3, T=210, S=301, D=64, G=40, C=2, topk=8, starts=(0, 77)).inputs(DTYPES[dtype])
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(attn_extract(**x))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_segments_by_runs_and_by_indicators_agree():
    """The same masses whether segments are contiguous (summed by runs) or scattered (a product with indicators)."""
    x = Case(H=2, Hkv=2, T=60, S=400, D=64).inputs(torch.bfloat16)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(400) // 50 - 1
    last = {"q": x["q"][:, :, -1:].contiguous()}  # a single row sees every key, in any order
    contiguous = attn_extract(**{**x, **last}, segments=labels.int(), n_segments=7)
    shuffled = {"k": x["k"][:, :, order].contiguous(), "v": x["v"][:, :, order].contiguous()}
    scattered = attn_extract(**{**x, **last, **shuffled}, segments=labels[order].int().contiguous(), n_segments=7)
    assert error(scattered.mass, contiguous.mass.double()) < 1e-6


MEMORY = """
import json, resource, torch
from pycotmech.ops import attn_colsum, attn_extract, attn_topk
T, H, D = 4096, 8, 64
q, k, v = (torch.randn(1, H, T, D) for _ in range(3))
segments = (torch.arange(T) // 512).int()
def run(n):
    out = attn_extract(q[:, :, :n], k[:, :, :n], v[:, :, :n], segments=segments[:n], entropy=True, topk=4)
    attn_colsum(q[:, :, :n], k[:, :, :n], out.lse)
    attn_topk(q[:, :, :n], k[:, :, :n], out.lse, topk=16)
run(128)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(T)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_no_matrix_of_rows_by_keys_is_held():
    """One head's 4096 x 4096 weights alone would be 64 MiB; results and packed heads are about 25."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) / 1024 < 48


def test_pytorch_agrees_with_the_reference():
    """The baseline of the error rule is the right function: causal attention in float64."""
    x = Case(H=4, Hkv=2, T=30, S=30, D=64).inputs(torch.float64)
    want = F.scaled_dot_product_attention(x["q"], x["k"], x["v"], is_causal=True, enable_gqa=True)
    assert error(attn_extract(**x).z, want) < 1e-13
