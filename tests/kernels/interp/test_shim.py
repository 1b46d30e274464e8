"""The interpreter with the shim rounds and multiplies bfloat16 as PyTorch does; without that nothing is proven."""

import torch
import triton
import triton.language as tl


@triton.jit
def _arithmetic(X, Y, SUM, NARROW, DOT, N: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(X + i), tl.load(Y + i)
    tl.store(SUM + i, x * y + x)
    tl.store(NARROW + i, x.to(tl.float32) * 1.001)
    grid = i[:, None] * N + i[None, :]
    tl.store(DOT + grid, tl.dot(tl.load(X + grid), tl.load(Y + grid)))


def test_bfloat16_is_exact():
    x, y = torch.randn(2, 64, 64).bfloat16()
    total, narrow = torch.empty(64).bfloat16(), torch.empty(64).bfloat16()
    dot = torch.empty(64, 64)
    _arithmetic[(1,)](x, y, total, narrow, dot, N=64)
    assert torch.equal(total, x[0] * y[0] + x[0])
    assert torch.equal(narrow, (x[0].float() * 1.001).bfloat16())
    torch.testing.assert_close(dot.double(), x.double() @ y.double(), rtol=1e-5, atol=1e-5)
