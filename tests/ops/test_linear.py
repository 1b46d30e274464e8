"""linear is torch.nn.functional.linear by another library where that is faster, and itself elsewhere."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pycotmech import ops
from tests.instruction_sets import available, environment
from tests.reference.close import assert_close

ROOT = Path(__file__).parent.parent.parent

MODULE = importlib.import_module("pycotmech.ops.linear")
plain = torch.nn.functional.linear


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """Records which products go to oneDNN, on machines that have it."""
    made: list[tuple] = []
    product = MODULE._product

    def record(x, weight, *rest):
        made.append(tuple(x.shape))
        return product(x, weight, *rest) if product is not None else plain(x, weight, rest[0])

    monkeypatch.setattr(MODULE, "_product", record)
    return made


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 33), (4, 33), (50, 576), (2, 3, 64), (0, 8), (64,)], ids=str)
def test_values(shape, bias):
    x, w = randn(*shape), randn(40, shape[-1], seed=1)
    b = randn(40, seed=2) if bias else None
    out = ops.linear(x, w, b)
    want = plain(x.double(), w.double(), None if b is None else b.double())
    assert out.dtype == torch.float32 and out.shape == want.shape
    error = (out.double() - want).norm()
    assert error <= max(2 * (plain(x, w, b).double() - want).norm(), 1e-7 * want.norm())


def test_views_of_x_and_of_the_weight():
    """Strided rows, transposed rows and a slice of a fused weight, each inside NaN."""
    whole = torch.full((20, 100), math.nan)
    x = whole[2:18, 10:74]
    x.copy_(randn(16, 64))
    fused = torch.full((90, 70), math.nan)
    w = fused[30:62, 3:67]
    w.copy_(randn(32, 64, seed=1))
    want = x.double() @ w.double().T
    for rows, weight in ((x, w), (x.T.contiguous().T, w), (x.contiguous(), w.T.contiguous().T)):
        assert_close(ops.linear(rows, weight).double(), want, rtol=1e-5, atol=1e-5)


def test_onednn_takes_float32_rows_from_four_on(calls):
    if not MODULE._X86:
        pytest.skip("oneDNN is chosen on x86 only")
    w = randn(8, 16)
    for rows in (1, 3, 4, 5, 64):
        ops.linear(randn(rows, 16), w)
    ops.linear(randn(2, 2, 16), w)
    assert calls == [(4, 16), (5, 16), (64, 16), (2, 2, 16)]


def test_everything_else_is_pytorch_itself(calls):
    x, w = randn(9, 16), randn(8, 16, seed=1)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(ops.linear(x.to(dtype), w.to(dtype)), plain(x.to(dtype), w.to(dtype)))
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(ops.linear(x, w), plain(x, w))
    assert ops.linear(x.to("meta"), w.to("meta")).shape == (9, 8)
    assert calls == []


def test_gradients_go_through_pytorch(calls):
    x, w = randn(9, 16), torch.nn.Parameter(randn(8, 16, seed=1))
    ops.linear(x, w).sum().backward()
    assert_close(w.grad, x.sum(0).expand(8, 16))
    ops.linear(x.requires_grad_(), w.detach()).sum().backward()
    assert_close(x.grad, w.detach().sum(0).expand(9, 16))
    assert calls == []
    with torch.no_grad():
        assert not ops.linear(x, w).requires_grad
    assert calls == ([(9, 16)] if MODULE._X86 else [])


def test_without_onednn(monkeypatch):
    monkeypatch.setattr(MODULE, "_product", None)
    x, w = randn(9, 16), randn(8, 16, seed=1)
    assert torch.equal(ops.linear(x, w), plain(x, w))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert MODULE._onednn() is None


def test_the_weight_is_neither_copied_nor_kept():
    """Resident memory while 64 MiB of weights are used again and again."""
    resource = pytest.importorskip("resource")
    weights = [torch.randn(2048, 2048) for _ in range(4)]
    x = torch.randn(16, 2048)
    ops.linear(x, weights[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        for w in weights:
            ops.linear(x, w)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 12, f"peak memory grew by {grown:.0f} MiB; one weight has 16"


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"x must be \[..., 16\]"):
        ops.linear(randn(3, 15), randn(8, 16))
    with pytest.raises(ValueError, match="d_in of weight"):
        ops.linear(randn(3, 15), randn(15))


# ---- bfloat16 where a processor has no products of it --------------------------------------------------------------------


@pytest.fixture
def without_units(monkeypatch):
    monkeypatch.setattr(MODULE, "widens_bfloat16", lambda: True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 33), (50, 576), (2, 3, 64), (0, 8), (64,)], ids=str)
def test_widened_products_are_rounded_once(without_units, monkeypatch, shape, bias):
    monkeypatch.setattr(MODULE, "_SLICE_BYTES", 64 * 4 * shape[-1])  # several slices of the weight
    x, w = randn(*shape).bfloat16(), randn(200, shape[-1], seed=1).bfloat16()
    b = randn(200, seed=2).bfloat16() if bias else None
    want = plain(x.double(), w.double(), None if b is None else b.double())
    out = ops.linear(x, w, b)
    assert out.dtype == torch.bfloat16 and out.shape == want.shape
    assert ((out.double() - want).abs() <= 2**-8 * want.abs() + 1e-5).all()
    if len(shape) == 2:
        by_columns = ops.matmul(x, w.T.contiguous(), b)
        assert ((by_columns.double() - want).abs() <= 2**-8 * want.abs() + 1e-5).all()


def test_head_delta_is_widened_too(without_units):
    dz, w_o, heads = randn(30, 16).bfloat16(), randn(48, 64, seed=1).bfloat16(), torch.arange(30) % 4
    want = torch.stack([w_o[:, h * 16 : (h + 1) * 16].double() @ row.double() for row, h in zip(dz, heads.tolist())])
    assert ((ops.head_delta(dz, heads, w_o).double() - want).abs() <= 2**-8 * want.abs() + 1e-5).all()


def test_gradients_and_other_dtypes_are_not_widened(without_units):
    x, w = randn(9, 16).bfloat16(), torch.nn.Parameter(randn(8, 16, seed=1).bfloat16())
    assert torch.equal(ops.linear(x, w), plain(x, w))
    for dtype in (torch.float16, torch.float64):
        assert torch.equal(ops.linear(x.to(dtype), w.detach().to(dtype)), plain(x.to(dtype), w.detach().to(dtype)))


HELD = """
import torch, pycotmech as pcm
from pycotmech import ops
from pycotmech.cli.info import sections
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, logits_of, sweep_truth
assert ops.widens_bfloat16() is {widened}
rows = dict(dict(sections())["Machine"])
assert ("widened" in rows["bfloat16 products"]) is {widened}, rows
hf = tiny_llama(n_layers=3, n_heads=4, n_key_value_heads=2, dtype=torch.bfloat16)
clean = torch.arange(1, 25); corrupted = clean.clone(); corrupted[15] = 40
difference = lambda logits: float(logits[7] - logits[11])
found = pcm.patch_heads(pcm.Model(hf), clean, corrupted, metric="logit_diff", answer=7, wrong=11, normalize=False).effect
truth, theirs = (
    sweep_truth(model, corrupted, clean, difference) - difference(logits_of(model, corrupted, keep=1)[0])
    for model in (double(hf), hf)
)
rms = lambda x: float(x.double().pow(2).mean().sqrt())
print(rms(torch.as_tensor(found) - truth), rms(theirs - truth))
assert rms(torch.as_tensor(found) - truth) <= rms(theirs - truth), (found, truth, theirs)
"""


@pytest.mark.parametrize("name", ["avx2", pytest.param("avx512_bf16", marks=pytest.mark.slow)])
def test_processors_with_and_without_units(name):
    """A sweep in bfloat16, held to a set of instructions: no further from float64 than Hugging Face's own hooked forwards."""
    if name not in available():
        pytest.skip(f"this processor has no {name}")
    env = {**os.environ, **environment(name)}
    code = HELD.format(widened=name == "avx2")
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
