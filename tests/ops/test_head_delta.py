"""`ops.head_delta`: one head's columns of W_O for each row, against the whole product in float64."""

from __future__ import annotations

import pytest
import torch

from pycotmech import ops
from pycotmech.ops.head_delta import reference


def case(R: int, H: int, D: int, d: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    dz = torch.randn(R, D, generator=generator).to(dtype)
    weight = (torch.randn(d, H * D, generator=generator) * (H * D) ** -0.5).to(dtype)
    return dz, torch.randint(H, (R,), generator=generator), weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (7, 3, 5, 11), (130, 9, 64, 576), (33, 4, 80, 100), (0, 2, 8, 16)])
def test_is_the_whole_product_of_rows_that_are_zero_outside_their_head(shape, dtype):
    dz, heads, weight = case(*shape, dtype)
    got, want = ops.head_delta(dz, heads, weight), reference(dz.double(), heads, weight.double())
    assert got.dtype == dtype and got.shape == want.shape
    if shape[0]:
        same_dtype = (reference(dz, heads, weight).double() - want).norm()
        least = 1e-14 if dtype == torch.float64 else 1e-6
        assert (got.double() - want).norm() <= max(2 * same_dtype, least * want.norm())


def test_a_head_reads_its_own_columns_only():
    dz, heads, weight = case(40, 5, 16, 24, torch.float32)
    want = ops.head_delta(dz, heads, weight)
    poisoned = weight.clone()
    poisoned.view(24, 5, 16)[:, 2] = float("nan")
    got = ops.head_delta(dz, heads, poisoned)
    assert got[heads == 2].isnan().all()
    assert torch.equal(got[heads != 2], want[heads != 2])


def test_the_weight_may_be_a_part_of_another_tensor_and_is_not_copied():
    dz, heads, weight = case(64, 32, 128, 512, torch.float32)
    buffer = torch.full((514, 32 * 128 + 8), float("nan"))
    part = buffer[1:513, 8:]
    part.copy_(weight)
    with torch.profiler.profile(profile_memory=True) as profile:
        got = ops.head_delta(dz, heads, part)
    assert torch.allclose(got, ops.head_delta(dz, heads, weight), rtol=1e-5, atol=1e-6)
    allocated = sum(max(e.cpu_memory_usage, 0) for e in profile.events() if e.name in ("aten::empty", "aten::clone"))
    assert allocated < weight.numel() * 4 // 4  # results of 64 rows, never the weight


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda dz, h, w: (dz[0], h, w), ValueError, "dz must be"),
        (lambda dz, h, w: (dz, h, w[:, 1:]), ValueError, "w_o"),
        (lambda dz, h, w: (dz.double(), h, w), TypeError, "dz must be of w_o's dtype"),
        (lambda dz, h, w: (dz, h[1:], w), ValueError, "heads must be int64"),
        (lambda dz, h, w: (dz, h.int(), w), ValueError, "heads must be int64"),
        (lambda dz, h, w: (dz, h + 3, w), ValueError, r"heads must be in 0\.\.2"),
        (lambda dz, h, w: (dz, h - 3, w), ValueError, r"heads must be in 0\.\.2"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    with pytest.raises(error, match=message):
        ops.head_delta(*change(*case(6, 3, 8, 16, torch.float32)))
