"""Tile shapes of the attention kernels: a small fixed table, chosen by what compiles without spills (docs/kernels.md).

Nothing is tuned at run time: what the tests compile ahead of time is what runs. A GPU that is not listed takes the shapes
of its family: 8.6 stands for 8.7, 8.9 and 12.x (100 KB of shared memory), 10.0 for 10.3, gfx942 for every AMD GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pycotmech.kernels import launch

MAX_HEAD = 256
SHARED_MEMORY = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
"""Bytes that one program may ask for."""


@dataclass(frozen=True)
class Config:
    block_m: int
    block_n: int
    warps: int
    stages: int
    tma: bool = False
    """Tensor descriptors (TMA) in place of pointers, for 16-bit inputs whose strides and addresses allow them."""
    precision: str = "tf32"
    """Of float32 products; 16-bit inputs are multiplied exactly and added in float32 whatever stands here."""
    parts: int = 2
    """bfloat16 parts of a weight in the products with segments and readouts: 1e-3, 1e-6, 1e-8 of relative error."""


def family(arch: str) -> str:
    if not arch.startswith("sm_"):
        return "gfx942"
    number = int(arch[3:])
    if number < 80:
        raise RuntimeError(f"the Triton kernels need a GPU of compute capability 8.0 or later, this one is {arch}")
    return {80: "sm_80", 90: "sm_90", 100: "sm_100", 103: "sm_100"}.get(number, "sm_86")


def padded(D: int) -> int:
    """The power of two that holds a head of size D in a tile."""
    if not 1 <= D <= MAX_HEAD:
        raise ValueError(f"the head size must be 1 to {MAX_HEAD} on a GPU, got {D}")
    return max(32, 1 << (D - 1).bit_length())


def columns(n: int) -> int:
    """The power of two that holds n columns of a small product; 0 for none."""
    return 0 if n == 0 else max(16, 1 << (n - 1).bit_length())


def pick(kind, dtype, D, *, descriptors=False):
    return Config(64, 64 if descriptors else 32, 4, 2, tma=descriptors and launch.arch() == "sm_90", parts=3 if dtype == torch.float32 else 2)
