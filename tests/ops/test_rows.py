"""Row ops against float64: add_rms_norm, rope, rope_keys, swiglu. Values, in-place contracts, strides, rounding, red zones."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from pycotmech import ops
from tests.reference.close import assert_close

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
widths = pytest.mark.parametrize("d", [1, 7, 16, 64, 100, 576, 4096])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values as a view into a larger tensor of NaN: odd row strides, a red zone on every side."""
    whole = torch.full([n + 2 for n in x.shape[:-1]] + [x.shape[-1] + 5], math.nan, dtype=x.dtype)
    view = whole[tuple(slice(1, -1) for _ in x.shape[:-1])][..., 3:-2]
    view.copy_(x)
    return view


def untouched(view: torch.Tensor) -> bool:
    """Whether the NaN around a view made by `strided` is still there."""
    return int(view._base.isnan().sum()) == view._base.numel() - view.numel()


def close_as_rounded(got: torch.Tensor, want: torch.Tensor) -> None:
    """Within one rounding of the float64 value, give or take what float32 arithmetic adds."""
    eps = torch.finfo(got.dtype).eps
    assert_close(got.double(), want, rtol=0.5 * eps + 1e-6, atol=1e-7 if eps < 1e-4 else 1e-6)


# ---------------------------------------------------------------------------------------------------------- add_rms_norm


