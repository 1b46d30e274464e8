"""prefix_attn against a float64 computation of one row at a time, in the op that runs here and in the plain reference."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch

from pycotmech import ops
from tests.reference.close import assert_close

MODULE = importlib.import_module("pycotmech.ops.prefix_attn")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def row_at_a_time(q, ks, vs, ko, vo, rows, scale, window=0, softcap=0.0, cuts=None, sinks=None, dtype=torch.float64):
    """The definition, one query row at a time; with dtype=q.dtype: the same computation in plain PyTorch."""
    R, H, _ = q.shape
    heads = torch.arange(H) // (H // ko.shape[1])
    q, ks, vs, ko, vo = (t.to(dtype) for t in (q, ks, vs, ko, vo))
    z = torch.zeros_like(q)
    lse = torch.full((R, H), -math.inf, dtype=torch.float64)
    cuts = [] if cuts is None else cuts.tolist()
    for r, (a, b, c, d) in enumerate(rows.tolist()):
        k, v = (torch.cat((s[c:d], o[a:b]))[:, heads].transpose(0, 1) for s, o in ((ks, ko), (vs, vo)))  # [H, S, D]
        S = k.shape[1]
        at = torch.arange(S)
        seen = ((S - 1 - at < window) if window else torch.ones(S, dtype=torch.bool)).expand(H, S).clone()
        for cut, h, lo, hi in cuts:
            if cut == r:
                seen[slice(None) if h < 0 else h] &= ~((at >= lo) & (at < hi))
        s = (k @ q[r, :, :, None])[..., 0] * scale
        if softcap:
            s = softcap * torch.tanh(s / softcap)
        s = s.masked_fill(~seen, -math.inf)
        some = seen.any(-1)
        if sinks is not None:  # a key whose value is nothing
            s, v = torch.cat((s, sinks.to(dtype)[:, None]), -1), torch.cat((v, torch.zeros_like(v[:, :1])), 1)
        z[r, some] = (torch.softmax(s[some], -1)[:, None] @ v[some])[:, 0]
        lse[r] = torch.logsumexp(s.double(), -1)
    return z, lse


def poisoned(rows: int, heads: int, D: int, dtype, generator, sigma: float = 1.0) -> torch.Tensor:
    """[rows, heads, D] inside a larger tensor of NaN: a view with odd strides and a red zone on every side."""
    whole = torch.full((rows + 2, heads + 1, D + 8), math.nan, dtype=dtype)
    view = whole[1 : rows + 1, :heads, 3 : 3 + D]
    view.copy_(sigma * torch.randn(rows, heads, D, generator=generator))
    return view


def case(*, H=4, Hkv=2, D=64, dtype=torch.float32, own=(1, 5, 17, 26), shared=(33, 64, 7), seed=0, sigma=1.0, spare=3):
    """Ragged variants of several bases: variant i has own[i] rows on the base i % len(shared), of which it sees a prefix.
    Unused NaN keys lie between the bases and between the variants."""
    g = torch.Generator().manual_seed(seed)
    ks, vs = (poisoned(sum(shared) + spare * len(shared), Hkv, D, dtype, g) for _ in range(2))
    N = sum(own) + spare * len(own)
    ko, vo = (poisoned(N, Hkv, D, dtype, g) for _ in range(2))
    table, base, begin = [], [], 0
    for n in shared:
        base.append((begin, n))
        ks[begin + n : begin + n + spare] = vs[begin + n : begin + n + spare] = math.nan
        begin += n + spare
    begin = 0
    for i, n in enumerate(own):
        lo, length = base[i % len(base)]
        length -= i % 3 if length > 3 else 0
        table += [(begin, begin + t + 1, lo, lo + length) for t in range(n)]
        ko[begin + n : begin + n + spare] = vo[begin + n : begin + n + spare] = math.nan
        begin += n + spare
    q = poisoned(len(table), H, D, dtype, g, sigma)
    return [q, ks, vs, ko, vo, torch.tensor(table, dtype=torch.int32)]


def check(args, scale=None, **options):
    q = args[0]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    z, lse = ops.prefix_attn(*args, scale, **options)
    assert z.shape == q.shape and z.dtype == q.dtype and z.is_contiguous()
    assert lse.dtype == torch.float32 and lse.shape == q.shape[:2]
    want_z, want_lse = row_at_a_time(*args, scale, **options)
    plain_z, _ = row_at_a_time(*args, scale, **options, dtype=q.dtype)
    empty = want_lse.isinf()
    assert torch.equal(lse.isinf(), empty) and (z[empty] == 0).all()
    error, allowed = ((t.double() - want_z).norm().item() for t in (z, plain_z))
    # one unit in the last place of the output dtype, were plain PyTorch by chance exact
    floor = want_z.norm().item() * torch.finfo(q.dtype).eps / 8
    assert error <= 2 * max(allowed, floor), f"error {error:.3g}, plain PyTorch {allowed:.3g}"
    assert_close(lse[~empty].double(), want_lse[~empty], rtol=1e-6, atol=3e-6)
    return z, lse


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
def test_ragged_variants_of_several_bases(D, heads, dtype):
    check(case(H=heads[0], Hkv=heads[1], D=D, dtype=DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window, softcap", [(1, 0.0), (9, 0.0), (50, 2.0), (0, 3.0), (1000, 30.0)])
def test_window_and_softcap(window, softcap, dtype):
    check(case(dtype=DTYPES[dtype], sigma=3.0), window=window, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_may_be_negative_or_zero(scale, dtype):
    args = case(dtype=DTYPES[dtype])
    cuts = torch.tensor([(3, 1, 2, 9), (10, -1, 0, 4)], dtype=torch.int32)
    for options in ({}, {"window": 9}, {"softcap": 2.0, "cuts": cuts}):
        check(args, scale, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cuts(dtype):
    args = case(dtype=DTYPES[dtype])
    R = len(args[-1])
    cuts = [(0, -1, 0, 5), (3, 1, 30, 36), (3, 1, 2, 3), (R - 1, 2, 0, 1), (10, -1, 0, 1000), (12, 0, -5, 400), (5, 3, 9, 9)]
    cuts += [(r, r % 4, r, r + 3) for r in range(20, 49)]
    _, lse = check(args, cuts=torch.tensor(cuts, dtype=torch.int32))
    assert lse[10].isinf().all() and lse[12].isinf().tolist() == [True, False, False, False]
    check(args, cuts=torch.tensor(cuts, dtype=torch.int32), window=20, softcap=5.0)
    check(args, cuts=torch.zeros(0, 4, dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks(dtype):
    """From sinks that take nearly nothing to one that takes nearly all; a row whose keys are all cut has its sink alone."""
    sinks = torch.tensor([-30.0, 0.5, 3.0, 25.0])
    for D, own in ((64, (1, 5, 17, 26)), (80, (1,) * 50)):
        args = case(D=D, own=own, dtype=DTYPES[dtype], sigma=2.0)
        check(args, sinks=sinks)
        check(args, sinks=sinks, window=9, softcap=4.0)
        cuts = torch.tensor([(0, -1, 0, 999), (3, 1, 3, 40), (4, 2, 0, 999)], dtype=torch.int32)
        z, lse = check(args, sinks=sinks, cuts=cuts)
        assert torch.equal(lse[0], sinks) and (z[0] == 0).all() and float(lse[4, 2]) == 3.0
    none, _ = ops.prefix_attn(*args, sinks=torch.full((4,), -torch.inf))
    assert torch.equal(none, ops.prefix_attn(*args)[0])


def test_a_cut_key_weighs_nothing():
    """The knock-out renormalises: the same as leaving the key out."""
    q, ks, vs, ko, vo, rows = case(shared=(20,), own=(6,))
    cuts = torch.tensor([(5, -1, 0, 12)], dtype=torch.int32)
    z, _ = ops.prefix_attn(q, ks, vs, ko, vo, rows, cuts=cuts)
    rows = rows.clone()
    rows[5, 2] += 12
    again, _ = ops.prefix_attn(q, ks, vs, ko, vo, rows)
    assert_close(z[5], again[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_last_position_sweep(dtype):
    """Rows of one own key each over a long shared range."""
    check(case(H=4, Hkv=4, D=128, own=(1,) * 70, shared=(127,), dtype=DTYPES[dtype], spare=0))


def test_rows_without_keys_and_without_own_or_shared_keys():
    args = case(own=(3, 4), shared=(40, 9))
    args[-1][0] = torch.tensor([2, 2, 5, 5])
    args[-1][2, 1] = args[-1][2, 0]
    args[-1][4, 3] = args[-1][4, 2]
    check(args)
    none = [t[:0] for t in args[1:3]]
    rows = args[-1].clone()
    rows[:, 2:] = 0
    check([args[0], *none, *args[3:5], rows])
    z, lse = ops.prefix_attn(args[0][:0], *args[1:5], args[-1][:0])
    assert z.shape == (0, 4, 64) and lse.shape == (0, 4)


def test_interleaved_bases_and_prefixes_of_every_length():
    """Rows in no order: neighbours with other bases, other prefixes of a base, other variants."""
    args = case(own=(9, 14, 6, 3, 11), shared=(45, 70))
    order = torch.randperm(len(args[-1]), generator=torch.Generator().manual_seed(1))
    rows = args[-1][order].clone()
    rows[:, 3] -= torch.arange(len(rows), dtype=torch.int32) % 7
    check([args[0][order], *args[1:5], rows])


def test_result_does_not_depend_on_the_neighbours():
    args = case(own=(40, 7, 1, 1, 25), shared=(90, 31))
    z, lse = ops.prefix_attn(*args)
    for r in (0, 39, 40, 46, 48, len(z) - 1):
        one_z, one_lse = ops.prefix_attn(args[0][r : r + 1], *args[1:5], args[-1][r : r + 1].contiguous())
        assert_close(one_z[0], z[r], rtol=1e-5, atol=1e-6)
        assert_close(one_lse[0], lse[r], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_counts_agree_bit_by_bit(dtype):
    args = case(own=(40, 7, 1, 1, 25, 33), shared=(90, 31), dtype=DTYPES[dtype])
    out = []
    for n in (1, 2):
        torch.set_num_threads(n)
        out.append(ops.prefix_attn(*args, window=60, softcap=9.0))
    assert torch.equal(out[0][0], out[1][0]) and torch.equal(out[0][1], out[1][1])


def test_large_scores_stay_finite():
    z, lse = check(case(sigma=300.0))
    assert z.isfinite().all() and lse.isfinite().all() and lse.max() > 500


def test_a_nan_query_spoils_its_own_row_and_head_only():
    args = case()
    args[0][7, 2, 5] = math.nan
    z, lse = ops.prefix_attn(*args)
    bad = torch.zeros(lse.shape, dtype=torch.bool)
    bad[7, 2] = True
    assert torch.equal(lse.isnan(), bad) and torch.equal(z.isnan().all(-1), bad) and torch.equal(z.isnan().any(-1), bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_agrees_with_one_row_at_a_time(dtype):
    args = case(dtype=dtype)
    cuts = torch.tensor([(3, 1, 0, 20), (4, -1, 5, 6)], dtype=torch.int32)
    for window, softcap in itertools.product((0, 13), (0.0, 4.0)):
        z, lse = MODULE.reference(*args, 0.1, window, softcap, cuts)
        want_z, want_lse = row_at_a_time(*args, 0.1, window, softcap, cuts)
        bound = 1e-6 if dtype == torch.float32 else 4e-3
        assert (z.double() - want_z).norm() <= bound * want_z.norm()
        assert_close(lse.double(), want_lse, rtol=1e-6, atol=2e-6)


def test_float64_runs_in_float64():
    args = [t.double() if t.is_floating_point() else t for t in case()]
    z, lse = ops.prefix_attn(*args, 0.125, window=40)
    want_z, want_lse = row_at_a_time(*args, 0.125, window=40)
    assert lse.dtype == torch.float64 and (z - want_z).norm() < 1e-13 * want_z.norm()
    assert_close(lse, want_lse, rtol=1e-13, atol=1e-13)


def test_opcheck():
    args = case(own=(2, 3), shared=(5, 9), dtype=torch.float32)
    args = [t.clone() for t in args]
    cuts = torch.tensor([(1, -1, 0, 2)], dtype=torch.int32)
    for tail in ((0.1, 0, 0.0, None), (0.1, 4, 2.0, cuts)):
        torch.library.opcheck(torch.ops.pycotmech.prefix_attn.default, (*args, *tail))


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({0: lambda t: t.int()}, TypeError, "q must be float32"),
        ({0: lambda t: t[0]}, ValueError, r"q must be \[R, H, D\]"),
        ({1: lambda t: t.half()}, TypeError, "k_shared must be torch.float32"),
        ({2: lambda t: t[:-1]}, ValueError, "v_shared must have the shape of k_shared"),
        ({3: lambda t: t[:, :, :32]}, ValueError, "k_own must be .*64"),
        ({4: lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)}, ValueError, "v_own must be contiguous"),
        ({5: lambda t: t.long()}, TypeError, "rows must be torch.int32"),
        ({5: lambda t: t[1:]}, ValueError, r"rows must be \[49, 4\]"),
        ({5: lambda t: t + 1000}, ValueError, "ranges of k_own"),
        ({5: lambda t: t * torch.tensor([1, 1, 1, -1], dtype=torch.int32)}, ValueError, "ranges of k_shared"),
        ({5: lambda t: t * torch.tensor([1, 0, 1, 1], dtype=torch.int32)}, ValueError, "lengths of ranges"),
    ],
)
def test_arguments_are_checked(change, error, message):
    args = case()
    for i, f in change.items():
        args[i] = f(args[i])
    with pytest.raises(error, match=message):
        ops.prefix_attn(*args)


def test_options_are_checked():
    args = case()
    with pytest.raises(ValueError, match="window"):
        ops.prefix_attn(*args, window=-1)
    with pytest.raises(ValueError, match="softcap"):
        ops.prefix_attn(*args, softcap=-1.0)
    with pytest.raises(ValueError, match="scale"):
        ops.prefix_attn(*args, math.inf)
    with pytest.raises(ValueError, match=r"cuts\[:, 0\]"):
        ops.prefix_attn(*args, cuts=torch.tensor([(49, 0, 0, 1)], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cuts\[:, 1\]"):
        ops.prefix_attn(*args, cuts=torch.tensor([(0, 4, 0, 1)], dtype=torch.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window, softcap", [(0, 0.0), (300, 0.0), (35, 4.0)])
def test_more_keys_than_a_block_and_more_rows_than_a_tile(window, softcap, dtype):
    """Long shared ranges, a variant of 300 rows, cuts that cross the ends of blocks; compared on some of the rows."""
    args = case(H=2, Hkv=1, own=(300, 2, 90), shared=(700, 290), dtype=DTYPES[dtype])
    cuts = torch.tensor([(299, 0, 250, 520), (391, -1, 255, 257), (17, 1, 690, 710)], dtype=torch.int32)
    options = dict(window=window, softcap=softcap)
    z, lse = ops.prefix_attn(*args, 0.125, cuts=cuts, **options)
    some = torch.tensor([0, 1, 17, 62, 63, 64, 127, 128, 255, 256, 257, 299, 300, 301, 302, 330, 391])
    few = torch.tensor([(some.tolist().index(r), h, lo, hi) for r, h, lo, hi in cuts.tolist()], dtype=torch.int32)
    part = [args[0][some], *args[1:5], args[5][some]]
    want_z, want_lse = row_at_a_time(*part, 0.125, cuts=few, **options)
    plain_z, _ = row_at_a_time(*part, 0.125, cuts=few, **options, dtype=DTYPES[dtype])
    floor = want_z.norm() * torch.finfo(DTYPES[dtype]).eps / 8
    assert (z[some].double() - want_z).norm() <= 2 * max((plain_z.double() - want_z).norm(), floor)
    assert_close(lse[some].double(), want_lse, rtol=1e-6, atol=3e-6)
    assert z.isfinite().all() and lse.isfinite().all()


def test_gradients_are_refused_or_right():
    args = case(own=(2, 3), shared=(5, 4), H=2, Hkv=1, D=4, spare=0)
    z, _ = ops.prefix_attn(args[0].clone().requires_grad_(), *args[1:])
    with pytest.raises(NotImplementedError, match="prefix_attn has no backward pass"):
        z.sum().backward()
    wide = [t.double().clone().requires_grad_() for t in args[:5]]  # the reference, against finite differences
    assert torch.autograd.gradcheck(lambda *x: ops.prefix_attn(*x, args[5], 0.5, window=4), wide)