@dtypes
@widths
@pytest.mark.parametrize("delta_dtype", [None, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_add_rms_norm(dtype, d, delta_dtype):
    x, w = 3 * randn(5, d), (1 + 0.3 * randn(d, seed=1)).to(dtype)
    delta = None if delta_dtype is None else strided(randn(5, d, seed=2).to(delta_dtype))
    new = x + (0 if delta is None else delta.float())
    want = new.double() / (new.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w.double()
    view = strided(x)
    out = ops.add_rms_norm(view, delta, w, 1e-5)
    assert out.dtype == dtype and out.shape == (5, d) and out.is_contiguous()
    assert torch.equal(view, new) and untouched(view)  # the residual itself: float32 additions, nothing else
    close_as_rounded(out, want)


def test_add_rms_norm_of_large_and_tiny_rows():
    x = torch.stack([randn(576) * 1e15, randn(576) * 1e-12, torch.zeros(576)])
    out = ops.add_rms_norm(x.clone(), None, torch.ones(576), 1e-5)
    want = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert_close(out.double(), want, rtol=2e-6, atol=0)


def test_add_rms_norm_in_float64():
    x, delta, w = randn(4, 33).double(), randn(4, 33, seed=1).bfloat16(), randn(33, seed=2).double()
    new = x + delta
    out = ops.add_rms_norm(x, delta, w, 1e-6)
    assert torch.equal(x, new) and out.dtype == torch.float64
    assert_close(out, new / (new.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w, rtol=1e-14, atol=0)


def test_add_rms_norm_checks_its_arguments():
    x, w = randn(3, 8), torch.ones(8)
    for args, error, message in (
        ((x, None, torch.ones(7)), ValueError, r"x must be \[R, d\] and weight \[d\]"),
        ((x, randn(3, 7), w), ValueError, "delta must have the shape of x"),
        ((x.long(), None, w), TypeError, "x must be of a floating dtype"),
        ((x, x.long(), w), TypeError, "delta must be of a floating dtype"),
    ):
        with pytest.raises(error, match=message):
            ops.add_rms_norm(*args, 1e-5)


# ------------------------------------------------------------------------------------------------------------------ rope


def angles(R: int, d_rot: int) -> tuple[torch.Tensor, torch.Tensor]:
    at = torch.arange(R).double()[:, None] * 10_000.0 ** (-torch.arange(0, d_rot, 2).double() / max(d_rot, 1))
    return torch.cat((at, at), -1).cos().float(), torch.cat((at, at), -1).sin().float()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair of features as a complex number, turned; in float64."""
    d_rot, x = cos.shape[1], x.double()
    pairs = torch.complex(x[..., : d_rot // 2], x[..., d_rot // 2 : d_rot])
    turn = torch.complex(cos.double(), sin.double())[:, None, : d_rot // 2]
    return torch.cat(((pairs * turn).real, (pairs * turn).imag, x[..., d_rot:]), -1)


@dtypes
@pytest.mark.parametrize("D, d_rot", [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (80, 32), (64, 10), (16, 0)])
def test_rope(dtype, D, d_rot):
    x = strided(randn(9, 3, D).to(dtype))
    cos, sin = angles(9, d_rot)
    want = rotated(x, cos, sin)
    assert ops.rope(x, cos, sin) is None
    close_as_rounded(x, want)
    assert untouched(x)
    assert torch.equal(x[..., d_rot:].double(), want[..., d_rot:])


@dtypes
def test_rope_on_parts_of_a_fused_projection(dtype):
    """q and k as views of one [R, (H + 2 Hkv) D] product: only they change."""
    R, H, Hkv, D = 6, 4, 2, 32
    qkv = randn(R, (H + 2 * Hkv) * D).to(dtype)
    before = qkv.clone()
    cos, sin = angles(R, D)
    for a, b in ((0, H), (H, H + Hkv)):
        ops.rope(qkv[:, a * D : b * D].view(R, b - a, D), cos, sin)
    close_as_rounded(qkv[:, : (H + Hkv) * D].reshape(R, -1, D), rotated(before[:, : (H + Hkv) * D].view(R, -1, D), cos, sin))
    assert torch.equal(qkv[:, (H + Hkv) * D :], before[:, (H + Hkv) * D :])


def test_rope_takes_unequal_halves():
    """The two halves of cos and sin are read where they stand, not assumed equal."""
    x, cos, sin = randn(2, 1, 4), randn(2, 4, seed=1), randn(2, 4, seed=2)
    a, b = x[..., :2], x[..., 2:]
    c, s = cos[:, None], sin[:, None]
    want = torch.cat((a * c[..., :2] - b * s[..., :2], b * c[..., 2:] + a * s[..., 2:]), -1)
    y = x.clone()
    ops.rope(y, cos, sin)
    assert_close(y, want, rtol=1e-6, atol=1e-7)


def test_rope_in_float64_and_without_rows():
    x = randn(5, 2, 16).double()
    cos, sin = (t.double() for t in angles(5, 16))
    want = rotated(x, cos, sin)
    ops.rope(x, cos, sin)
    assert_close(x, want, rtol=1e-14, atol=1e-15)
    ops.rope(torch.empty(0, 2, 16), torch.empty(0, 16), torch.empty(0, 16))


def test_rope_keys_is_rope_and_two_copies():
    """To the last bit, and in float64 too."""
    for dtype in (torch.bfloat16, torch.float64):
        q, k, v = (randn(5, h, 16).to(dtype) for h in (4, 2, 2))
        cos, sin = angles(5, 16)
        turned, kept = (q.clone(), k.clone()), torch.empty(2, 5, 2, 16, dtype=dtype)
        for x in turned:
            ops.rope(x, cos, sin)
        ops.rope_keys(q, k, v, cos, sin, *kept)
        assert torch.equal(q, turned[0]) and torch.equal(kept[0], turned[1]) and torch.equal(kept[1], v)


def test_rope_keys_checks_its_arguments():
    q, k, v = randn(5, 4, 16), randn(5, 2, 16), randn(5, 2, 16)
    cos, sin = angles(5, 16)
    good = dict(q=q, k=k, v=v, cos=cos, sin=sin, k_out=k.clone(), v_out=v.clone())
    for name, wrong, what in (
        ("q", q[:4], "q must be"),
        ("v", v.half(), "v must be"),
        ("k_out", q, "k_out must be"),
        ("v_out", v.transpose(0, 2).contiguous().transpose(0, 2), "v_out must be contiguous"),
        ("sin", sin[:, :8], "sin must have the shape of cos"),
        ("k", k.int(), "k must be float32"),
        ("cos", cos.half(), "cos must be"),
    ):
        with pytest.raises((TypeError, ValueError), match=what):
            ops.rope_keys(**{**good, name: wrong})


def test_rope_checks_its_arguments():
    x, (cos, sin) = randn(3, 2, 8), angles(3, 8)
    for args, error, message in (
        ((x.int(), cos, sin), TypeError, "x must be float32"),
        ((x[0], cos, sin), ValueError, r"x must be \[R, H, D\]"),
        ((x.transpose(1, 2), cos[:, :2], sin[:, :2]), ValueError, "x must be contiguous in its last dim"),
        ((x, cos[:2], sin), ValueError, r"cos must be \[3, D_rot\]"),
        ((x, cos, sin[:, :7]), ValueError, r"sin must be \[3, D_rot\]"),
        ((x, cos, sin[:, :6]), ValueError, "sin must have the shape of cos"),
        ((x, cos.half(), sin), TypeError, "cos must be float32"),
    ):
        with pytest.raises(error, match=message):
            ops.rope(*args)


# ---------------------------------------------------------------------------------------------------------------- swiglu


@dtypes
@widths
def test_swiglu(dtype, d):
    fused = (4 * randn(5, 2 * d)).to(dtype)
    gate, up = fused[:, :d], fused[:, d:]
    g = gate.double()
    out = ops.swiglu(gate, up)
    assert out.dtype == dtype and out.is_contiguous()
    close_as_rounded(out, g / (1 + (-g).exp()) * up.double())


@dtypes
def test_swiglu_at_the_ends_of_the_range(dtype):
    gate = torch.tensor([[0.0, -0.0, 90.0, -90.0, 600.0, -600.0, 60000.0, -60000.0, math.inf, -200.0] * 3 + [math.nan]])
    gate = gate.to(dtype)
    out = ops.swiglu(gate, torch.ones_like(gate))
    assert out[0, -1].isnan()
    got, g = out[0, :10].double(), gate[0, :10].double()
    assert_close(got, g * torch.sigmoid(g), rtol=0.01 if dtype != torch.float32 else 1e-6, atol=1e-37)


def test_swiglu_checks_its_arguments():
    x = randn(3, 8)
    for args, error, message in (
        ((x.int(), x.int()), TypeError, "gate must be float32"),
        ((x, x.half()), TypeError, "up must be torch.float32"),
        ((x, x[:, :4]), ValueError, r"gate and up must be \[R, d\] of one shape"),
        ((x.T, x.T), ValueError, "gate must be contiguous in its last dim"),
    ):
        with pytest.raises(error, match=message):
            ops.swiglu(*args)


# ------------------------------------------------------------------------------------------------------------------- all


def test_references_agree_with_the_kernels():
    """The op that runs here and the plain reference, which runs elsewhere, within a rounding."""
    modules = {name: importlib.import_module(f"pycotmech.ops.{name}") for name in ("add_rms_norm", "rope", "swiglu")}
    x, delta, w = randn(7, 96), randn(7, 96, seed=1).half(), randn(96, seed=2)
    y = x.clone()
    assert_close(ops.add_rms_norm(x, delta, w, 1e-5), modules["add_rms_norm"].reference(y, delta, w, 1e-5))
    assert torch.equal(x, y)
    q, (cos, sin) = randn(7, 2, 48), angles(7, 32)
    p = q.clone()
    ops.rope(q, cos, sin)
    modules["rope"].reference(p, cos, sin)
    assert_close(q, p, rtol=1e-6, atol=1e-6)
    assert_close(ops.swiglu(x, y), modules["swiglu"].reference(x, y), rtol=1e-6, atol=1e-6)


def test_thread_counts_agree_bit_by_bit():
    before, out = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            x = randn(300, 576)
            normed = ops.add_rms_norm(x, randn(300, 576, seed=1), torch.ones(576), 1e-5)
            heads, (cos, sin) = randn(300, 9, 64), angles(300, 64)
            ops.rope(heads, cos, sin)
            out.append((x, normed, heads, ops.swiglu(normed, x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*out, strict=True))


def test_opcheck():
    op = torch.ops.pycotmech
    x, w = randn(3, 16), torch.ones(16)
    torch.library.opcheck(op.add_rms_norm.default, (x, randn(3, 16).half(), w.bfloat16(), 1e-5))
    torch.library.opcheck(op.add_rms_norm.default, (x, None, w, 1e-5))
    torch.library.opcheck(op.rope.default, (randn(3, 2, 16), *angles(3, 8)))
    torch.library.opcheck(op.swiglu.default, (x, randn(3, 16, seed=1)))
